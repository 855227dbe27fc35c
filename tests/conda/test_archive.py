"""An archive that is made in rules' own environments keeps what is said of them where there is no conda."""

from __future__ import annotations

import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from armarium import layout

from ..workflow.conftest import Project, zip_hashes
from .conftest import Conda, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

RECORDED = [*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT]
PIN = "data.linux-64.pin.txt"


def snakemake(project: Project, conda: Conda, *arguments: str) -> None:
    command = project.command("--sdm", "conda", *arguments)
    run(*command, cwd=project.folder, env={**conda.settings, "HOME": str(project.folder)})


@pytest.fixture(scope="module")
def project(conda, tmp_path_factory) -> Project:
    """A micro archive, made with ``--sdm conda``; what the channel has no package of comes from this interpreter."""
    project = Project.fresh(tmp_path_factory.mktemp("sdm"))
    for name, packages in (("torch", "six, tabulate"), ("data", "six")):
        file = project.folder / f"envs/{name}.yaml"
        file.write_text(f"channels: [{conda.channel.name}]\ndependencies: [python =3.11, {packages}]\n")
        site = f"$CONDA_PREFIX/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        text = f"echo '{sysconfig.get_path('purelib')}' > \"{site}/tests.pth\"\n"
        file.with_name(f"{name}.post-deploy.sh").write_text(text)
    conda("create", "--quiet", "--yes", "--name", "pinned", "python=3.11", "six")
    (project.folder / "envs" / PIN).write_text(conda("list", "--name", "pinned", "--explicit", "--md5"))
    snakemake(project, conda)
    return project


def recorded(project: Project) -> dict[str, bytes]:
    folder = project.archive / "env"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def zip_members(project: Project) -> dict[str, bytes]:
    with zipfile.ZipFile(project.archive / "training/split-0/run.zip") as members:
        return {n.removeprefix("env/"): members.read(n) for n in members.namelist() if n.startswith("env/")}


def prefix_of(project: Project, of: str) -> Path:
    """The environment that Snakemake made for ``torch``, which has tabulate, or for ``data``, which has not."""
    made = [path.parent for path in (project.folder / ".snakemake/conda").glob("*/conda-meta")]
    (found,) = [p for p in made if any((p / "conda-meta").glob("tabulate-*.json")) == (of == "torch")]
    return found


def test_each_environment_is_recorded_as_conda_exports_it(conda, project):
    files = recorded(project)
    assert files.keys() == {*RECORDED, *(f"data/{name}" for name in RECORDED), PIN}
    for folder, of in (("", "torch"), ("data/", "data")):
        exported = yaml.safe_load(conda("env", "export", "--prefix", prefix_of(project, of)))
        prefix = exported.pop("prefix")
        assert yaml.safe_load(files[f"{folder}environment.yml"]) == {**exported, "name": Path(prefix).name}
    assert files[PIN] == (project.folder / "envs" / PIN).read_bytes()
    assert not [name for name, data in files.items() if str(project.folder).encode() in data]
    assert zip_members(project) == files


def test_without_conda_nothing_is_planned_and_what_is_lost_comes_from_the_run(project, tmp_path):
    copy = Project.copy_of(project, tmp_path / "project")
    files = recorded(project)
    assert copy.planned() == {}
    for name in ("environment.yml", "data/environment.yml", PIN):
        (copy.archive / "env" / name).unlink()
    wanted = {"record_conda_environment": 1, "record_rule_environment": 1, "copy_lock_file": 1, "write_manifest": 1}
    assert copy.ran() == wanted
    assert recorded(copy) == files


def test_an_adopted_archive_comes_back_without_conda_and_says_what_it_is_then_trained_in(project, tmp_path):
    """Taken to a project that never saw conda, as it is, and then with nothing but its configuration and its run."""
    copy = Project.fresh(tmp_path / "project")
    shutil.copytree(project.archive, copy.folder / "elsewhere/taken")
    shutil.copytree(project.folder / "data", copy.folder / "data")
    copy.archive = copy.folder / "elsewhere/taken"
    target = "elsewhere/taken/ro-crate-metadata.json"
    assert copy.planned(target) == {}
    files, weights = recorded(project), zip_hashes(project.archive / "training/split-0/run.zip")
    shutil.rmtree(copy.archive / "env")
    copy.snakemake(target)
    assert recorded(copy) == files
    (copy.archive / "training/split-0/run.zip").unlink()
    assert copy.ran(target)["train_split"] == 1
    assert zip_hashes(copy.archive / "training/split-0/run.zip") == weights
    assert recorded(copy) == zip_members(copy)
    assert "environment.yml" not in recorded(copy) and recorded(copy)["environment.txt"] != files["environment.txt"]
    assert copy.planned(target) == {}
