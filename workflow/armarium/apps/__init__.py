"""The programs behind an MMAR's commands: each asks Snakemake for files of the archive."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import layout
from ..calling import snakemake_command, working_directory
from ..errors import UserError
from ..files import read_text


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


def changes_of(pairs: Sequence[str]) -> dict[str, str]:
    """``--set`` as a dict; values stay text, the workflow types them."""
    wrong = [p for p in pairs if "=" not in p]
    if wrong:
        raise UserError(f"--set: found {wrong[0]!r}, wanted NAME=VALUE")
    return dict(p.split("=", 1) for p in pairs)


def _config_file(archive: Path, given: str) -> str:
    """The configuration that an MMAR's command names, which must be one of the archive's own."""
    wanted = [layout.mmar_config(str(archive), name) for name in layout.MMAR_CONFIGS]
    if str(Path(archive, given).resolve()) not in wanted:
        names = ", ".join(path.removeprefix(f"{archive}/") for path in wanted)
        raise UserError(f"-c {given}: wanted one of the archive's own configurations: {names}")
    return str(Path(archive, given).resolve())


def make(arguments: argparse.Namespace, targets: Sequence[str]) -> None:
    """Replace this process by Snakemake, asked for ``targets`` (paths of the archive).

    ``DATA_ROOT`` of ``--set`` becomes the global key data_root; what else is set is kept by the archive.
    """
    archive = Path(arguments.mmar_root)
    directory = working_directory(archive, Path.cwd())
    changes = changes_of(arguments.set)
    shown = changes.pop("print_conf", "False").lower() == "true"
    text = read_text(_config_file(archive, arguments.config_file))
    if shown:
        print(text, flush=True)
    config = [f"data_root={Path(changes.pop('DATA_ROOT')).resolve()}"] if "DATA_ROOT" in changes else []
    config += [f"set={json.dumps(changes)}"] if changes else []
    relative = archive.relative_to(directory).as_posix()
    paths = [f"{relative}/{t.removeprefix(f'{arguments.mmar_root}/')}" for t in targets]
    command = snakemake_command(directory, ["--cores", arguments.cores])
    command += ["--config", *config] if config else []
    os.execv(sys.executable, [*command, "--", *paths])


def main(program) -> None:
    """Run a program; a user's mistake is one message."""
    try:
        program()
    except UserError as error:
        sys.exit(f"error: {error}")
