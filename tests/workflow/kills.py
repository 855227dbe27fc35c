"""Killing a build: whom, with which signal, and at a random moment of which stage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .conftest import Project

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
VICTIMS = ("job", "snakemake", "group")
SECONDS = {
    "planning": 1.2,
    "check-recipe": 4.0,
    "train": 6.0,
    "epochs": 1.5,
    "test": 5.0,
    "export": 5.0,
    "evaluate-published": 5.0,
    "publish": 1.5,
}
"""How long each stage may last; a light one's moment is within ``LIGHT``. ``epochs`` is training's own part of it."""
LIGHT = 0.05
STAGES = (
    "planning",
    "write",
    "record-environment",
    "synthesize",
    "check-data",
    "split-data",
    "check-recipe",
    "train",
    "epochs",
    "select",
    "copy-logs",
    "test",
    "extract",
    "write-results",
    "export",
    "publish",
    "evaluate-published",
    "write-manifest",
)
"""In the order in which a build first comes to them."""


@dataclass
class Kill:
    stage: str
    victim: str
    signal: signal.Signals
    alone: bool
    """Whether no other job was at work at that moment."""

    def __str__(self) -> str:
        return f"{self.signal.name} to {self.victim} in {self.stage}"


def kill_once(project: Project, running: subprocess.Popen, stage: str, draw: random.Random) -> Kill | None:
    """Kill at a random moment of ``stage``, or of the first later one; None where the build ends before."""
    found = _until(project, running, STAGES.index(stage))
    if found is None:
        return None
    stage, job = found
    time.sleep(draw.random() * SECONDS.get(stage, LIGHT))
    victim = draw.choice(VICTIMS[1:] if stage == "planning" else VICTIMS)
    if victim == "job" and job not in _records(project):  # it had just ended
        victim = "snakemake"
    kill = Kill(stage, victim, draw.choice(SIGNALS), len(_records(project)) <= 2)
    send = os.killpg if victim == "group" else os.kill
    try:
        send(job if victim == "job" else running.pid, kill.signal)
    except ProcessLookupError:
        return None
    return kill


def went_on(running: subprocess.Popen) -> bool:
    """Whether a build is still at work some time after a kill."""
    try:
        running.wait(8)
    except subprocess.TimeoutExpired:
        return True
    return False


def kill_group(running: subprocess.Popen, stage: str) -> Kill:
    """Kill all of a build, at whatever it has come to after ``stage``."""
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    return Kill(f"what follows {stage}", "group", signal.SIGKILL, False)


def _until(project: Project, running: subprocess.Popen, wanted: int) -> tuple[str, int] | None:
    """The stage, and the process of its job, once one that is not before ``wanted`` is at work."""
    journal = project.archive / "training/split-0/tmp/journal.tsv"
    known = _size(journal)
    while running.poll() is None:
        records = _records(project)
        if wanted == STAGES.index("planning") and running.pid in records:
            return "planning", running.pid
        for number, command in records.items():
            words = command.split()
            stage = words[1] if words[0] == "armarium" else "planning"
            stage = "epochs" if stage == "train" and _size(journal) > known else stage
            if stage in STAGES and STAGES.index(stage) >= wanted:
                return stage, number
        time.sleep(0.002)
    return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _records(project: Project) -> dict[int, str]:
    """Command of every process that announced itself in the project's folder."""
    found = {}
    for path in Path(project.folder, ".snakemake/armarium/running").glob("*.json"):
        try:
            found[int(path.stem.rpartition("-")[2])] = json.loads(path.read_text())["command"]
        except (OSError, ValueError):  # just made, or just gone
            continue
    return found


def start(project: Project, *arguments: str) -> subprocess.Popen:
    """Snakemake in a group of its own; what it says is lost."""
    return subprocess.Popen(
        project.command(*arguments),
        cwd=project.folder,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
