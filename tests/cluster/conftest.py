"""A real Slurm of two nodes on this machine, each with a stand-in for a GPU that Slurm really lends to one job at a time.

``SLURM_TOOLS`` names the folder with ``slurm-up.sh`` and ``slurm-down.sh``; else ``../shared/cluster`` beside the project is
looked at. They need root, and Debian's packages of Slurm.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from ..workflow.conftest import Project, micro_config

REPO = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("SLURM_TOOLS", REPO.parent / "shared/cluster"))
STATE = Path("/run/slurm-sim")
SETTINGS = {"SLURM_SIM_NODES": "2", "SLURM_SIM_GPUS": "1", "SLURM_SIM_CPUS": "8"}
TRAININGS = tuple(f"archives/micro/training/split-{k}/run.zip" for k in (0, 1))


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, **SETTINGS})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def eventually(what: Callable[[], object], seconds: float = 120, why: str = "") -> object:
    """The first true value that is returned."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"not within {seconds} s: {why or what}"
        time.sleep(0.1)
    return found


class Slurm:
    """The cluster, and what befalls one."""

    def queue(self) -> dict[str, tuple[str, str]]:
        """State and comment of each job by its number."""
        rows = (line.split("|", 2) for line in run("squeue", "--noheader", "--format=%i|%T|%k").splitlines())
        return {number: (state, comment) for number, state, comment in rows}

    def training(self, split: int) -> str | None:
        """The number of the job that trains a split, once it runs."""
        wanted = ("RUNNING", f"rule_train_split_wildcards_archives_micro_{split}")
        return next((number for number, job in self.queue().items() if job == wanted), None)

    def known(self, number: str) -> dict[str, str]:
        """All that Slurm says of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", run("scontrol", "show", "job", "--details", number)))

    def hold_a_gpu(self) -> str:
        """A job of somebody else's, which holds a GPU for as long as it is let."""
        return run(
            "sbatch", "--parsable", "--partition=gpu", "--gpus=1", "--output=/dev/null", "--wrap", "sleep 3600"
        ).strip()

    def cancel(self, *jobs: str) -> None:
        run("scancel", *jobs)

    def kill_controller(self) -> None:
        """End slurmctld without a word."""
        _kill(STATE / "pid/slurmctld.pid")

    def kill_node(self, node: str) -> None:
        """End a node's slurmd and all that runs on it without a word."""
        _kill(STATE / f"pid/slurmd.{node}.pid")
        for number in [n for n, (state, _) in self.queue().items() if state == "RUNNING"]:
            if self.known(number)["NodeList"] == node:
                _kill_what_has(f"SLURM_JOB_ID={number}")

    def start_what_is_down(self) -> None:
        run("bash", TOOLS / "slurm-up.sh")


def _kill(pid_file: Path) -> None:
    os.kill(int(pid_file.read_text()), signal.SIGKILL)


def _kill_what_has(variable: str) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"\0{variable}\0".encode() in b"\0" + (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    if not (TOOLS / "slurm-up.sh").is_file():
        pytest.skip(f"no tools to start a Slurm in {TOOLS}; SLURM_TOOLS says where they are")
    if os.geteuid() != 0:
        pytest.skip("starting a Slurm needs root")
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("no snakemake-executor-plugin-slurm; pip install '.[test]' has it")
    if not Path("/etc/debian_version").is_file():
        pytest.skip("the Slurm of these tests is Debian's")
    run("bash", TOOLS / "slurm-up.sh")
    yield Slurm()
    run("bash", TOOLS / "slurm-down.sh")


class OnSlurm(Project):
    """A project whose calls send their jobs to Slurm."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.calls: list[subprocess.Popen] = []

    def command(self, *args: str) -> list[str]:
        quick = ["--slurm-init-seconds-before-status-checks", "1", "--max-status-checks-per-second", "1"]
        patience = ["--slurm-status-attempts", "120", "--latency-wait", "10"]
        return [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", *quick, *patience, *args]

    def override(self, rule: str, **resources: int) -> None:
        """Say in the profile what a rule gets, as a user does."""
        path = self.folder / "profiles/slurm/config.yaml"
        profile = yaml.safe_load(path.read_text())
        profile["set-resources"][rule] |= resources
        path.write_text(yaml.safe_dump(profile))

    def started(self, *args: str) -> subprocess.Popen:
        """A call that goes on while the test does; what it says is in snakemake.log."""
        with open(self.folder / "snakemake.log", "ab") as log:
            call = subprocess.Popen(self.command(*args), cwd=self.folder, env=self.environment, stdout=log, stderr=log)
        self.calls.append(call)
        return call

    @property
    def said(self) -> str:
        return (self.folder / "snakemake.log").read_text()

    def trained(self, split: int) -> int:
        """The last epoch that a split's training has told of."""
        log = self.folder / f"logs/archives/micro/train_split_{split}.log"
        epochs = re.findall(r"epoch (\d+)/", log.read_text()) if log.is_file() else []
        return int(epochs[-1]) if epochs else 0


def two_splits(epochs: int = 4) -> dict:
    config = micro_config()
    config["archives"]["micro"]["splits"] = {"method": "kfold", "n_splits": 2}
    config["archives"]["micro"]["set"]["epochs"] = epochs
    return config


LONG = 200
"""Epochs of a training that lasts while something happens to it."""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Project:
    """Two splits that only have to be trained, for long; prepared on this machine."""
    project = Project.fresh(tmp_path_factory.mktemp("prepared") / "project")
    project.configure(two_splits(LONG))
    project.snakemake(
        "--until", "check_recipe", "write_side_data", "write_training_data", "write_datalist", "--", *TRAININGS
    )
    return project


@pytest.fixture(scope="session")
def built_here(prepared, tmp_path_factory) -> Project:
    """The same, built on this machine and never interrupted."""
    project = Project.copy_of(prepared, tmp_path_factory.mktemp("here") / "project")
    project.snakemake()
    return project


@pytest.fixture
def on_slurm(slurm, prepared, tmp_path) -> Iterator[OnSlurm]:
    project = OnSlurm.copy_of(prepared, tmp_path / "project")
    yield project
    for call in project.calls:
        call.kill()  # of a test that failed
