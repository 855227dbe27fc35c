"""A copy of the project with a configuration of its own, in which Snakemake builds as it does for a user."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from .measuring import Usage, whole_process

REPOSITORY = Path(__file__).resolve().parents[1]
CORES = 2


class Project:
    """A folder to build in.

    Parameters
    ----------
    folder:
        Where; it is made.
    config:
        The file of config/ that says what is built.
    """

    def __init__(self, folder: str | os.PathLike, config: str = "config.yaml"):
        self.folder, self.config = Path(folder), f"config/{config}"
        for name in ("workflow", "profiles", "envs", "config"):
            shutil.copytree(REPOSITORY / name, self.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "Snakefile", self.folder)

    def snakemake(self, *arguments: str) -> Usage:
        """A call of Snakemake, which must succeed."""
        command = [sys.executable, "-m", "snakemake", "--cores", str(CORES), "--configfile", self.config, *arguments]
        return whole_process(command, str(self.folder))

    def step(self, command: list[str]) -> Usage:
        """A job's process alone, as the rules start it."""
        return whole_process([sys.executable, *command[1:]], str(self.folder), {**os.environ, **self._environment()})

    def _environment(self) -> Mapping[str, str]:
        paths = {"PYTHONPATH": str(self.folder / "workflow"), "PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0"}
        return paths | {"OMP_WAIT_POLICY": "PASSIVE"}


def finished(output: str) -> list[str]:
    """The rules of the jobs that a call has run."""
    return re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)$", output, re.M)
