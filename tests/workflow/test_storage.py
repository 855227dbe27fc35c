"""A dataset and an archive in an object store, by Snakemake's storage plugin for a file system."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Project, hashes


@pytest.fixture
def plugins() -> str:
    """Where the plugin is installed; rsync is what it copies with."""
    if (spec := importlib.util.find_spec("snakemake_storage_plugin_fs")) is None:
        pytest.skip("no snakemake-storage-plugin-fs is installed")
    if shutil.which("rsync") is None:
        pytest.skip("no rsync is installed, which snakemake-storage-plugin-fs copies with")
    return str(Path(spec.origin).parents[1])


def store(project: Project, plugins: str, what: str, *config: str) -> subprocess.CompletedProcess:
    snakefile = f"workflow/storage/{what}.smk"
    command = [sys.executable, "-m", "snakemake", "--snakefile", snakefile, "--cores", "2", "--config", *config]
    env = project.environment | {"PYTHONPATH": plugins}
    return subprocess.run(command, cwd=project.folder, env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_an_archive_is_pushed_and_fetched_and_then_complete(copy, plugins, tmp_path):
    before, config = hashes(copy.archive), ("provider=fs", f"store={tmp_path}/bucket/archives")
    done = store(copy, plugins, "push", *config)
    assert done.returncode == 0 and (tmp_path / "bucket/archives/micro.zip").is_file(), done.stderr
    again = store(copy, plugins, "push", *config)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr
    refused = store(copy, plugins, "fetch", *config)
    assert refused.returncode == 1 and "archives/micro: there already; move it away" in refused.stderr
    assert "Traceback" not in refused.stderr and hashes(copy.archive) == before

    shutil.rmtree(copy.archive)
    done = store(copy, plugins, "fetch", *config, "archives=micro")
    assert done.returncode == 0 and hashes(copy.archive) == before, done.stderr
    assert copy.planned() == {}


@pytest.mark.slow
def test_a_dataset_is_fetched_file_by_file_and_what_is_new_again(copy, plugins, tmp_path):
    there, here = tmp_path / "bucket/micro", copy.folder / "fetched/micro"
    shutil.copytree(copy.folder / "data/micro", there)
    config = ("provider=fs", f"data={there}", "data_root=fetched/micro")
    done = store(copy, plugins, "data", *config)
    assert done.returncode == 0, done.stderr
    names = sorted(str(p.relative_to(there)) for p in there.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(here)) for p in here.rglob("*") if p.is_file())
    assert all((here / name).read_bytes() == (there / name).read_bytes() for name in names)

    first, *_ = names
    (there / first).write_bytes(b"new")
    done = store(copy, plugins, "data", *config)
    assert done.returncode == 0 and (here / first).read_bytes() == b"new"
    assert "fetch_file 1" in " ".join((done.stdout + done.stderr).split())


@pytest.mark.slow
def test_a_key_that_is_none_is_told(copy, plugins):
    for what, config, message in (
        ("push", "bucket=x", "--config bucket: no such key; wanted store, provider, archives, archives_dir"),
        ("data", "data=x", "--config: no data_root; wanted data, data_root"),
        ("fetch", "provider=fs", "--config: no store; wanted store"),
    ):
        refused = store(copy, plugins, what, config)
        assert refused.returncode == 1 and message in refused.stderr and "Traceback" not in refused.stderr
