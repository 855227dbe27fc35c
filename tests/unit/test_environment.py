"""The files of env/: what pip and conda would say, and no trace of this machine's paths."""

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from armarium import environment, layout
from armarium.errors import UserError


@pytest.fixture
def no_conda(monkeypatch):
    monkeypatch.delenv("CONDA_PREFIX", raising=False)


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
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setenv("CONDA_PREFIX", str(prefix))
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


def test_environment_txt_has_a_header_without_a_clock(tmp_path, no_conda):
    archive = str(tmp_path / "archive")
    environment.write_environment(archive)
    text = Path(layout.environment_txt(archive)).read_text()
    head = text.split("\n\n")[0].splitlines()
    keys = [line.removeprefix("# ").split(": ")[0] for line in head[1:]]
    assert keys == ["python_version", "python_implementation", "platform", "machine", "recreate with"]
    assert all(line.startswith("# ") for line in head)
    assert head[-1].endswith("pip install -r env/environment.txt")
    first = {path: Path(path).read_bytes() for path in environment.environment_files(archive)}
    environment.write_environment(archive)
    assert first == {path: Path(path).read_bytes() for path in first}


def test_without_conda_there_are_two_files(tmp_path, no_conda):
    archive = str(tmp_path / "archive")
    environment.write_environment(archive)
    written = sorted(str(path) for path in Path(archive).rglob("*") if path.is_file())
    assert written == sorted(environment.environment_files(archive))
    assert written == sorted(layout.environment_files(archive, False))


def test_another_active_conda_environment_is_not_this_one(monkeypatch):
    monkeypatch.setenv("CONDA_PREFIX", "/somewhere/else")
    assert environment.conda_prefix() is None


# ---- conda


def test_conda_files_are_what_conda_env_export_prints(conda):
    files = environment.snapshot()
    assert body(files["environment.yml"]) == (
        "name: demo\nchannels:\n  - conda-forge\n  - defaults\ndependencies:\n"
        "  - python=3.11.7=h1_0\n  - six=1.17.0=pyh_0\n  - pip:\n      - ruamel-yaml==0.19.1\n"
        f"prefix: {conda}\n"
    )
    assert body(files["environment_portable.yml"]) == (
        f"name: demo\nchannels:\n  - defaults\ndependencies:\n  - python=3.11.7\n  - six=1.17.0\n  - pip:\n      - ruamel-yaml==0.19.1\nprefix: {conda}\n"
    )


def test_conda_explicit_lists_urls_without_secrets(conda):
    urls = environment.snapshot()["explicit.txt"].decode().splitlines()
    assert urls[1] == "@EXPLICIT"
    base, md5 = "https://conda.anaconda.org/conda-forge/linux-64", "0a" * 16
    assert urls[2:] == [f"{base}/python-3.11.7-h1_0.conda#{md5}", f"{base}/six-1.17.0-pyh_0.conda#{md5}"]


def test_conda_files_are_all_announced(conda, tmp_path):
    archive = str(tmp_path / "archive")
    environment.write_environment(archive)
    written = {str(path) for path in Path(archive).rglob("*") if path.is_file()}
    assert written == set(environment.environment_files(archive)) and len(written) == 5


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

    monkeypatch.setattr(environment, "_nvidia_smi", lambda *_: "")
    found = environment.host()
    assert found["interpreter"].endswith(platform.python_version())
    assert found["cpu"]["cores"] >= 1 and found["gpus"] == [] and found["gpu_driver"] is None
    values = [v for value in found.values() for v in (value.values() if isinstance(value, dict) else [value])]
    assert platform.node() not in values and getpass.getuser() not in values and sys.executable not in values


def test_host_asks_torch_only_where_it_is_loaded(monkeypatch):
    cpu = SimpleNamespace(get_cpu_capability=lambda: "AVX2")
    torch = SimpleNamespace(backends=SimpleNamespace(cpu=cpu), version=SimpleNamespace(cuda="12.4"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert environment.host()["cpu"]["capability"] == "AVX2"
    assert environment.host()["cuda"]["torch"] == "12.4"


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


def test_a_frozen_environment_is_written_as_it_was(tmp_path):
    archive, run_zip = str(tmp_path / "archive"), tmp_path / "run.zip"
    with zipfile.ZipFile(run_zip, "w") as members:
        members.writestr("env/environment.txt", "torch==1\n")
        members.writestr("weights/final.pt", "x")
    frozen = environment.frozen_environment(run_zip)
    assert frozen == {"environment.txt": b"torch==1\n"}
    environment.write_environment(archive, frozen)
    assert Path(layout.environment_txt(archive)).read_text() == "torch==1\n"


def test_a_run_without_environment_has_none(tmp_path):
    assert environment.frozen_environment(tmp_path / "absent.zip") is None
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as members:
        members.writestr("other", "x")
    assert environment.frozen_environment(tmp_path / "run.zip") is None


@pytest.mark.parametrize("name", ["env/../x", "env/a/b", "env/.hidden"])
def test_a_member_that_would_leave_env_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as members:
        members.writestr(name, "x")
    with pytest.raises(UserError, match="plain file name"):
        environment.frozen_environment(tmp_path / "run.zip")


def test_a_broken_zip_is_named(tmp_path):
    (tmp_path / "run.zip").write_text("no zip")
    with pytest.raises(UserError, match=r"run\.zip: no whole zip"):
        environment.frozen_environment(tmp_path / "run.zip")
