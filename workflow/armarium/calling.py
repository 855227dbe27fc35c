"""How this package calls Snakemake: for an MMAR's commands, ``armarium build`` and ``armarium status``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError
from .running import AGAIN, WAIT

SNAKEFILE = "Snakefile"


def workflow_home() -> Path:
    """The workflow: $ARMARIUM_HOME, else the checkout that this package lies in.

    Raises
    ------
    UserError
        If neither has a Snakefile.
    """
    given = os.environ.get("ARMARIUM_HOME")
    home = Path(given) if given else Path(__file__).resolve().parents[2]
    for snakefile in (home / SNAKEFILE, home / "workflow" / SNAKEFILE):
        if snakefile.is_file():
            return snakefile
    raise UserError(f"no {SNAKEFILE} in {home}; set ARMARIUM_HOME to the folder of the workflow")


def working_directory(archive: Path, here: Path) -> Path:
    """Where an archive is built from, so that locks and records are shared.

    ``here`` if the archive lies below it, else the nearest folder above that Snakemake has worked in,
    else the archive's parent.
    """
    if here in archive.parents:
        return here
    return next((p for p in archive.parents if (p / ".snakemake").is_dir()), archive.parent)


def snakemake_command(directory: Path, arguments: Sequence[str]) -> list[str]:
    """Snakemake with this workflow and its own profile, at work in ``directory``."""
    snakefile = workflow_home()
    command = [sys.executable, "-P", "-m", "snakemake", "--snakefile", str(snakefile), "--directory", str(directory)]
    return [*command, *_profile(snakefile), *arguments]


def _profile(snakefile: Path) -> list[str]:
    """The workflow's own profile, which Snakemake would look for in the working directory."""
    folders = [p / "profiles" / "default" for p in snakefile.parents[:2]]
    return next((["--workflow-profile", str(f)] for f in folders if f.is_dir()), [])


def build(arguments: Sequence[str]) -> int:
    """Run Snakemake in this folder until it need not wait for another one any more; its exit status."""
    command = snakemake_command(Path.cwd(), ["--cores", "all", *arguments])
    status = AGAIN
    while status == AGAIN:
        child = subprocess.Popen(command, env={**os.environ, WAIT: "1"})
        # Ctrl-C reaches the child by itself; what is sent to this process alone is passed on.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_, child=child: child.terminate())
        status = child.wait()
    return status
