"""Pins name each package of an environment, and never this machine."""

import os
from pathlib import Path

import pytest
from armarium.errors import UserError
from armarium.pins import pin_environments

CONDA = """#!{python}
# Makes what the tests want an environment to be, where conda would.
import json, os, pathlib, sys
if sys.argv[1] == "info":
    print(json.dumps(dict(platform="linux-64")))
elif "broken" in pathlib.Path(sys.argv[sys.argv.index("--file") + 1]).read_text():
    sys.exit("nothing provides it")
else:
    prefix = pathlib.Path(sys.argv[-1])
    site = prefix / "lib/python3.11/site-packages"
    for name, owned in (("six", True), ("monai", False)):
        info = site / f"{{name}}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {{name}}\\nVersion: 1.0\\n")
    (prefix / "conda-meta").mkdir()
    files = ["lib/python3.11/site-packages/six-1.0.dist-info/METADATA"]
    record = dict(name="six", version="1.0", build="0", files=files, md5="0a", url=os.environ["URL"])
    (prefix / "conda-meta/six.json").write_text(json.dumps(record))
"""
URL = "https://conda.anaconda.org/conda-forge/noarch/six-1.0-0.conda"


@pytest.fixture
def envs(tmp_path, monkeypatch) -> Path:
    """A folder with the file of one environment, and a conda that makes it from conda's six and pip's monai."""
    import sys

    program = tmp_path / "bin/conda"
    program.parent.mkdir()
    program.write_text(CONDA.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("URL", URL)
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs/torch.yaml").write_text("dependencies: [six, pip: [monai]]\n")
    return tmp_path / "envs"


def test_a_pin_has_every_package_of_conda_and_a_script_those_of_pip(envs):
    pin, script = envs / "torch.linux-64.pin.txt", envs / "torch.post-deploy.sh"
    assert pin_environments(str(envs)) == [str(pin), str(script)]
    assert pin.read_text() == f"@EXPLICIT\n{URL}#0a\n"
    assert script.read_text().endswith("\npython -m pip install --quiet --no-deps monai==1.0\n")
    assert script.read_text().startswith("#!/bin/sh\n")


@pytest.mark.parametrize(
    "url", ["file:///srv/c/six-1.0-0.conda", "http://10.0.0.1/c/six.conda", "https://cache/c/six.conda"]
)
def test_pins_of_a_channel_that_others_do_not_reach_are_refused_unless_wanted(envs, monkeypatch, url):
    monkeypatch.setenv("URL", url)
    with pytest.raises(UserError, match=r"torch\.yaml: .*six.* cannot have from there; .*--any-channel"):
        pin_environments(str(envs))
    assert os.listdir(envs) == ["torch.yaml"]
    assert pin_environments(str(envs), any_channel=True)


def test_nothing_is_written_if_one_environment_cannot_be_made(envs):
    (envs / "zz.yaml").write_text("broken")
    with pytest.raises(UserError, match=r"conda env create .*zz\.yaml.*: nothing provides it"):
        pin_environments(str(envs))
    assert sorted(os.listdir(envs)) == ["torch.yaml", "zz.yaml"]


def test_what_is_missing_is_named(envs, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no NAME\.yaml"):
        pin_environments(str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="conda: not on the PATH"):
        pin_environments(str(envs))
