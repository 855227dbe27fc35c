"""Clone an archive: copy it, edit a value, and leave the rest to planning, as after ``cp -r``. No torch."""

from __future__ import annotations

import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

from . import layout
from .boundary import check_boundary, is_inside
from .calling import data_root_from, place_of, working_directory
from .configure import data_root_of, edited_configuration
from .errors import UserError
from .files import read_json, replacing, write_json, write_text
from .origin import describe, write_origin
from .running import at_work


def clone(source: str, target: str, changes: dict[str, str]) -> None:
    """Copy an archive to a new folder, put ``changes`` of variables into the copy's configuration, and note the origin.

    Everything is copied, so that nothing that is written in one shows in the other. Planning then finds what depends on
    the changes, and nothing else, to be made again.

    Parameters
    ----------
    source:
        The archive's folder; nothing in it is written.
    target:
        The clone's, which must not exist.
    changes:
        Values of the configuration's variables; texts are typed by their schema.

    Raises
    ------
    UserError, Problems
        If there is no such archive, the target exists or lies in it, something is at work on it, or a change is none
        that its configuration takes.
    """
    directory, relative = place_of(source)
    target = os.path.normpath(target)
    _refuse_target(source, target)
    check_boundary(source)
    if busy := [p for p in at_work(directory) if any(is_inside(f, str(directory / relative)) for f in p.makes)]:
        raise UserError(f"{source}: being built ({busy[0]}); clone it when that has ended")
    edits, origin = edited_configuration(source, changes), describe(source)
    with replacing(target) as copy:
        shutil.copytree(source, copy, symlinks=True, ignore=_left_out(source))
        for path, text in edits.items():
            write_text(copy / os.path.relpath(path, source), text)
        _keep_data_root(str(copy), directory, working_directory(Path(target).resolve(), Path.cwd()))
        if origin and (edits or origin["name"] == os.path.basename(target)):  # else it is the same archive
            write_origin(str(copy), origin)


def _refuse_target(source: str, target: str) -> None:
    if os.path.lexists(target):
        raise UserError(f"{target}: exists already; name a folder for the clone that does not, or delete this one")
    if is_inside(os.path.realpath(target), os.path.realpath(source)):
        raise UserError(f"{target}: lies in {source}; an archive holds no other one")


def _left_out(source: str):
    """What is no part of an archive: resume states, last versions, and what is just being written."""
    resume = layout.tmp_dir("", "*")

    def ignore(folder: str, names: list[str]) -> list[str]:
        inside = os.path.relpath(folder, source)
        paths = {name: "/" + os.path.normpath(os.path.join(inside, name)) for name in names}
        return [name for name, path in paths.items() if name.startswith(".") or fnmatch(path, resume)]

    return ignore


def _keep_data_root(archive: str, before: Path, after: Path) -> None:
    """DATA_ROOT starts at the folder that an archive is built from: of another one, the way there is another."""
    root = data_root_of(archive)
    if before != after and not os.path.isabs(root):
        path = layout.environment_json(archive)
        write_json(path, {**read_json(path), "DATA_ROOT": data_root_from(after, before / root)})
