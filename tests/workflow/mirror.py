"""A folder made equal to another one again, by sizes and times."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

Facts = tuple[int, int, int]


def mirror(source: Path, target: Path) -> None:
    """Make ``target`` what ``source`` is, writing only what differs; folders keep their inodes where they can."""
    wanted, found = _tree(source), _tree(target)
    for name in sorted(found.keys() - wanted.keys(), reverse=True):
        path = target / name
        path.rmdir() if found[name] is None else path.unlink()
    for name in sorted(name for name, facts in wanted.items() if facts is None and name not in found):
        (target / name).mkdir()
    for name, facts in wanted.items():
        if facts is not None and found.get(name) != facts:
            shutil.copy2(source / name, target / name, follow_symlinks=False)


def _tree(folder: Path) -> dict[str, Facts | None]:
    """Everything below a folder: size, time and mode of a file, None of a folder."""
    tree: dict[str, Facts | None] = {}
    for root, folders, files in os.walk(folder):
        inside = os.path.relpath(root, folder)
        tree.update((os.path.normpath(f"{inside}/{name}"), None) for name in folders)
        for name in files:
            stat = os.lstat(f"{root}/{name}")
            tree[os.path.normpath(f"{inside}/{name}")] = stat.st_size, stat.st_mtime_ns, stat.st_mode
    return tree
