"""An archive whose split two processes train, on the CPU: complete as any other, and resumed as any other."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from .conftest import Project, hashes, micro_config, zip_hashes
from .kills import start
from .test_survival import ended, trainer_of

RUN = "archives/micro/training/split-0/run.zip"
EVALUATIONS = ("archives/micro/test/evaluations/holdout_split-0.zip", "archives/micro/eval/evaluation.zip")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Project:
    """The micro archive, trained and evaluated by two processes; long enough to be killed in."""
    project = several(tmp_path_factory.mktemp("two"))
    project.snakemake("--config", "evaluation_processes=2")
    return project


def several(folder: Path) -> Project:
    project = Project.fresh(folder)
    config = micro_config()
    config["archives"]["micro"]["set"] |= {"multi_gpu": True, "epochs": 40}
    project.configure(config)
    return project


@pytest.mark.slow
def test_an_archive_of_two_processes_is_complete_and_says_so(two):
    assert two.planned() == {}
    record = json.loads((two.archive / "provenance/train_split-0.json").read_text())
    assert (record["resources"]["processes"], record["resources"]["device"]) == (2, "cpu")
    assert record["packages"].keys() >= {"torch", "monai", "ignite"}
    assert json.loads((two.archive / "config/effective/train.json").read_text())["processes"] == 2
    log = (two.folder / "logs/archives/micro/train_split_0.log").read_text()
    assert log.count("epoch 40/40") == 1, "told by one of them"


@pytest.mark.slow
def test_how_many_share_an_evaluation_changes_no_file_and_plans_nothing(two, tmp_path):
    project = Project.copy_of(two, tmp_path / "project")
    before = hashes(project.archive)
    assert project.planned("--config", "evaluation_processes=3") == {}
    for path in EVALUATIONS:
        (project.folder / path).unlink()
    assert project.ran("--", *EVALUATIONS) == {"test_split": 1, "evaluate_published": 1}
    assert hashes(project.archive) == before


@pytest.mark.slow
def test_fewer_gpus_than_processes_are_told_before_anything_is_made(tmp_path):
    project = several(tmp_path / "project")
    done = project.snakemake("--resources", "gpu=1", ok=False)
    assert (
        "armarium: train_split: 2 processes want a GPU each, and 1 may be used at once here"
        in done.stdout + done.stderr
    )
    assert done.returncode == 1 and not (project.archive / "data").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "signum"),
    [("step", signal.SIGKILL), ("step", signal.SIGTERM), ("process", signal.SIGKILL)],
    ids=lambda v: getattr(v, "name", v),
)
def test_a_killed_training_of_two_processes_goes_on_to_the_same_bytes(victim, signum, two, tmp_path):
    project = several(tmp_path / "project")
    running = start(project, "--", RUN)
    step = trainer_of(project)
    processes = list(map(int, Path(f"/proc/{step}/task/{step}/children").read_text().split()))
    os.kill(step if victim == "step" else processes[-1], signum)
    assert running.wait(120) != 0 and len(processes) == 2 and all(map(ended, [step, *processes]))
    assert not (project.folder / RUN).exists(), "nothing half-made"
    done = project.snakemake("--", RUN)
    assert "resuming after epoch" in done.stderr + done.stdout
    assert zip_hashes(project.folder / RUN) == zip_hashes(two.folder / RUN)
