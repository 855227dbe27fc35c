"""How this package calls Snakemake: for an MMAR's commands, ``armarium build``, ``rebuild`` and ``status``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import layout
from .errors import UserError
from .home import workflow_home
from .running import AGAIN, WAIT

SAME_DATA = "ARMARIUM_SAME_DATA"
"""Environment variable: refuse data that is not what the archive was made from, instead of making it from that."""


def working_directory(archive: Path, here: Path) -> Path:
    """Where an archive is built from, so that locks and records are shared.

    The nearest folder above it that Snakemake has worked in, else ``here`` if the archive lies below it, else the
    archive's parent.
    """
    default = here if here in archive.parents else archive.parent
    return next((p for p in archive.parents if (p / ".snakemake").is_dir()), default)


def place_of(archive: str) -> tuple[Path, str]:
    """The folder that an archive is built from, and the archive's path from there.

    Raises
    ------
    UserError
        If there is no such archive.
    """
    folder = Path(archive).resolve()
    if not Path(layout.archive_json(str(folder))).is_file():
        raise UserError(f"{archive}: no archive: found no {layout.archive_json(archive)}; check the path")
    directory = working_directory(folder, Path.cwd())
    return directory, folder.relative_to(directory).as_posix()


def snakemake_command(directory: Path, arguments: Sequence[str]) -> list[str]:
    """Snakemake with this workflow and its own profile, at work in ``directory``."""
    snakefile = workflow_home()
    command = [sys.executable, "-P", "-m", "snakemake", "--snakefile", str(snakefile), "--directory", str(directory)]
    return [*command, *_profile(snakefile), *arguments]


def _profile(snakefile: Path) -> list[str]:
    """The workflow's own profile, which Snakemake would look for in the working directory."""
    folders = [p / "profiles" / "default" for p in snakefile.parents[:2]]
    return next((["--workflow-profile", str(f)] for f in folders if f.is_dir()), [])


def make_targets(directory: Path, options: Sequence[str], targets: Sequence[str]) -> int:
    """Have ``targets`` made, which are named from ``directory``; Snakemake's exit status."""
    return _run(directory, [*options, "--", *targets])


def build(arguments: Sequence[str]) -> int:
    """Run Snakemake in this folder until it need not wait for another one any more; its exit status."""
    return _run(Path.cwd(), arguments)


def build_archive(archive: str, options: Sequence[str]) -> int:
    """Make whatever is missing of an archive, or not as its configuration says; Snakemake's exit status."""
    directory, relative = place_of(archive)
    return _run(directory, [*options, "--", layout.manifest(relative)])


def rebuild(archive: str, data_root: str | None, options: Sequence[str]) -> int:
    """Make whatever an archive lacks, up to all but its configuration; Snakemake's exit status.

    Parameters
    ----------
    archive:
        Its folder.
    data_root:
        Where the dataset is, if not where the archive says.
    options:
        Further options of Snakemake.

    Raises
    ------
    UserError
        If there is no such archive.
    """
    directory, relative = place_of(archive)
    if data_root is not None:
        options = _with_config(
            options, f"data_root={json.dumps(data_root_from(directory, data_root), ensure_ascii=False)}"
        )
    return _run(directory, [*options, "--", layout.manifest(relative)], {SAME_DATA: "1"})


def data_root_from(directory: Path, data_root: str | os.PathLike) -> str:
    """A folder as the archive keeps it: without this machine's paths where it lies below the working directory."""
    root = Path(data_root).resolve()
    return root.relative_to(directory).as_posix() if root.is_relative_to(directory) else str(root)


def _with_config(options: Sequence[str], entry: str) -> list[str]:
    """Options with one more entry of ``--config``, of which Snakemake heeds the last only."""
    for at, option in enumerate(options):
        if option in ("--config", "-C"):
            return [*options[: at + 1], entry, *options[at + 1 :]]
        if option.startswith("--config="):
            return [*options[:at], "--config", entry, option.partition("=")[2], *options[at + 1 :]]
    return [*options, "--config", entry]


def _run(directory: Path, arguments: Sequence[str], environment: dict[str, str] | None = None) -> int:
    command = snakemake_command(directory, ["--cores", "all", *arguments])
    status = AGAIN
    while status == AGAIN:
        child = subprocess.Popen(command, env={**os.environ, WAIT: "1", **(environment or {})})
        # Ctrl-C reaches the child by itself; what is sent to this process alone is passed on.
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_, child=child: child.terminate())
        status = child.wait()
    return status
