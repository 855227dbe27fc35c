"""The programs behind an MMAR's commands: each asks Snakemake for files of the archive."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .. import layout, recipe
from ..calling import make_targets, working_directory
from ..config import typed
from ..errors import UserError
from ..faults import in_words
from ..files import read_json
from ..logs import configure_logging
from .variables import Variables


def _resolved(path: str) -> str:
    return str(Path(path).resolve())


def parser(program: str) -> argparse.ArgumentParser:
    """The arguments that Clara Train's programs share."""
    parsed = argparse.ArgumentParser(prog=f"armarium.apps.{program}", allow_abbrev=False)
    parsed.add_argument("-m", "--mmar_root", "--mmar", type=_resolved, required=True, help="the archive")
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
    parsed.add_argument("-l", "--log_config", help="configuration of logging, relative to the archive")
    parsed.add_argument("--cores", default="all", help="CPU cores for Snakemake")
    return parsed


@dataclass
class Call:
    """A command's call: the archive, the configuration that it names, and what it sets.

    Attributes
    ----------
    config:
        Entries of Snakemake's ``--config``.
    copies:
        Files of the archive, and where each is copied to when it is made.
    datalist:
        A list that the cases are to be divided by, if another than the archive's.
    """

    arguments: argparse.Namespace
    variables: Variables
    config_name: str
    config: dict[str, str] = field(default_factory=dict)
    copies: list[tuple[str, Path]] = field(default_factory=list)
    datalist: str | None = None

    @property
    def archive(self) -> str:
        return self.arguments.mmar_root

    def copy_to(self, folder: Path | None, files: Iterable[str]) -> None:
        """Have files copied to a folder, by their paths below their own one (``eval/``, ``models/``)."""
        if folder:
            inside = [Path(f).relative_to(self.archive) for f in files]
            self.copies += [(f"{self.archive}/{f}", folder.joinpath(*f.parts[1:])) for f in inside]


def call_of(arguments: argparse.Namespace) -> Call:
    """A call with what all commands take: where the data is, the device, and the configuration shown if that is asked for."""
    archive = arguments.mmar_root
    if not Path(layout.archive_json(archive)).is_file():
        raise UserError(f"-m {archive}: no archive: found no {layout.archive_json(archive)}; check the path")
    name = _config_name(archive, arguments.config_file)
    if Path(archive, arguments.environment_file).resolve() != Path(layout.environment_json(archive)).resolve():
        raise UserError(
            f"-e {arguments.environment_file}: wanted the archive's own {layout.environment_json('').lstrip('/')}"
        )
    if (
        arguments.log_config
        and Path(archive, arguments.log_config).resolve() != Path(layout.log_config(archive)).resolve()
    ):
        raise UserError(f"-l {arguments.log_config}: wanted the archive's own {layout.log_config('').lstrip('/')}")
    configure_logging(archive)
    variables = Variables(archive, arguments.set)
    call = Call(arguments, variables, name)
    if variables.flag("print_conf", False):
        print(json.dumps(_shown(archive, name, variables), indent=4), flush=True)
    if (root := variables.text("DATA_ROOT")) is not None:
        call.config["data_root"] = json.dumps(str(Path(root).resolve()), ensure_ascii=False)
    if not variables.flag("use_gpu", True):
        call.config["device"] = "cpu"
    if variables.flag("cudnn_benchmark", False) and variables.changes.get("deterministic", "true").lower() == "true":
        if variables.present["deterministic"]:
            raise UserError(
                "--set cudnn_benchmark=True: it chooses algorithms by time, so that no two runs give the same bytes; "
                "set deterministic=False, which switches it on"
            )
    variables.own("PROCESSING_TASK")
    return call


def _config_name(archive: str, given: str) -> str:
    """The configuration that an MMAR's command names, which must be one of the archive's own."""
    wanted = {layout.mmar_config(archive, name): name for name in layout.MMAR_CONFIGS}
    found = str(Path(archive, given).resolve())
    if found not in wanted:
        names = ", ".join(path.removeprefix(f"{archive}/") for path in wanted)
        raise UserError(f"-c {given}: wanted one of the archive's own configurations: {names}")
    return wanted[found]


def _shown(archive: str, name: str, variables: Variables) -> dict:
    """A configuration with every variable put in: the configuration's, environment.json's, those set."""
    conf = read_json(layout.mmar_config(archive, name))
    values = {**variables.present, **recipe.variables_of(conf), **variables.environment}
    values |= {n: typed(n, v, values[n]) for n, v in variables.changes.items() if n in values}
    sections = {k: v for k, v in conf.items() if isinstance(v, dict | list)}
    shown = {k: values[k] for k in (*recipe.variables_of(conf), *variables.environment)}
    return {**shown, **recipe.substitute(sections, values, name)}


def run(call: Call, targets: Sequence[str]) -> None:
    """Have Snakemake make ``targets`` (paths of the archive), then the copies asked for; ends the process.

    A complete archive stays complete: its manifest is asked for too where it does not name a target yet.
    """
    archive = Path(call.archive)
    directory = working_directory(archive, Path.cwd())
    relative = archive.relative_to(directory).as_posix()
    changes = call.variables.new() | ({"DATASET_JSON": call.datalist} if call.datalist else {})
    config = [f"{key}={value}" for key, value in call.config.items()]
    config += [f"set={json.dumps(changes)}"] if changes else []
    options = ["--cores", call.arguments.cores, *(["--config", *config] if config else [])]
    paths = [f"{relative}/{t.removeprefix(f'{archive}/')}" for t in with_manifest(call.archive, targets)]
    status = make_targets(directory, options, paths)
    if status == 0:
        for source, target in call.copies:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    sys.exit(status)


def with_manifest(archive: str, targets: Sequence[str]) -> list[str]:
    """``targets``, and the manifest of a complete archive that does not name them all."""
    from ..manifest import read_manifest

    manifest = layout.manifest(archive)
    if not Path(manifest).is_file() or manifest in targets:
        return list(targets)
    named = read_manifest(archive).files
    return [*targets, *([] if all(t.removeprefix(f"{archive}/") in named for t in targets) else [manifest])]


def main(program) -> None:
    """Run a program; a user's mistake, or the machine's, is one message."""
    try:
        program()
    except Exception as error:
        words = in_words(error)
        if words is None:
            raise
        sys.exit(f"error: {words}")
