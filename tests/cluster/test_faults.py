"""What befalls a training on a cluster: it goes on after its last epoch, and ends with the bytes of one that nothing befell."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from ..workflow.conftest import Project, hashes, zip_hashes
from .conftest import TRAININGS, OnSlurm, eventually, two_splits


def same(project: Project, expected: Project) -> None:
    for training in TRAININGS:
        assert zip_hashes(project.folder / training) == zip_hashes(expected.folder / training)


def logs(project: OnSlurm, split: int) -> list[str]:
    """What each of Slurm's jobs said that were to train a split, in their order."""
    found = (project.folder / f"logs/slurm/rule_train_split/archives_micro_{split}").glob("*.log")
    return [path.read_text() for path in sorted(found, key=lambda path: int(path.stem))]


def resumed(project: OnSlurm, split: int) -> bool:
    return any(f"split {split}: resuming after epoch" in log for log in logs(project, split))


def trainers(project: OnSlurm, split: int) -> int:
    """How many jobs trained an epoch of a split."""
    return sum(bool(re.search(r"epoch \d+/", log)) for log in logs(project, split))


def both_train(slurm, project: OnSlurm) -> bool:
    return all(slurm.training(k) and project.trained(k) for k in (0, 1))


def test_an_archive_whose_training_is_cancelled_and_then_its_snakemake_killed(slurm, on_slurm, built_here):
    """Called again, Snakemake waits for what trains, and trains nothing a second time."""
    run = on_slurm.started()
    eventually(lambda: both_train(slurm, on_slurm))
    first = slurm.training(0)
    slurm.cancel(first)
    eventually(lambda: slurm.training(0) not in (None, first) and resumed(on_slurm, 0), why="it trains again")
    left = [number for k in (0, 1) if (number := slurm.training(k))]
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert on_slurm.started().wait() == 0, on_slurm.said
    for number in left:
        assert f"goes on by itself, and is waited for: Slurm job {number}, running" in on_slurm.said
    assert (trainers(on_slurm, 0), trainers(on_slurm, 1)) == (2, 1)
    same(on_slurm, built_here)
    assert hashes(on_slurm.archive) == hashes(built_here.archive)
    assert on_slurm.planned() == Project(on_slurm.folder).planned() == {}


@pytest.mark.slow
def test_a_controller_that_restarts(slurm, on_slurm, built_here):
    run = on_slurm.started("--", *TRAININGS)
    eventually(lambda: both_train(slurm, on_slurm))
    slurm.kill_controller()
    time.sleep(40)
    slurm.start_what_is_down()
    assert run.wait() == 0, on_slurm.said
    same(on_slurm, built_here)
    assert trainers(on_slurm, 0) == trainers(on_slurm, 1) == 1


@pytest.mark.slow
def test_what_a_killed_snakemake_left_waiting_is_taken_back(slurm, on_slurm, built_here):
    blocker = slurm.hold_a_gpu()
    try:
        run = on_slurm.started("--", *TRAININGS)
        eventually(lambda: slurm.training(0) or slurm.training(1), why="one of them trains")
        waiting = eventually(lambda: [number for number, (state, _) in slurm.queue().items() if state == "PENDING"])
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        again = on_slurm.started("--", *TRAININGS)
        eventually(lambda: f"Slurm job {waiting[0]}, pending" in on_slurm.said)
    finally:
        slurm.cancel(blocker)
    assert again.wait() == 0, on_slurm.said
    same(on_slurm, built_here)
    assert trainers(on_slurm, 0) == trainers(on_slurm, 1) == 1


@pytest.mark.slow
def test_a_training_over_its_time_limit_goes_on(slurm, on_slurm):
    on_slurm.configure(two_splits(2500))
    on_slurm.override("train_split", runtime=1)
    run = on_slurm.started("--retries", "20", "--", TRAININGS[0])
    assert run.wait() == 0, on_slurm.said
    assert "TIMEOUT" in on_slurm.said and resumed(on_slurm, 0)


@pytest.mark.slow
def test_a_node_that_dies(slurm, on_slurm, built_here):
    run = on_slurm.started("--", *TRAININGS)
    eventually(lambda: both_train(slurm, on_slurm))
    node = slurm.known(slurm.training(0))["NodeList"]
    slurm.kill_node(node)
    try:
        assert run.wait() == 0, on_slurm.said
    finally:
        slurm.start_what_is_down()
    same(on_slurm, built_here)
    assert resumed(on_slurm, 0)
