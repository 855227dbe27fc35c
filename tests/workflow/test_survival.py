"""Kills: a resumed training ends with the bytes of an undisturbed one; an orphan's work is taken."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import Project, zip_hashes

TARGET = "archives/micro/training/split-0/run.zip"
LONG = "set={epochs: 60}"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Project, dict[str, str]]:
    project = Project.fresh(tmp_path_factory.mktemp("undisturbed"))
    project.snakemake("--config", LONG, "--", TARGET)
    return project, zip_hashes(project.folder / TARGET)


def start(project: Project) -> subprocess.Popen:
    return subprocess.Popen(
        project.command("--config", LONG, "--", TARGET),
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def trainer_of(project: Project) -> int:
    """The process that holds the split's lock, once it has saved an epoch."""
    lock, state = (project.archive / "training/split-0/tmp" / n for n in ("lock", "state.pt"))
    for _ in range(600):
        if state.is_file():
            return int(lock.read_text().split()[1])
        time.sleep(0.1)
    raise AssertionError("no training started")


def ended(process: int) -> bool:
    """Whether a process is gone within ten seconds; one that nobody has waited for counts as gone."""
    stat = Path(f"/proc/{process}/stat")
    for _ in range(100):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_killed_trainer_resumes_to_the_same_bytes(undisturbed, tmp_path, signum):
    project = Project.fresh(tmp_path / "project")
    running = start(project)
    os.kill(trainer_of(project), signum)
    assert running.wait(60) != 0
    assert not (project.folder / TARGET).exists(), "nothing half-made"
    done = project.snakemake("--", TARGET)
    assert "resuming after epoch" in done.stderr + done.stdout
    assert zip_hashes(project.folder / TARGET) == undisturbed[1]


def test_what_an_orphaned_trainer_finishes_is_taken_not_trained_again(undisturbed, tmp_path):
    project = Project.fresh(tmp_path / "project")
    running = start(project)
    trainer = trainer_of(project)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    project.snakemake("--unlock")
    done = project.snakemake("--", TARGET)
    assert "taking the finished run" in done.stderr + done.stdout
    assert ended(trainer), "no trainer is left"
    assert zip_hashes(project.folder / TARGET) == undisturbed[1]
