"""What a Snakemake that is gone left with Slurm: what waits there is taken back, what runs is waited for or, if it trains, adopted.

A Snakemake that is killed leaves its jobs in Slurm's queue, and its successor's Slurm plugin (2.8.0) knows none of them: it
would submit each again beside the first. So a Snakemake that submits says where, and removes that word when it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .errors import UserError
from .files import write_text
from .running import wait_for

SUBMITTED = Path(".snakemake/armarium/slurm")
"""Says from which folder jobs are submitted; relative to the working directory, as Snakemake's own records are."""

SECONDS = 30
"""How long Slurm may take to answer."""

LOOK = 2
"""Seconds between two looks at jobs that are waited for."""

PENDING = "PENDING"


@dataclass(frozen=True)
class Job:
    """A job in Slurm's queue.

    Attributes
    ----------
    number:
        Slurm's.
    state:
        Slurm's word for it, such as ``PENDING``.
    comment:
        The plugin's: rule and wildcards.
    """

    number: str
    state: str
    comment: str

    @property
    def trains(self) -> bool:
        return self.comment.startswith("rule_train_split_")

    def __str__(self) -> str:
        return f"Slurm job {self.number}, {self.state.lower()}: {self.comment}"


def training_comment(archive: str, split: str) -> str:
    """By which the plugin (utils.py, get_job_wildcards) calls a split's training."""
    return f"rule_train_split_wildcards_{archive}_{split}".replace("/", "_")


def keep_to_squeue(plugin: ModuleType) -> None:
    """Have the plugin ask squeue alone, where that is what its user wants.

    When slurmctld does not answer, 2.8.0 turns to sacct if there is one, for as long as it tries: without a database
    that never answers, all running jobs are forgotten, and Snakemake waits for ever.
    """
    there = plugin.is_query_tool_available
    plugin.is_query_tool_available = lambda tool: tool != "sacct" and there(tool)


def submits_from(folder: str) -> None:
    """Remember that jobs are submitted from this folder."""
    write_text(SUBMITTED, folder)


def submits_no_more() -> None:
    """Forget it: whoever submitted has ended, and its jobs with it."""
    with suppress(OSError):
        SUBMITTED.unlink()


def take_over() -> dict[str, str]:
    """Settle what a Snakemake that is gone left with Slurm; numbers of running trainings, by their comments.

    Raises
    ------
    UserError
        If Slurm does not answer.
    """
    if not SUBMITTED.is_file():
        return {}
    folder = SUBMITTED.read_text()
    _take_back([job for job in in_queue(folder) if job.state == PENDING])
    wait_for("left by a Snakemake that is gone", lambda: [job for job in _begun(folder) if not job.trains], LOOK)
    trainings = [job for job in _begun(folder) if job.trains]
    for job in trainings:
        print(f"armarium: goes on by itself, and is waited for: {job}", file=sys.stderr)
    submits_no_more()
    return {job.comment: job.number for job in trainings}


def dependency(number: str | None) -> str:
    """Slurm's option for a job that starts when another one has ended; none when that is no more in the queue."""
    if number is None or not any(job.number == number for job in in_queue()):
        return ""
    return f"--dependency=afterany:{number}"


def in_queue(folder: str | None = None) -> list[Job]:
    """This user's jobs, of which Slurm does not say that they have ended; of those submitted from one folder."""
    rows = (line.split("|", 3) for line in _asked("squeue", "--me", "--noheader", "--format=%i|%T|%k|%Z").splitlines())
    return [Job(*row[:3]) for row in rows if folder is None or row[3] == folder]


def _begun(folder: str) -> list[Job]:
    return [job for job in in_queue(folder) if job.state != PENDING]


def _take_back(jobs: Sequence[Job]) -> None:
    """Cancel jobs that did not begin yet; one that begins meanwhile is let be."""
    if jobs:
        names = "".join(f"\n  {job}" for job in jobs)
        print(f"armarium: taken back, left by a Snakemake that is gone:{names}", file=sys.stderr)
        _asked("scancel", f"--state={PENDING}", *(job.number for job in jobs))


def _asked(*command: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        raise UserError(
            f"{command[0]}: {said}; a Snakemake that is gone may have left jobs with Slurm: run this again when Slurm answers "
            f"here, or, if there are none any more, remove {SUBMITTED}"
        ) from None
    return asked.stdout
