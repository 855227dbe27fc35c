"""Which files the ``env/`` of an archive has, and where each comes from.

Training freezes them in its run.zip; what is lost later comes from there, whatever it is made again in. Without a
run they describe the environments of this call: that of this process, where the rules have environments of their
own also the others, and the lock files by which a project pins them.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from . import layout
from .environment import MEMBERS, frozen_environment, snapshot, without_passwords
from .errors import UserError
from .files import read_text, write_bytes
from .home import ENVS
from .rule_environment import conda_prefix
from .zips import opened

LOCK = "|".join(
    [
        *map(re.escape, layout.LOCK_FILES),
        rf"(?:{'|'.join((layout.TRAINING_ENVIRONMENT, *layout.OTHER_ENVIRONMENTS))})\.[a-z0-9-]+\.pin\.txt",
    ]
)
"""What the copy of a lock file is called, as a regular expression."""

_OF_OTHERS = [
    f"{of}/{name}"
    for of in layout.OTHER_ENVIRONMENTS
    if of != layout.EXPORT_ENVIRONMENT  # what may be asked for later is no part of a training
    for name in (*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT)
]


def is_recorded_name(name: str) -> bool:
    """Whether a file of this name below ``env/`` is one that a training freezes."""
    own = (*layout.ENVIRONMENT, *layout.CONDA_ENVIRONMENT)
    return name in own or name in _OF_OTHERS or re.fullmatch(LOCK, name) is not None


def frozen_names(run_zip: str | os.PathLike) -> list[str]:
    """The files that a run.zip has frozen and rules can write; none where there is no whole one."""
    try:
        with opened(run_zip) as members:
            names = [n.removeprefix(MEMBERS) for n in members.namelist() if n.startswith(MEMBERS)]
    except (FileNotFoundError, UserError):
        return []
    return sorted(filter(is_recorded_name, names))


def names_here(rules_in_conda: bool) -> list[str]:
    """The files that an archive gets which is trained by this call.

    Parameters
    ----------
    rules_in_conda:
        Whether rules run in the environments of envs/ instead of this process's.
    """
    in_conda = rules_in_conda or conda_prefix() is not None
    own = [*layout.ENVIRONMENT, *(layout.CONDA_ENVIRONMENT if in_conda else ())]
    return [*own, *(_OF_OTHERS if rules_in_conda else ()), *(_pins() if rules_in_conda else _project_locks())]


# ---- lock files


def _pins() -> dict[str, Path]:
    """The pins beside the rules' environments, which Snakemake makes those from."""
    return {path.name: path for path in sorted(ENVS.glob("*.pin.txt")) if re.fullmatch(LOCK, path.name)}


def _project_locks() -> dict[str, Path]:
    """The lock files of the project: of the first folder that has one.

    Looked at are the folders that this environment lies in (``PROJECT/.venv``, ``PROJECT/.pixi/envs/NAME``), the
    working directory and the checkout of the workflow.
    """
    for folder in (*Path(sys.prefix).parents[:3], Path.cwd(), ENVS.parent):
        if found := {name: folder / name for name in layout.LOCK_FILES if (folder / name).is_file()}:
            return found
    return {}


def _lock(name: str) -> bytes:
    path = {**_project_locks(), **_pins()}.get(name)
    if path is None:
        raise UserError(f"{name}: no such lock file in the project any more; put it back, or run this again without it")
    return without_passwords(read_text(path)).encode()


# ---- writing


def environment_here(names: list[str]) -> dict[str, bytes]:
    """What files are to hold that no run has frozen.

    Raises
    ------
    UserError
        If one is of a conda environment, and this process does not run in one, or of a lock file that is not there.
    """
    locks = [name for name in names if re.fullmatch(LOCK, name)]
    found = {name: _lock(name) for name in locks}
    for of in {name.rpartition("/")[0] for name in names if name not in locks}:
        found |= snapshot(of)
    if lacking := [name for name in names if name not in found]:
        raise UserError(f"env/{lacking[0]}: only where the rules run in conda is there any; add --sdm conda")
    return found


def write_environment(archive: str, names: list[str], run_zip: str | os.PathLike) -> None:
    """Write files of ``env/``: those frozen in ``run_zip`` where it has them, else this process's own."""
    frozen = frozen_environment(run_zip) or {}
    known = environment_here([name for name in names if name not in frozen]) | frozen
    for name in names:
        write_bytes(layout.environment_file(archive, name), known[name])


def environment_of_training(archive: str) -> dict[str, bytes]:
    """What a training freezes: its own environment, and of the archive the files on others, and lock files."""
    present = [n for n in recorded_names(archive) if n in _OF_OTHERS or re.fullmatch(LOCK, n)]
    return snapshot() | {name: Path(layout.environment_file(archive, name)).read_bytes() for name in present}


def recorded_names(archive: str) -> list[str]:
    """The files that lie in ``env/`` and that a training freezes."""
    folder = Path(layout.environment_file(archive, ""))
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    return list(filter(is_recorded_name, names))


def differing_names(archive: str, environment: dict[str, bytes]) -> list[str]:
    """The files of ``environment`` that ``env/`` lacks, or has with other bytes."""
    paths = {name: Path(layout.environment_file(archive, name)) for name in environment}
    return [name for name, path in paths.items() if not path.is_file() or path.read_bytes() != environment[name]]


def outdated_names(archive: str, environment: dict[str, bytes]) -> list[str]:
    """The files that ``env/`` has, with other bytes than ``environment``."""
    present = set(recorded_names(archive))
    return [name for name in differing_names(archive, environment) if name in present]


def remove_outdated(archive: str, run_zip: str | os.PathLike) -> None:
    """Remove what is of an earlier training's environment: files that the present run has not frozen."""
    frozen = frozen_names(run_zip)
    for name in recorded_names(archive) if frozen else ():
        if name not in frozen:
            Path(layout.environment_file(archive, name)).unlink()
