"""Clones: what depends on an edit is made again, and whose clone it is told; and clones that train on from a parent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from armarium.clone import clone
from armarium.finetune import prepare
from armarium.hashing import sha256
from armarium.verify import verify

from .conftest import Project, WarmProject, finished_jobs, hashes, job_counts, micro_config, zip_hashes
from .kills import start
from .test_survival import trainer_of

MANIFEST = "ro-crate-metadata.json"
CUT_FROM_A_RUN = {
    "train_split",
    "test_split",
    "export_split",
    "evaluate_published",
    "select_checkpoint",
    "write_manifest",
}


def everything(archive: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and modification time of every file."""
    return {str(p): (sha256(p), p.stat().st_mtime_ns) for p in sorted(archive.rglob("*")) if p.is_file()}


def entities(archive: Path) -> dict[str, dict]:
    return {e["@id"]: e for e in json.loads((archive / MANIFEST).read_text())["@graph"]}


def edit(archive: Path, name: str, change) -> None:
    path = archive / "config" / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=1))


def command(project: Project, *arguments: str) -> subprocess.CompletedProcess:
    """``armarium ARGUMENTS`` in a project's folder."""
    environment = {**project.environment, "PYTHONPATH": str(project.folder / "workflow")}
    done = subprocess.run(
        [sys.executable, "-m", "armarium", *arguments],
        cwd=project.folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


# ---- clones


def test_only_what_depends_on_an_edit_of_a_copy_runs_and_its_manifest_names_the_first(built, tmp_path):
    with WarmProject.copy_of(built, tmp_path / "project") as project:
        first = project.archive
        shutil.copytree(first, first.with_name("b"), copy_function=shutil.copy)  # as cp -r: with the times of now
        before, b = everything(first), first.with_name("b")
        target = f"archives/b/{MANIFEST}"
        assert project.planned(target) == {}
        edit(b, "archive.json", lambda spec: spec["select"].update(final=False))
        planned = project.planned(target)
        assert "train_split" not in planned and planned["write_callbacks"] == 1
        assert project.ran(target) == planned
        assert project.planned(target) == {}
        found, own = entities(b), entities(first)
        assert found["./"]["isBasedOn"] == {"@id": "#origin"}
        assert (found["#origin"]["identifier"], found["#origin"]["name"]) == (own["./"]["identifier"], "micro")
        assert found["./"]["identifier"] != own["./"]["identifier"] and "isBasedOn" not in own["./"]
        assert everything(first) == before


def test_a_clone_plans_what_the_same_edit_of_a_copy_plans(built, tmp_path, monkeypatch):
    with WarmProject.copy_of(built, tmp_path / "project") as project:
        monkeypatch.chdir(project.folder)
        before = everything(project.archive)
        clone("archives/micro", "archives/c", {"learning_rate": "0.02"})
        shutil.copytree("archives/micro", "archives/d")
        edit(project.folder / "archives/d", "config_train.json", lambda conf: conf.update(learning_rate=0.02))
        planned = project.planned(f"archives/c/{MANIFEST}")
        assert planned == project.planned(f"archives/d/{MANIFEST}") and planned["train_split"] == 1
        assert everything(project.archive) == before
        (project.folder / "elsewhere").mkdir()
        monkeypatch.chdir(project.folder / "elsewhere")
        clone("../archives/micro", "e", {})
        done = project.server.call("-n", "--directory", "elsewhere", "--cores", "1", "--", f"e/{MANIFEST}")
        assert done.returncode == 0
        assert job_counts(done.stdout + done.stderr) == {}, "it is the same archive"


# ---- fine-tuning


def test_another_parent_trains_again_and_nothing_else_does(built, tmp_path, monkeypatch):
    with WarmProject.copy_of(built, tmp_path / "project") as project:
        monkeypatch.chdir(project.folder)
        target, b = f"archives/b/{MANIFEST}", project.folder / "archives/b"
        clone("archives/micro", "archives/b", {})
        prepare("archives/b")
        planned = project.planned(target)
        assert planned.keys() >= {*CUT_FROM_A_RUN, "copy_starting_weights"} and "check_data" not in planned
        assert sha256(b / "resources/parent/model.pt") == sha256(project.archive / "models/model.pt")
        parent = json.loads((b / "resources/parent/parent.json").read_text())
        assert parent["identifier"] == entities(project.archive)["./"]["identifier"] and parent["name"] == "micro"
        effective = json.loads((b / "config/effective/train.json").read_text())
        assert "start" not in effective, "nothing was planned for real"
        refused = project.snakemake("-n", "--", "archives/micro/training/split-0/starting_weights.tsv", ok=False)
        assert refused.returncode and "this archive is not fine-tuned" in refused.stderr


@pytest.fixture(scope="module")
def tuned(built, tmp_path_factory) -> Project:
    """The built project with its archive's training taken on to six epochs, in a clone."""
    project = Project.copy_of(built, tmp_path_factory.mktemp("tuned") / "project")
    done = command(project, "finetune", "archives/micro", "archives/b", "--continue", "--set", "epochs=6")
    assert done.returncode == 0, done.stderr[-3000:]
    project.finetuned = project.folder / "archives/b"
    return project


@pytest.mark.slow
def test_a_training_that_goes_on_in_a_clone_is_the_one_that_never_stopped(tuned, built, tmp_path):
    assert everything(tuned.archive).keys() and hashes(tuned.archive) == hashes(built.archive)
    longer = Project.fresh(tmp_path / "longer")
    config = micro_config()
    config["archives"]["micro"]["set"]["epochs"] = 6
    longer.configure(config)
    run = "training/split-0/run.zip"
    longer.snakemake("--", f"archives/micro/{run}")
    mine, its = zip_hashes(tuned.finetuned / run), zip_hashes(longer.archive / run)
    differ = {name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name)}
    assert differ == {"run.json", "summary.log", "starting_weights.tsv"}
    assert "checkpoints/epoch-6.pt" in its


@pytest.mark.slow
def test_a_fine_tuned_archive_says_what_it_started_from_and_verifies(tuned):
    b, found = tuned.finetuned, entities(tuned.finetuned)
    identity = entities(tuned.archive)["./"]["identifier"]
    assert found["#parent"]["identifier"] == found["#origin"]["identifier"] == identity
    assert found["resources/parent/split-0.zip"]["sha256"] == sha256(tuned.archive / "training/split-0/run.zip")
    read = {thing["@id"] for thing in found["#action/train_split-0"]["object"]}
    assert "resources/parent/split-0.zip" in read
    assert tuned.planned(f"archives/b/{MANIFEST}") == {}
    assert not verify(str(b), str(tuned.folder)).wrong
    assert "final_model.pt of micro" in command(tuned, "summary", "archives/b").stdout
    assert "final_model.pt of micro" in (b / "docs/README.md").read_text()


@pytest.mark.slow
def test_a_fine_tuned_archive_comes_back_from_its_sources_and_the_data_alone(tuned, tmp_path):
    project = Project.copy_of(tuned, tmp_path / "project")
    shutil.rmtree(project.archive)
    b = project.folder / "archives/b"
    for path in b.iterdir():
        if path.name not in ("config", "resources"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (b / "resources/log.config").unlink()
    done = command(project, "rebuild", "archives/b", "--cores", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert hashes(b) == hashes(tuned.finetuned)
    assert zip_hashes(b / "training/split-0/run.zip") == zip_hashes(tuned.finetuned / "training/split-0/run.zip")
    assert "isBasedOn" in entities(b)["./"]


@pytest.mark.slow
def test_a_killed_fine_tuning_goes_on_to_the_same_bytes(built, tmp_path, monkeypatch):
    run, projects = "training/split-0/run.zip", []
    for name in ("undisturbed", "killed"):
        project = Project.copy_of(built, tmp_path / name)
        monkeypatch.chdir(project.folder)
        clone("archives/micro", "archives/b", {"epochs": "60"})
        prepare("archives/b", "models/final_model.pt")
        project.archive = project.folder / "archives/b"
        projects.append(project)
    undisturbed, killed = projects
    undisturbed.snakemake("--", f"archives/b/{run}")
    (killed.archive / run).unlink()
    running = start(killed, "--", f"archives/b/{run}")
    os.kill(trainer_of(killed), signal.SIGKILL)
    assert running.wait(60) != 0
    done = killed.snakemake("--", f"archives/b/{run}")
    assert "resuming after epoch" in done.stderr + done.stdout
    assert finished_jobs(done.stdout + done.stderr)["train_split"] == 1
    assert zip_hashes(killed.archive / run) == zip_hashes(undisturbed.archive / run)
