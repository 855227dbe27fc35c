"""Several Snakemakes at once: same results as one after the other, and nobody undoes another's work."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from armarium.run import SAVED, epochs_noted

from .conftest import Project, micro_config, zip_hashes

EPOCHS = 30
RUNS = [f"archives/micro/training/split-{k}/run.zip" for k in (0, 1)]


def two_archives() -> dict:
    """Two archives of two splits each on the same data; the second has another seed."""
    config = micro_config()
    section = config["archives"]["micro"]
    section["splits"] = {"method": "kfold", "n_splits": 2}
    section["set"]["epochs"] = EPOCHS
    config["archives"]["other"] = {**section, "set": {"epochs": EPOCHS, "seed": 7}}
    return config


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory) -> Project:
    """Both splits of the first archive and one of the other's, made one after the other."""
    project = Project.fresh(tmp_path_factory.mktemp("one-by-one"))
    project.configure(two_archives())
    for target in (*RUNS, RUNS[0].replace("micro", "other")):
        project.snakemake(target)
    return project


@pytest.fixture
def project(one_by_one, tmp_path) -> Project:
    """A copy of it without the runs."""
    target = tmp_path / "project"
    subprocess.run(["cp", "-a", one_by_one.folder, target], check=True)
    copied = Project(target)
    for run in copied.folder.glob("archives/*/training/split-*/run.zip"):
        run.unlink()
    for folder in copied.folder.glob("archives/*/training/split-*/tmp"):
        subprocess.run(["rm", "-r", folder], check=True)
    return copied


def start(project: Project, *arguments: str, command: list[str] | None = None) -> subprocess.Popen:
    return subprocess.Popen(
        command or project.command(*arguments),
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def armarium(project: Project, *arguments: str) -> list[str]:
    return [sys.executable, "-c", "import armarium.cli; armarium.cli.main()", *arguments]


def until_training(project: Project) -> int:
    """Wait until the first split's training has saved an epoch; its process."""
    folder = project.archive / "training/split-0/tmp"
    for _ in range(6000):
        if epochs_noted(folder, SAVED):
            return int((folder / "lock").read_text().split()[1])
        time.sleep(0.05)
    raise AssertionError("no training started")


@contextmanager
def held_still(process: int) -> Iterator[None]:
    """A process that meanwhile neither goes on nor ends, however slow the machine is."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def told_by(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.mark.slow
def test_splits_in_parallel_processes_and_archives_on_one_cache_give_the_same_bytes(project, one_by_one):
    targets = [*RUNS, RUNS[0].replace("micro", "other")]
    for process in [start(project, target) for target in targets]:
        told_by(process)
    for target in targets:
        assert zip_hashes(project.folder / target) == zip_hashes(one_by_one.folder / target)


def with_package(project: Project, monkeypatch) -> None:
    """Let commands of the package find this copy of it."""
    variables = {"ARMARIUM_HOME": str(project.folder), "PYTHONPATH": str(project.folder / "workflow")}
    monkeypatch.setattr(Project, "environment", {**project.environment, **variables})


def prolong(project: Project, epochs: int) -> None:
    config = two_archives()
    config["archives"]["micro"]["set"]["epochs"] = epochs
    project.configure(config)


def refused(project: Project, *arguments: str) -> str:
    began = time.monotonic()
    done = project.snakemake(*arguments, ok=False)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and time.monotonic() - began < 60 and "Traceback" not in said, said
    return said


@pytest.mark.slow
def test_while_one_trains_another_may_do_what_it_does_not_and_build_waits(project, monkeypatch):
    with_package(project, monkeypatch)
    prolong(project, 100)
    weights = "archives/micro/training/split-0/models/final/model.pt"
    first = start(project, RUNS[0])
    with held_still(until_training(project)):
        said = refused(project, weights)
        assert re.search(
            rf"archives/micro/\S+: another Snakemake is at work .*process {first.pid} .*split-0/run.zip", said
        )
        assert "armarium build" in said
        project.snakemake("archives/micro/resources/log.config")
        assert "another Snakemake is at work" in refused(project, weights), "although another one ended meanwhile"

        effective = project.archive / "config/effective/train.json"
        before = effective.read_bytes()
        assert "would change the configuration" in refused(project, "--config", "set={epochs: 3}", "--", RUNS[1])
        assert effective.read_bytes() == before

        at_work = told_by(start(project, command=armarium(project, "status", "archives/micro")))
        assert f"at work   process {first.pid}" in at_work

        waiting = start(project, command=armarium(project, "build", weights))
        assert any("waiting for what is at work on archives/micro/" in line for line in waiting.stdout)
    told_by(first)
    said = waiting.stdout.read()
    assert waiting.wait() == 0 and (project.folder / weights).is_file() and "rule train_split" not in said


@pytest.mark.slow
def test_unlock_makes_sure_that_no_job_is_alive_and_nothing_else_needs_it(project, monkeypatch):
    with_package(project, monkeypatch)
    prolong(project, 100)
    first = start(project, RUNS[0])
    trainer = until_training(project)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    lock = project.folder / ".snakemake/locks/0.output.lock"  # as without the workflow's own profile
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(f"{RUNS[0]}\n")
    with held_still(trainer):
        told = subprocess.run(
            armarium(project, "unlock"), cwd=project.folder, env=project.environment, capture_output=True, text=True
        )
    assert told.returncode == 1 and "armarium train archives/micro 0" in told.stderr and lock.exists()
    assert "unlocked" in told_by(start(project, command=armarium(project, "unlock", "--wait")))
    assert not lock.exists()
    assert "taking the finished run" in told_by(start(project, RUNS[0]))


@pytest.mark.slow
def test_a_killed_group_leaves_no_lock_and_status_says_how_far_it_came(project, monkeypatch):
    with_package(project, monkeypatch)
    prolong(project, 100)
    first = start(project, RUNS[0])
    until_training(project)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    said = told_by(start(project, command=armarium(project, "status", "archives/micro")))
    assert re.search(r"incomplete.*training split 0 \(after epoch \d+\), 1", said, re.S) and "at work" not in said
    assert "resuming after epoch" in told_by(start(project, RUNS[0]))
