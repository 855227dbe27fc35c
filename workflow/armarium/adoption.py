"""Adopting an archive that Snakemake has no record of here: a clone, an unzipped or a moved one.

Its modification times are those of the copying, in random order, and Snakemake would remake much of it.
Files whose bytes equal the manifest's get times in the order of the steps that made them; an edited source
comes out newer, so that exactly what depends on it is made again. To be done once: on an archive that is
being worked on, reverting an edit would keep what the edit had made.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
from collections.abc import Iterable
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from itertools import groupby

from . import layout
from .errors import UserError
from .files import read_json, write_json
from .hashing import HashIndex
from .manifest import Manifest, read_manifest

PAUSE = 0.02
"""Seconds between two levels when only the clock can set times: more than a kernel's tick."""


def adopt(archive: str, hash_index: HashIndex) -> int:
    """Give the files that the manifest describes times in the order of the DAG.

    Files that it does not describe, and edited products, keep their times. An edited source that would come
    out older than the rest is given the present. If it leaves open what made a product, all get one time.

    Returns
    -------
    int
        How many files were adopted, the manifest not counted; 0 without a manifest.

    Raises
    ------
    UserError
        If the manifest is damaged or the times cannot be set.
    """
    if not os.path.exists(layout.manifest(archive)):
        return 0
    manifest = read_manifest(archive)
    present = [path for path in manifest.files if os.path.isfile(f"{archive}/{path}")]
    same = _unchanged(archive, present, manifest, hash_index)
    levels = topological_levels(manifest.actions)
    ordered = sorted(same, key=lambda path: (levels.get(path, 0), path))
    # Of a product whose sidecar was lost nobody knows what it was made from: then all get one time, since
    # Snakemake takes a product that is as old as its input for up to date.
    known = all(levels.get(path) or _is_source(archive, path) for path in same)
    rows = [list(row) for _, row in groupby(ordered, lambda path: known and levels.get(path, 0))]
    edited = [path for path in present if path not in same and _is_source(archive, path)]
    _set_times(archive, [*rows, [os.path.relpath(layout.manifest(archive), archive)]], edited)
    return len(same)


def _is_source(archive: str, path: str) -> bool:
    """Whether a file is one that no rule makes: configuration, a parent's weights, the record of runs."""
    path = f"{archive}/{path}"
    config, datalist = os.path.split(layout.datalist(archive, "*"))
    parent = os.path.join(os.path.dirname(layout.log_config(archive)), "parent")
    records = os.path.dirname(layout.sidecar(archive, "*"))
    if path.startswith(f"{config}/"):
        return not fnmatch(os.path.basename(path), datalist)
    return path.startswith((f"{parent}/", f"{records}/"))


def topological_levels(actions: Iterable[tuple[str, list[str], list[str]]]) -> dict[str, int]:
    """Each file's distance from the sources: 0 for a source, else one more than its step's latest input.

    Raises
    ------
    UserError
        If steps need each other in a circle.
    """
    needs: dict[str, set[str]] = {}
    for _, inputs, outputs in actions:
        for path in outputs:
            needs.setdefault(path, set()).update(i for i in inputs if i not in outputs)
    levels: dict[str, int] = {}
    try:
        for path in TopologicalSorter(needs).static_order():
            levels[path] = 1 + max((levels[i] for i in needs[path]), default=0) if path in needs else 0
    except CycleError as error:
        circle = ", ".join(error.args[1])
        raise UserError(f"the manifest says that these files were made from each other: {circle}") from None
    return levels


def _unchanged(archive: str, paths: list[str], manifest: Manifest, hash_index: HashIndex) -> set[str]:
    sized = [path for path in paths if os.path.getsize(f"{archive}/{path}") == manifest.files[path][1]]
    hashes = hash_index.many(f"{archive}/{path}" for path in sized)
    return {path for path in sized if hashes[f"{archive}/{path}"] == manifest.files[path][0]}


def _set_times(archive: str, rows: list[list[str]], edited: list[str]) -> None:
    """Give each row one second, the last a moment ago, and ``edited`` files at least the present."""
    rows, edited = [[f"{archive}/{p}" for p in row] for row in rows], [f"{archive}/{p}" for p in edited]
    last = int(time.time()) - 1
    try:
        try:
            for second, row in enumerate(rows, last - len(rows) + 1):
                for path in row:
                    os.utime(path, ns=(second * 10**9,) * 2)
        except PermissionError:  # only an owner may choose a time, but who may write may set the present
            last = _touch_in_order(rows)
        for path in edited:
            if os.stat(path).st_mtime <= last:
                os.utime(path)
    except OSError as error:
        raise UserError(
            f"{archive}: this copy's modification times are in no order, and those of {error.filename} "
            f"cannot be set ({error.strerror}); copy the archive to a folder where you may write"
        ) from None


def _touch_in_order(rows: list[list[str]]) -> float:
    for row in rows:
        for path in row:
            os.utime(path)
        time.sleep(PAUSE)
    return time.time()


# ---- once per archive and working directory


def needs_adoption(archive: str, state_dir: str | os.PathLike) -> bool:
    """Whether ``archive`` exists and is not the one that was last marked at its path.

    A folder that was moved, or deleted and copied anew, is another one although its path is the same.
    """
    if not os.path.isdir(archive):
        return False
    marker = _marker(archive, state_dir)
    return not os.path.exists(marker) or read_json(marker) != _identity(archive)


def mark_adopted(archive: str, state_dir: str | os.PathLike) -> None:
    """Remember that this archive, at this path, needs no adoption; also right for one that is made here."""
    write_json(_marker(archive, state_dir), _identity(archive))


def _marker(archive: str, state_dir: str | os.PathLike) -> str:
    key = hashlib.sha256(os.path.abspath(archive).encode()).hexdigest()[:32]
    return os.path.join(state_dir, "adopted", f"{key}.json")


def _identity(archive: str) -> dict[str, int]:
    """The folder's inode and birth time.

    Not its device number: that of one disk differs between the nodes of a cluster and between boots, and an
    archive that is being worked on must not be adopted again.
    """
    return {"inode": os.stat(archive).st_ino, "birth_ns": _birth_ns(archive)}


def _birth_ns(path: str) -> int:
    """When a folder was made, in nanoseconds since 1970; 0 where the file system does not keep it."""
    stat = os.stat(path)
    if hasattr(stat, "st_birthtime"):
        return int(stat.st_birthtime * 1e9)
    # Python 3.11 does not show Linux's statx(2). struct statx: stx_mask at byte 0, stx_btime (s64 seconds,
    # u32 nanoseconds) at byte 80; STATX_BTIME is 0x800, AT_FDCWD is -100.
    buffer = ctypes.create_string_buffer(256)
    statx = getattr(ctypes.CDLL(None), "statx", None)
    if statx is None or statx(-100, os.fsencode(path), 0, 0x800, buffer) != 0:
        return 0
    mask = ctypes.c_uint32.from_buffer(buffer, 0).value
    seconds = ctypes.c_int64.from_buffer(buffer, 80).value
    return seconds * 10**9 + ctypes.c_uint32.from_buffer(buffer, 88).value if mask & 0x800 else 0
