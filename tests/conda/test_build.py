"""The project's own envs/, unmodified: Snakemake makes them offline, and rules in them make the bytes that they make without."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from armarium import layout

from ..workflow.conftest import Project, finished_jobs, hashes, job_counts, micro_config, zip_hashes
from .conftest import REPO, Conda, run

pytestmark = pytest.mark.timeout(3600)

RECORDED = [*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT]
MODELS = [f"archives/micro/models/{name}" for name in ("model.pt", "final_model.pt", "model.ts")]


class InConda:
    """A project whose rules run in the environments of its envs/, without any network."""

    def __init__(self, project: Project, conda: Conda, without_network: list[str]):
        self.project, self.conda, self.without_network = project, conda, without_network
        self.settings = {**conda.settings, "HOME": str(project.folder)}

    def snakemake(self, *arguments: str) -> str:
        command = [*self.without_network, *self.project.command("--software-deployment-method=conda", *arguments)]
        done = run(*command, cwd=self.project.folder, env=self.settings)
        return done.stdout + done.stderr

    def prefix(self, of: str) -> Path:
        """The environment that Snakemake made from the file ``of`` that name."""
        wanted = (self.project.folder / f"envs/{of}.yaml").read_bytes()
        (found,) = [p for p in (self.project.folder / ".snakemake/conda").glob("*_.yaml") if p.read_bytes() == wanted]
        return found.with_suffix("")


@pytest.fixture(scope="module")
def made(conda, without_network, figures, tmp_path_factory) -> InConda:
    """A micro archive's models, and what comes before them."""
    made = InConda(Project.fresh(tmp_path_factory.mktemp("sdm")), conda, without_network)
    start = time.monotonic()
    made.snakemake("--conda-create-envs-only", *MODELS)
    figures.add("conda: seconds to make the environments", round(time.monotonic() - start, 1))
    made.snakemake(*MODELS)
    return made


def recorded(project: Project) -> dict[str, bytes]:
    folder = project.archive / "env"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def zip_members(project: Project) -> dict[str, bytes]:
    with zipfile.ZipFile(project.archive / "training/split-0/run.zip") as members:
        return {n.removeprefix("env/"): members.read(n) for n in members.namelist() if n.startswith("env/")}


def versions(environment_txt: bytes) -> dict[str, str]:
    """Installed packages, as an environment.txt has them."""
    pairs = re.findall(r"^([^#\s]+)==(\S+)$", environment_txt.decode(), re.M)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_models_are_those_that_are_made_without_conda(made, figures, tmp_path):
    local = Project.fresh(tmp_path)
    start = time.monotonic()
    jobs = sum(local.ran(*MODELS).values())
    figures.add("conda: seconds of the same jobs without", round(time.monotonic() - start, 1))
    figures.add("conda: jobs for the models", jobs)
    here, there = (versions(recorded(p)["environment.txt"]) for p in (local, made.project))
    assert there.items() <= here.items() and {"torch", "monai", "numpy"} <= there.keys()
    runs = [zip_hashes(p.archive / "training/split-0/run.zip") for p in (local, made.project)]
    assert runs[0] == runs[1]
    assert hashes(made.project.archive) == hashes(local.archive)
    assert hashes(local.archive).keys() >= {"models/model.pt", "models/model.ts"}


def test_each_environment_is_recorded_with_what_its_file_asks_for_and_no_more(made):
    files = recorded(made.project)
    assert files.keys() == {*RECORDED, *(f"data/{name}" for name in RECORDED)}
    torch, data = (versions(files[f"{folder}environment.txt"]) for folder in ("", "data/"))
    assert {"torch", "monai", "tensorboard"} <= torch.keys() and "ancpbids" not in torch
    assert {"rocrate", "scikit-learn", "ancpbids"} <= data.keys() and not {"torch", "monai"} & data.keys()
    assert not [name for name, data in files.items() if str(made.project.folder).encode() in data]
    assert zip_members(made.project) == files


def test_nothing_is_planned_with_conda_or_without_of_what_was_made_the_other_way(made):
    assert made.project.planned(*MODELS) == {}
    assert job_counts(made.snakemake("-n", *MODELS)) == {}


# ---- a complete archive


def with_export() -> dict:
    config = micro_config()
    config["archives"]["micro"]["export"] = {"formats": ["onnx"]}
    return config


@pytest.fixture(scope="module")
def complete(made, figures) -> InConda:
    """The whole archive, made anew, with an export in a third environment."""
    shutil.rmtree(made.project.archive)
    made.project.configure(with_export())
    start = time.monotonic()
    made.jobs = finished_jobs(made.snakemake())
    figures.add("conda: seconds of a whole micro archive", round(time.monotonic() - start, 1))
    return made


@pytest.mark.slow
def test_every_rule_makes_the_same_bytes_in_its_own_environment(complete, figures, tmp_path):
    local = Project.fresh(tmp_path)
    local.configure(with_export())
    start = time.monotonic()
    jobs = local.ran()
    jobs.pop("synthesize_micro")  # the dataset is there already, with conda
    figures.add("conda: seconds of the same archive without", round(time.monotonic() - start, 1))
    figures.add("conda: jobs of the whole micro archive", sum(jobs.values()))
    assert complete.jobs == jobs | {f"record_{of}_environment": 1 for of in ("conda", "data", "onnx")}
    assert hashes(complete.project.archive) == hashes(local.archive)
    assert job_counts(local.snakemake("-n", "--sdm", "conda").stdout) == {}


@pytest.mark.slow
def test_each_environment_is_recorded_as_conda_exports_it(complete):
    files = recorded(complete.project)
    for folder, of in (("", "torch"), ("data/", "data"), ("onnx/", "onnx")):
        exported = yaml.safe_load(complete.conda("env", "export", "--prefix", complete.prefix(of)))
        prefix = exported.pop("prefix")
        assert yaml.safe_load(files[f"{folder}environment.yml"]) == {**exported, "name": Path(prefix).name}


@pytest.mark.slow
def test_the_manifest_names_each_rules_environment_and_verify_what_another_one_lacks(complete):
    project = complete.project
    graph = json.loads((project.archive / "ro-crate-metadata.json").read_text())["@graph"]
    ran_in = {e["@id"]: [part["@id"] for part in e["environment"]][3:] for e in graph if "environment" in e}
    named = {action: ran_in[f"#action/{action}"] for action in ("train_split-0", "write_model", "export_onnx")}
    assert named == {of: [f"#environment/{name}"] for of, name in zip(named, ("torch", "data", "onnx"), strict=True)}
    assert all(len(names) == 1 for names in ran_in.values())
    assert not [e for e in graph if "in another environment" in str(e.get("description"))]
    verify = ["-m", "armarium", "verify", "archives/micro"]
    settings = complete.settings | {"PYTHONPATH": str(project.folder / "workflow")}
    told = run(complete.prefix("data") / "bin/python", *verify, cwd=project.folder, env=settings).stdout
    assert re.search(r"torch \S+, here not installed", told) and "nothing wrong" in told


@pytest.mark.slow
def test_pins_make_the_same_environment_without_solving(complete, without_network, tmp_path):
    """Of a channel on this machine, in a copy of the project: such pins are of no use to others."""
    pinned = InConda(Project.fresh(tmp_path / "project"), complete.conda, without_network)
    envs = pinned.project.folder / "envs"
    for name in ("onnx.yaml", "torch.yaml"):
        (envs / name).rename(tmp_path / name)
    settings = {**pinned.settings, "PYTHONPATH": str(pinned.project.folder / "workflow"), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "armarium", "pin-environments", "envs"]
    refused = run(*command, cwd=pinned.project.folder, env=settings, ok=False)
    assert refused.returncode == 1 and "other machines cannot have from there" in refused.stderr
    run(*command, "--any-channel", cwd=pinned.project.folder, env=settings)
    assert sorted(os.listdir(envs)) == ["data.linux-64.pin.txt", "data.post-deploy.sh", "data.yaml"]
    for name in ("onnx.yaml", "torch.yaml"):
        (tmp_path / name).rename(envs / name)
    output = pinned.snakemake("archives/micro/data/cases.tsv")
    assert re.search(r"Using pinnings from .*data\.linux-64\.pin\.txt", output)
    (made,) = (pinned.project.folder / ".snakemake/conda").glob("*_/bin/python")
    listed = [run(python, "-m", "pip", "list").stdout for python in (made, complete.prefix("data") / "bin/python")]
    assert listed[0] == listed[1] and "ancpbids" in listed[0]
    record = json.loads((pinned.project.archive / "provenance/check_data.json").read_text())
    assert record["environment"] == "data"


@pytest.mark.slow
def test_the_dockerfile_is_what_snakemake_makes_of_the_workflow(conda):
    settings = {**conda.settings, "HOME": str(conda.folder)}
    command = [sys.executable, "-m", "snakemake", "--containerize"]
    assert run(*command, cwd=REPO, env=settings).stdout == (REPO / "Dockerfile").read_text(), "run: make dockerfile"


@pytest.mark.slow
def test_without_conda_nothing_is_planned_and_what_is_lost_comes_from_the_run(complete, tmp_path):
    copy = Project.copy_of(complete.project, tmp_path / "project")
    files = recorded(copy)
    assert copy.planned() == {}
    for name in ("environment.yml", "data/environment.yml"):
        (copy.archive / "env" / name).unlink()
    assert copy.ran() == {"record_conda_environment": 1, "record_data_environment": 1, "write_manifest": 1}
    assert recorded(copy) == files


@pytest.mark.slow
def test_an_adopted_archive_comes_back_without_conda_and_says_what_it_is_then_trained_in(complete, tmp_path):
    """Taken to a project that never saw conda, as it is, and then with nothing but its configuration and its run."""
    copy, source = Project.fresh(tmp_path / "project"), complete.project
    shutil.copytree(source.archive, copy.folder / "elsewhere/taken")
    shutil.copytree(source.folder / "data", copy.folder / "data")
    copy.archive = copy.folder / "elsewhere/taken"
    target = "elsewhere/taken/ro-crate-metadata.json"
    assert copy.planned(target) == {}
    # Of exports on request nothing is frozen: without conda it does not come back.
    files = {name: data for name, data in recorded(source).items() if not name.startswith("onnx/")}
    weights = zip_hashes(source.archive / "training/split-0/run.zip")
    shutil.rmtree(copy.archive / "env")
    copy.snakemake(target)
    assert recorded(copy) == files
    (copy.archive / "training/split-0/run.zip").unlink()
    assert copy.ran(target)["train_split"] == 1
    assert zip_hashes(copy.archive / "training/split-0/run.zip") == weights
    assert recorded(copy) == zip_members(copy)
    assert "environment.yml" not in recorded(copy) and recorded(copy)["environment.txt"] != files["environment.txt"]
    assert copy.planned(target) == {}
