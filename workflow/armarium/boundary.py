"""An archive keeps to itself: no links out of its folder, and nothing in it but files and folders."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from .errors import Problems

_SHOWN = 20


def check_boundary(archive: str) -> None:
    """Look at every entry of an archive, without following or opening any.

    What is written by name would else be written elsewhere, and what is read might be somebody's secret, or a
    pipe that never ends.

    Raises
    ------
    Problems
        For links that leave the archive or lead to themselves, pipes, devices, and names that are no text.
    """
    root = os.path.realpath(archive)
    problems: list[str] = []
    try:
        for entry in _entries(archive):
            if problem := _problem(entry, root):
                problems.append(f"{entry.path}: {problem}")
            if len(problems) == _SHOWN:
                break
    except OSError as error:
        problems.append(f"{error.filename}: cannot be read ({error.strerror}); change its permissions, or delete it")
    if problems:
        raise Problems(archive, problems)


def _entries(folder: str) -> Iterator[os.DirEntry]:
    pending = [folder] if os.path.isdir(folder) else []
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)


def _problem(entry: os.DirEntry, root: str) -> str | None:
    if not entry.name.isprintable():
        return "a name with characters that cannot be shown; rename it"
    if not entry.is_symlink():
        plain = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)
        return None if plain else "neither a file nor a folder; delete it"
    try:
        target = os.path.realpath(entry.path, strict=True)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads to itself; delete it"
        target = os.path.realpath(entry.path)
    if not is_inside(target, root):
        return f"a link that leaves the archive, to {target}; put a copy of the file in its place, or delete it"
    return None


def is_inside(target: str, root: str) -> bool:
    """Whether a path lies in a folder or is it; both without links."""
    return target == root or target.startswith(f"{root}{os.sep}")
