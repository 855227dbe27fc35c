"""What of an archive is there, what is missing or out of date, and what rebuilding it would run."""

from __future__ import annotations

import csv
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import layout
from .calling import place_of, snakemake_command
from .errors import UserError
from .gpu_pool import Holder, holders
from .manifest import archive_files
from .run import SAVED, epochs_noted
from .running import Process, at_work

SHOWN = 15
"""Missing files that are named."""


@dataclass
class Status:
    """What :func:`status` found; ``str()`` of it is for people.

    Attributes
    ----------
    archive:
        Its folder.
    size:
        Bytes of its files.
    present, missing, outdated:
        Declared files, relative to the archive: there and current, not there, and there but to be made again.
    jobs:
        How many jobs of each rule would run, in the order of the plan.
    trains:
        The splits that would be trained, and the last epoch of each that an interrupted training saved.
    at_work:
        Snakemakes and jobs that are at work in the working directory now.
    gpus:
        Who holds which GPU of this machine, for whatever archive.
    """

    archive: str
    size: int
    present: list[str]
    missing: list[str]
    outdated: list[str]
    jobs: Counter[str]
    trains: dict[str, int]
    at_work: list[Process]
    gpus: list[Holder]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.archive}: {self._verdict()}, {self.size / 1e6:.1f} MB",
                f"  present   {len(self.present)} files",
                f"  missing   {len(self.missing)} files",
                *(f"    {name}" for name in self.missing[:SHOWN]),
                *([f"    and {len(self.missing) - SHOWN} more"] if len(self.missing) > SHOWN else []),
                f"  outdated  {len(self.outdated)} files",
                *self._plan(),
                *(f"  at work   {process}" for process in self.at_work),
                *(f"  in use    {holder}" for holder in self.gpus),
            ]
        )

    def _verdict(self) -> str:
        if not self.jobs:
            return "complete"
        return "incomplete" if self.missing else "complete, but out of date"

    def _plan(self) -> list[str]:
        if not self.jobs:
            return ["  a build would run nothing"]
        splits = [f"{k} (after epoch {done})" if done else k for k, done in self.trains.items()]
        training = f"training split {', '.join(splits)}" if splits else "no training"
        rules = ", ".join(f"{rule} {count}" for rule, count in self.jobs.items())
        return [f"  a build would run {self.jobs.total()} jobs, {training}", f"    {rules}"]


def status(archive: str, options: Sequence[str] = ()) -> Status:
    """Ask Snakemake, without changing anything.

    Parameters
    ----------
    archive:
        Its folder.
    options:
        Further options of Snakemake, such as the archive's ``--configfile``.

    Raises
    ------
    UserError
        If there is no such archive, or Snakemake cannot plan it.
    """
    directory, relative = place_of(archive)
    folder = directory / relative
    rows = [row for row in _summary(directory, relative, options) if row["output_file"].startswith(f"{relative}/")]
    pending = [row for row in rows if row["plan"] == "update pending"]
    files = {row["output_file"].removeprefix(f"{relative}/"): row for row in rows}
    missing = [name for name in files if not (folder / name).exists()]
    outdated = [name for name, row in files.items() if row in pending and name not in missing]
    jobs = dict.fromkeys((row["rule"], row["log-file(s)"]) for row in pending)
    return Status(
        archive,
        sum(os.path.getsize(folder / name) for name in archive_files(str(folder))),
        [name for name in files if name not in missing and name not in outdated],
        missing,
        outdated,
        Counter(rule for rule, _ in jobs),
        _epochs_behind(str(folder), [row["output_file"] for row in pending if row["rule"] == "train_split"]),
        at_work(directory),
        holders(),
    )


def _summary(directory: Path, relative: str, options: Sequence[str]) -> list[dict[str, str]]:
    """Snakemake's table of every file of the archive's plan."""
    arguments = ["--cores", "1", "--summary", *options, "--", layout.manifest(relative)]
    done = subprocess.run(snakemake_command(directory, arguments), capture_output=True, text=True)
    if done.returncode != 0:
        told = [line for line in done.stderr.splitlines() if not line.startswith("Using ")]
        raise UserError("\n".join(told).removeprefix("armarium: ") or "Snakemake failed without a word")
    return list(csv.DictReader(done.stdout.splitlines(), delimiter="\t"))


def _epochs_behind(folder: str, runs: list[str]) -> dict[str, int]:
    """The epoch after which each split to be trained would go on."""
    splits = sorted(int(Path(run).parent.name.partition("-")[2]) for run in runs)
    return {str(k): max(epochs_noted(layout.tmp_dir(folder, k), SAVED), default=0) for k in splits}
