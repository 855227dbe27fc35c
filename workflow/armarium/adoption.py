"""Adopting an archive that Snakemake has no record of here: a clone, an unzipped or a moved one.

Its modification times are those of the copying, in random order, and Snakemake would remake much of it.
Files whose bytes equal the manifest's get times in the order of the steps that made them. What differs from the
manifest is no less visible than before: an edited source (or log.config) comes out newer than all, a changed product and what was
made from it older than all, unless a job of this working directory made it, which Snakemake has a record of.
So adopting once more, when times changed again, hides nothing either.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import groupby

from . import layout
from .errors import UserError
from .files import read_json, write_json
from .hashing import HashIndex
from .manifest import Manifest, archive_files, read_manifest
from .origin import describe

PAUSE = 0.02
"""Seconds between two levels when only the clock can set times: more than a kernel's tick."""

SKEW = 1
"""Seconds that a file server's clock may be ahead."""


def adopt(archive: str, hash_index: HashIndex) -> list[str]:
    """Give the files that the manifest describes times in the order of the DAG.

    Files that it does not describe keep their times. An edited source is given the present. Changed products,
    and those that the manifest says were made from them, come before everything, so that they are made again.

    Returns
    -------
    list of str
        The products whose bytes are not those of the manifest; none without a manifest.

    Raises
    ------
    UserError
        If the manifest is damaged or the times cannot be set.
    """
    if not os.path.exists(layout.manifest(archive)):
        return []
    try:
        manifest = read_manifest(archive)
    except UserError as error:
        raise UserError(f"{error}; where there is no copy, delete it: at most light steps are run again") from None
    present = [path for path in manifest.files if os.path.isfile(f"{archive}/{path}")]
    found = _Found(archive, manifest, present, _unchanged(archive, present, manifest, hash_index))
    if found.changed or found.edited or not _in_order(found):
        _set_times(archive, [*found.rows(), [os.path.relpath(layout.manifest(archive), archive)]], found.edited)
    return found.changed


@dataclass
class _Found:
    """An archive's files as they lie there, beside what the manifest says of them."""

    archive: str
    manifest: Manifest
    present: list[str]
    same: set[str]

    @cached_property
    def changed(self) -> list[str]:
        """Products with other bytes than the manifest's."""
        return [p for p in self.present if p not in self.same and not is_source_or_own(self.archive, p)]

    @cached_property
    def edited(self) -> list[str]:
        """Sources with other bytes than the manifest's."""
        return [p for p in self.present if p not in self.same and is_source_or_own(self.archive, p)]

    @cached_property
    def levels(self) -> dict[str, int]:
        return topological_levels(self.manifest.actions)

    @cached_property
    def unknown(self) -> set[str]:
        """Products that no action of the manifest made: a sidecar was lost."""
        return {p for p in self.present if not self.levels.get(p) and not is_source_or_own(self.archive, p)}

    def rows(self) -> list[list[str]]:
        """Files by the order of their times, those of a row together."""
        if not self.changed and self.unknown:
            # Nobody knows what some product was made from: then all get one time, since Snakemake takes a
            # product that is as old as its input for up to date.
            return [sorted(self.same)]
        again = self._made_from({*self.changed, *self.unknown}) if self.changed else set()
        deepest = 1 + max(self.levels.values(), default=0)

        def place(path: str) -> int:
            level = deepest if path in self.unknown else self.levels.get(path, 0)
            return -1 - level if path in again else level

        ordered = sorted(self.same | again, key=lambda path: (place(path), path))
        return [list(row) for _, row in groupby(ordered, place)]

    def _made_from(self, paths: set[str]) -> set[str]:
        """``paths`` and what was made from them, by the manifest; but not what says itself whether it is current."""
        found = set(paths)
        here = {p for p in self.present if not is_fingerprinted(self.archive, p)}
        level = {name: max((self.levels[o] for o in outputs), default=0) for name, _, outputs in self.manifest.actions}
        for _, inputs, outputs in sorted(self.manifest.actions, key=lambda action: level[action[0]]):
            if found.intersection(inputs):
                found |= here.intersection(outputs)
        return found


def is_source(archive: str, path: str) -> bool:
    """Whether a file is one that no rule makes: configuration, a parent's weights, the record of runs."""
    records, whole = os.path.dirname(layout.sidecar(archive, "*")), f"{archive}/{path}"
    is_record = whole.startswith(f"{records}/") and whole != layout.workflow_copy(archive)
    return is_record or _is_given(archive, path)


def is_own(archive: str, path: str) -> bool:
    """Whether a file is written once, by a rule that reads nothing, for the user to edit: how is logged."""
    return f"{archive}/{path}" == layout.log_config(archive)


def is_source_or_own(archive: str, path: str) -> bool:
    """Whether other bytes than the manifest's are an edit, and no damage to be mended."""
    return is_source(archive, path) or is_own(archive, path)


def _is_given(archive: str, path: str) -> bool:
    """Whether a file is a source that rules read: configuration, a parent's weights."""
    path = f"{archive}/{path}"
    config, datalist = os.path.split(layout.datalist(archive, "*"))
    if path.startswith(f"{config}/"):
        return not fnmatch(os.path.basename(path), datalist) and path != layout.data_record(archive)
    return path.startswith(f"{layout.parent_dir(archive)}/")


def is_fingerprinted(archive: str, path: str) -> bool:
    """Whether a product holds the fingerprint of what decides it, so that no time does."""
    patterns = (
        layout.splits_json(archive),
        layout.run_zip(archive, "*"),
        layout.exports_zip(archive, "*"),
        layout.evaluation_zip(archive, "*", "*"),
        layout.eval_zip(archive),
        layout.eval_zip(archive, layout.CKPT),
        layout.further_export_zip(archive, "*"),
        layout.eval_zip(archive, layout.OF_ENSEMBLE),
    )
    return any(fnmatch(f"{archive}/{path}", pattern) for pattern in patterns)


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


def _in_order(found: _Found) -> bool:
    """Whether nothing looks out of date as it is; then an archive that cannot be written is as good."""
    times = {p: os.stat(f"{found.archive}/{p}").st_mtime_ns for p in found.present}
    manifest = os.stat(layout.manifest(found.archive)).st_mtime_ns
    given = [t for p, t in times.items() if _is_given(found.archive, p)]
    made = [t for p, t in times.items() if not is_source(found.archive, p)]
    return (
        max(times.values(), default=0) <= manifest <= time.time_ns()
        and max(given, default=0) <= min(made, default=manifest)
        and all(
            times[i] <= times[o]
            for _, inputs, outputs in found.manifest.actions
            for i in inputs
            for o in outputs
            if i in times and o in times
        )
    )


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


# ---- once, and again when times changed


def needs_adoption(archive: str, state_dir: str | os.PathLike) -> bool:
    """Whether ``archive`` exists and its times may be in no order.

    So it is where it is not the folder that was last marked under this name (a folder that was moved, or deleted
    and copied anew, is another one although its path is the same), where it was adopted and its times are
    no longer those that it had then, and where a file is of the future, which would hide an edit.
    """
    if not os.path.isdir(archive):
        return False
    known = _known(archive, state_dir)
    times, newest = _times(archive)
    return known is None or known.get("times", times) != times or newest > time.time() + SKEW


def mark_adopted(archive: str, state_dir: str | os.PathLike) -> None:
    """Remember that this archive, under this name, was adopted with the times that it now has, and as what at first."""
    known = _known(archive, state_dir)
    origin = describe(archive) if known is None else known.get("origin")
    write_json(_marker(archive, state_dir), {**_identity(archive), "times": _times(archive)[0], "origin": origin})


def adopted_as(archive: str, state_dir: str | os.PathLike) -> dict | None:
    """What this archive was when it was first adopted, as :func:`~armarium.origin.describe` has it; None if it was not."""
    return (_known(archive, state_dir) or {}).get("origin")


def mark_begun(archive: str, state_dir: str | os.PathLike) -> None:
    """Remember that this archive was begun here, unless it is known: Snakemake has a record of all its products."""
    if os.path.isdir(archive) and _known(archive, state_dir) is None:
        write_json(_marker(archive, state_dir), _identity(archive))


def is_known(archive: str, state_dir: str | os.PathLike) -> bool:
    """Whether ``archive`` was marked under this name."""
    return _known(archive, state_dir) is not None


def _known(archive: str, state_dir: str | os.PathLike) -> dict | None:
    """What was remembered of this archive; None if it is another one."""
    marker = _marker(archive, state_dir)
    known = read_json(marker) if os.path.exists(marker) else {}
    return known if known.items() >= _identity(archive).items() else None


def _marker(archive: str, state_dir: str | os.PathLike) -> str:
    # By name, not by place: Snakemake's own records are by name too.
    key = hashlib.sha256(os.path.normpath(archive).encode()).hexdigest()[:32]
    return os.path.join(state_dir, "adopted", f"{key}.json")


def _times(archive: str) -> tuple[str, float]:
    """A digest over every file's modification time and size, and the newest time."""
    digest, newest = hashlib.sha256(), 0.0
    for path in [*archive_files(archive), os.path.relpath(layout.manifest(archive), archive)]:
        with suppress(FileNotFoundError):
            stat = os.stat(f"{archive}/{path}")
            digest.update(f"{path}\0{stat.st_mtime_ns} {stat.st_size}\n".encode())
            newest = max(newest, stat.st_mtime)
    return digest.hexdigest(), newest


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
