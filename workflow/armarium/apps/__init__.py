"""The programs behind an MMAR's commands: each asks Snakemake for files of the archive."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

SNAKEFILE = "Snakefile"


def _resolved(path: str) -> str:
    return str(Path(path).resolve())


def parser(program: str) -> argparse.ArgumentParser:
    """The arguments that Clara Train's programs share."""
    parsed = argparse.ArgumentParser(prog=f"armarium.apps.{program}")
    parsed.add_argument("-m", "--mmar_root", type=_resolved, required=True, help="the archive")
    parsed.add_argument("-c", "--config_file", required=True, help="configuration, relative to the archive")
    parsed.add_argument(
        "-e",
        "--environment_file",
        default="config/environment.json",
        help="environment, relative to the archive",
    )
    parsed.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="variables; print_conf=True shows the configuration",
    )
    parsed.add_argument("--cores", default="all", help="CPU cores for Snakemake")
    return parsed


def workflow_home() -> Path:
    """The workflow: $ARMARIUM_HOME, else the checkout that this package lies in.

    Raises
    ------
    UserError
        If neither has a Snakefile.
    """
    given = os.environ.get("ARMARIUM_HOME")
    home = Path(given) if given else Path(__file__).resolve().parents[3]
    for snakefile in (home / SNAKEFILE, home / "workflow" / SNAKEFILE):
        if snakefile.is_file():
            return snakefile
    raise UserError(f"no {SNAKEFILE} in {home}; set ARMARIUM_HOME to the folder of the workflow")


def working_directory(archive: Path, here: Path) -> Path:
    """Where the archive is built from, so that locks and records are shared.

    ``here`` if the archive lies below it, else the nearest folder above that Snakemake has worked in,
    else the archive's parent.
    """
    if here in archive.parents:
        return here
    return next((p for p in archive.parents if (p / ".snakemake").is_dir()), archive.parent)


def changes_of(pairs: Sequence[str]) -> dict[str, str]:
    """``--set`` as a dict; values stay text, the workflow types them."""
    wrong = [p for p in pairs if "=" not in p]
    if wrong:
        raise UserError(f"--set: found {wrong[0]!r}, wanted NAME=VALUE")
    return dict(p.split("=", 1) for p in pairs)


def make(arguments: argparse.Namespace, targets: Sequence[str]) -> None:
    """Replace this process by Snakemake, asked for ``targets`` (paths of the archive).

    ``DATA_ROOT`` of ``--set`` becomes the global key data_root; what else is set is kept by the archive.
    """
    archive = Path(arguments.mmar_root)
    directory = working_directory(archive, Path.cwd())
    changes = changes_of(arguments.set)
    if changes.pop("print_conf", "False").lower() == "true":
        print(Path(archive, arguments.config_file).read_text(), flush=True)
    config = [f"data_root={Path(changes.pop('DATA_ROOT')).resolve()}"] if "DATA_ROOT" in changes else []
    config += [f"set={json.dumps(changes)}"] if changes else []
    relative = archive.relative_to(directory).as_posix()
    paths = [f"{relative}/{t.removeprefix(f'{arguments.mmar_root}/')}" for t in targets]
    snakefile = workflow_home()
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(snakefile),
        "--directory",
        str(directory),
    ]
    command += ["--cores", arguments.cores, *_profile(snakefile)]
    command += ["--config", *config] if config else []
    os.execv(sys.executable, [*command, "--", *paths])


def _profile(snakefile: Path) -> list[str]:
    """The workflow's own profile, which Snakemake would look for in the working directory."""
    folders = [p / "profiles" / "default" for p in snakefile.parents[:2]]
    return next((["--workflow-profile", str(f)] for f in folders if f.is_dir()), [])


def main(program) -> None:
    """Run a program; a user's mistake is one message."""
    try:
        program()
    except UserError as error:
        sys.exit(f"error: {error}")
