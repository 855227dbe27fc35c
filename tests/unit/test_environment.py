"""The files of env/: what pip and conda would say, and no trace of this machine's paths."""

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from armarium import environment, layout, rule_environment
from armarium.errors import UserError

WITH_PACKAGE = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "workflow")}


@pytest.fixture
def no_conda(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Installed packages, made up: add(name, version, direct_url)."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])

    def add(name, version, direct_url=None, site=tmp_path / "site"):
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if direct_url:
            (folder / "direct_url.json").write_text(json.dumps(direct_url))

    return add


@pytest.fixture
def conda(tmp_path, monkeypatch, packages):
    """A conda environment of two conda packages and one from pip, active."""
    prefix = tmp_path / "opt" / "envs" / "demo"
    site = prefix / "lib" / "python3.11" / "site-packages"
    packages("six", "1.17.0", site=site)
    packages("ruamel.yaml", "0.19.1", site=site)
    owned = ["lib/python3.11/site-packages/six-1.17.0.dist-info/METADATA"]
    for name, version, build, files in (("six", "1.17.0", "pyh_0", owned), ("python", "3.11.7", "h1_0", [])):
        url = f"https://conda.anaconda.org/t/se-cret/conda-forge/linux-64/{name}-{version}-{build}.conda"
        record = {"name": name, "version": version, "build": build, "files": files, "md5": "0a" * 16}
        record |= {"url": url, "channel": "https://conda.anaconda.org/conda-forge/linux-64"}
        (prefix / "conda-meta").mkdir(exist_ok=True)
        (prefix / "conda-meta" / f"{name}.json").write_text(json.dumps(record))
    (prefix / "conda-meta" / "history").touch()
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.setenv("CONDA_EXE", str(tmp_path / "opt" / "bin" / "conda"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CONDARC", raising=False)
    monkeypatch.delenv("CONDA_CHANNEL_ALIAS", raising=False)
    return prefix


def body(data):
    return data.decode().split("\n\n", 1)[1]


# ---- pip


def test_freeze_equals_pip(tmp_path):
    frozen = subprocess.run([sys.executable, "-m", "pip", "freeze"], capture_output=True, text=True)
    if frozen.returncode:  # an interpreter without pip: at least everything importable is there
        names = [d.metadata["Name"] for d in importlib.metadata.distributions()]
        assert environment.freeze().count("\n") >= len(set(names)) - 5
        return
    plain = {line for line in frozen.stdout.splitlines() if "==" in line and line[0] != "#"}
    assert plain - set(environment.freeze().splitlines()) == set()


def test_freeze_is_sorted_and_leaves_build_tools_and_armarium_out(packages):
    for name in ("zlib", "PyYAML", "a-b", "pip", "setuptools", "armarium"):
        packages(name, "1.0")
    assert environment.freeze() == "a-b==1.0\nPyYAML==1.0\nzlib==1.0\n"


def test_freeze_keeps_sources_on_the_network_and_hides_local_ones(packages):
    packages("local", "1", {"url": "file:///home/someone/local.whl", "archive_info": {"hash": "sha256=1"}})
    packages("editable", "2", {"url": "file:///home/someone/src", "dir_info": {"editable": True}})
    packages("wheel-of", "3", {"url": "https://example.org/w.whl", "archive_info": {"hash": "sha256=1"}})
    vcs = {"vcs": "git", "commit_id": "abc"}
    packages("repo", "4", {"url": "https://example.org/r.git", "vcs_info": vcs, "subdirectory": "py"})
    assert environment.freeze().splitlines() == [
        "editable==2",
        "local==1",
        "repo @ git+https://example.org/r.git@abc#subdirectory=py",
        "wheel-of @ https://example.org/w.whl#sha256=1",
    ]


def test_environment_txt_has_a_header_without_a_clock(no_conda):
    text = environment.snapshot()["environment.txt"].decode()
    head = text.split("\n\n")[0].splitlines()
    keys = [line.removeprefix("# ").split(": ")[0] for line in head[1:]]
    assert keys == ["python_version", "python_implementation", "platform", "machine", "recreate with"]
    assert all(line.startswith("# ") for line in head)
    assert head[-1].endswith("pip install -r env/environment.txt")
    assert environment.snapshot()["environment.txt"].decode() == text


def test_without_conda_there_are_two_files(no_conda):
    assert list(environment.snapshot()) == list(layout.ENVIRONMENT)


def test_an_environment_of_other_rules_is_in_a_folder_of_its_own(conda):
    files = environment.snapshot("data")
    assert list(files) == [f"data/{name}" for name in (*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT)]
    assert b"# recreate with: conda env create -f env/data/environment.yml\n" in files["data/environment.yml"]


def test_another_active_conda_environment_is_not_this_one(monkeypatch, no_conda):
    monkeypatch.setenv("CONDA_PREFIX", "/somewhere/else")
    assert environment.conda_prefix() is None


# ---- conda


def test_conda_files_are_what_conda_env_export_prints(conda):
    files = environment.snapshot()
    assert body(files["environment.yml"]) == (
        "name: demo\nchannels:\n  - conda-forge\n  - defaults\ndependencies:\n"
        "  - python=3.11.7=h1_0\n  - six=1.17.0=pyh_0\n  - pip:\n      - ruamel-yaml==0.19.1\n"
    )
    assert body(files["environment_portable.yml"]) == (
        "name: demo\nchannels:\n  - defaults\ndependencies:\n  - python=3.11.7\n  - six=1.17.0\n  - pip:\n      - ruamel-yaml==0.19.1\n"
    )


def test_conda_explicit_lists_urls_without_secrets(conda):
    urls = environment.snapshot()["explicit.txt"].decode().splitlines()
    urls = urls[urls.index("@EXPLICIT") + 1 :]
    base, md5 = "https://conda.anaconda.org/conda-forge/linux-64", "0a" * 16
    assert urls == [f"{base}/python-3.11.7-h1_0.conda#{md5}", f"{base}/six-1.17.0-pyh_0.conda#{md5}"]


def test_the_environment_of_a_rule_is_known_by_the_copy_that_snakemake_keeps_of_its_file(conda, tmp_path, monkeypatch):
    monkeypatch.setattr(rule_environment, "ENVS", tmp_path / "envs")
    (tmp_path / "envs").mkdir()
    for name in ("data", "torch"):
        (tmp_path / f"envs/{name}.yaml").write_text(f"dependencies: [{name}]\n")
        (tmp_path / f"envs/{name}.linux-64.pin.txt").write_text(f"@EXPLICIT\n{name}\n")
    assert rule_environment.rule_environment() is None, "an environment of the user's own"
    for copy, source in (
        (f"{conda}.yaml", "data.yaml"),
        (f"{conda}.pin.txt", "torch.linux-64.pin.txt"),
        (conda / "environment.yaml", "torch.yaml"),
    ):
        Path(copy).write_bytes((tmp_path / "envs" / source).read_bytes())
        assert rule_environment.rule_environment() == source.partition(".")[0]
        Path(copy).unlink()


def test_outside_conda_there_is_no_environment_of_a_rule(no_conda):
    assert rule_environment.rule_environment() is None


def test_no_path_of_this_machine_is_in_any_file(conda, tmp_path):
    (tmp_path / "opt" / ".condarc").write_text("channels: [https://me:word@example.org/own]\n")
    for name, data in environment.snapshot().items():
        assert str(tmp_path) not in data.decode() and "word" not in data.decode(), name


@pytest.mark.parametrize("text", ["channels:\n  - conda-forge\n  - 'x'\nother: 1\n", "channels: [conda-forge, x]\n"])
def test_channels_come_from_condarc(conda, tmp_path, text):
    (tmp_path / "opt" / ".condarc").write_text(text)
    portable = body(environment.snapshot()["environment_portable.yml"])
    assert portable.split("dependencies")[0] == "name: demo\nchannels:\n  - conda-forge\n  - x\n"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://conda.anaconda.org/conda-forge/noarch", "conda-forge"),
        ("https://conda.anaconda.org/pytorch/linux-64", "pytorch"),
        ("https://repo.anaconda.com/pkgs/main/linux-64", "defaults"),
        ("https://user:word@example.org/own/osx-arm64", "https://example.org/own"),
    ],
)
def test_channel_names_are_condas(monkeypatch, url, name):
    monkeypatch.delenv("CONDA_CHANNEL_ALIAS", raising=False)
    assert environment._channel_name(url) == name


# ---- the machine


def test_host_describes_kind_of_machine_without_names(monkeypatch):
    import getpass
    import platform

    monkeypatch.setattr(environment, "nvidia_smi", lambda *_: "")
    found = environment.host()
    assert found["interpreter"].endswith(platform.python_version())
    assert found["cpu"]["cores"] >= 1 and found["gpus"] == [] and found["gpu_driver"] is None
    values = [v for value in found.values() for v in (value.values() if isinstance(value, dict) else [value])]
    assert platform.node() not in values and getpass.getuser() not in values and sys.executable not in values


@pytest.mark.parametrize("line", ["cuda: Optional[str] = '12.4'", "cuda = '12.4'"])
def test_host_asks_torch_for_cudnn_where_it_brings_cuda(tmp_path, monkeypatch, line):
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip: Optional[str] = None\n")
    torch = SimpleNamespace(
        backends=SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 90100)),
        version=SimpleNamespace(cuda="12.4"),
        __spec__=SimpleNamespace(origin=str(tmp_path / "__init__.py")),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert environment.host()["cuda"] == {"driver": None, "torch": "12.4", "cudnn": "90100"}


def test_host_imports_no_torch_that_brings_no_cuda():
    program = "import sys; from armarium.environment import host; print(host()['cuda'], 'torch' in sys.modules)"
    if torch.version.cuda:
        pytest.skip("the torch that is installed brings CUDA")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=WITH_PACKAGE)
    assert done.stdout == "{'driver': None, 'torch': None, 'cudnn': None} False\n", done.stderr


@pytest.mark.parametrize(
    ("flags", "capability"),
    [("fma avx2 avx512f avx512bw avx512dq avx512vl", "AVX512"), ("avx2 fma", "AVX2"), ("sse2", "DEFAULT")],
)
def test_cpu_capability_from_flags(monkeypatch, flags, capability):
    monkeypatch.setattr(environment, "_cpuinfo", lambda key: flags)
    assert environment.cpu_capability() == capability


def test_host_lists_gpus(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\nif [ $# -gt 0 ]; then echo "NVIDIA A, 550.54"; echo "NVIDIA A, 550.54";'
        ' else echo "| NVIDIA-SMI 550.54  Driver Version: 550.54  CUDA Version: 12.4 |"; fi\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = environment.host()
    assert found["gpus"] == ["NVIDIA A", "NVIDIA A"] and found["gpu_driver"] == "550.54"
    assert found["cuda"]["driver"] == "12.4"
    tool.write_text("#!/bin/sh\necho no devices found\nexit 6\n")
    assert environment.host()["gpus"] == []


# ---- frozen


def test_a_frozen_environment_is_read_as_it_was(tmp_path):
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as members:
        members.writestr("env/environment.txt", "torch==1\n")
        members.writestr("env/data/environment.txt", "numpy==1\n")
        members.writestr("weights/final.pt", "x")
    frozen = environment.frozen_environment(tmp_path / "run.zip")
    assert frozen == {"environment.txt": b"torch==1\n", "data/environment.txt": b"numpy==1\n"}


def test_a_run_without_environment_has_none(tmp_path):
    assert environment.frozen_environment(tmp_path / "absent.zip") is None
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as members:
        members.writestr("other", "x")
    assert environment.frozen_environment(tmp_path / "run.zip") is None


@pytest.mark.parametrize("name", ["env/../x", "env/a/b/c", "env/a/..", "env/.hidden"])
def test_a_member_that_would_leave_env_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as members:
        members.writestr(name, "x")
    with pytest.raises(UserError, match="plain file name"):
        environment.frozen_environment(tmp_path / "run.zip")


def test_a_broken_zip_is_named(tmp_path):
    (tmp_path / "run.zip").write_text("no zip")
    with pytest.raises(UserError, match=r"run\.zip: no whole zip"):
        environment.frozen_environment(tmp_path / "run.zip")
