"""What really lies in a folder: every file read and hashed, nothing followed out of it."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tqdm import tqdm

from .progress import SECONDS_BETWEEN_LINES

BLOCK = 1 << 20
"""Bytes read at once; Python lets other threads run while it reads and hashes them."""

BATCH = 8 * BLOCK
"""Bytes that a thread reads before it asks for more: handing over each small file costs more than reading it."""

THREADS = min(4, os.cpu_count() or 1)
"""More than two or three do not read faster from a disk; a single core hashes slower than a fast one reads."""


@dataclass(frozen=True)
class Content:
    """A file's bytes: their SHA-256 and number, and the CRC-32 that a zip file would keep of them (if wanted)."""

    sha256: str
    size: int
    crc32: int | None


@dataclass
class Scan:
    """What lies in a folder, by path relative to it.

    Attributes
    ----------
    files:
        Regular files, and links to such inside the folder.
    whole:
        Folders that were not looked into.
    escaping:
        Links that leave the folder, and where to; they were not followed.
    odd:
        Whatever else is there, and what it is: links to folders, pipes, what cannot be read.
    """

    files: dict[str, Content] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    escaping: dict[str, str] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(content.size for content in self.files.values())


def scan(folder: str, skip: Callable[[str], bool], wants_crc: Callable[[str], bool]) -> Scan:
    """Read everything in a folder.

    Parameters
    ----------
    skip:
        Which folders not to look into, by relative path.
    wants_crc:
        Which files' CRC-32 to compute.
    """
    found, sizes = Scan(), {}
    root = os.path.realpath(folder)
    pending = [""]
    while pending:
        inside = pending.pop()
        try:
            entries = sorted(os.scandir(os.path.join(folder, inside)), key=lambda entry: entry.name)
        except OSError as error:
            found.odd[inside or "."] = f"cannot be read: {error.strerror}"
            continue
        for entry in entries:
            path = os.path.join(inside, entry.name)
            if entry.is_dir(follow_symlinks=False):
                (found.whole if skip(path) else pending).append(path)
            else:
                _look(entry, path, root, found, sizes)
    contents, unread = read_all(folder, sizes, wants_crc)
    found.files, found.odd = contents, found.odd | unread
    return found


def _look(entry: os.DirEntry, path: str, root: str, found: Scan, sizes: dict[str, int]) -> None:
    """File an entry that is no folder under what it is."""
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if target != root and not target.startswith(f"{root}{os.sep}"):
            found.escaping[path] = os.readlink(entry.path)
            return
    try:
        status = entry.stat()
    except OSError as error:
        found.odd[path] = f"cannot be read: {error.strerror}"
        return
    if stat.S_ISREG(status.st_mode):
        sizes[path] = status.st_size
    else:
        found.odd[path] = "a link to a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"


def read_all(
    folder: str, sizes: dict[str, int], wants_crc: Callable[[str], bool] = lambda path: False
) -> tuple[dict[str, Content], dict[str, str]]:
    """Contents of files by path, and why the others could not be read; the largest are begun first."""

    def read(batch: list[str]) -> list[Content | str]:
        return [_read_or_why(os.path.join(folder, path), wants_crc(path), bar.advance) for path in batch]

    batches = _batches(sizes)
    with _Bar(sum(sizes.values())) as bar, ThreadPoolExecutor(THREADS) as pool:
        results = {
            path: result
            for batch, results in zip(batches, pool.map(read, batches), strict=True)
            for path, result in zip(batch, results, strict=True)
        }
    contents = {path: results[path] for path in sorted(results) if isinstance(results[path], Content)}
    return contents, {path: why for path, why in results.items() if path not in contents}


def _batches(sizes: dict[str, int]) -> list[list[str]]:
    """Paths, the largest first, in batches worth handing to a thread."""
    batches, room = [], 0
    for path in sorted(sizes, key=lambda path: (-sizes[path], path)):
        if room <= 0:
            batches.append([])
            room = BATCH
        batches[-1].append(path)
        room -= sizes[path] + BLOCK // 64
    return batches


def _read_or_why(path: str, with_crc: bool, advance: Callable[[int], object]) -> Content | str:
    try:
        return content(path, with_crc, advance)
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def content(path: str, with_crc: bool = False, advance: Callable[[int], object] = lambda count: None) -> Content:
    """Read a file once, as a stream."""
    digest, crc, size = hashlib.sha256(), 0, 0
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # reads ahead twice as far
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        buffer = memoryview(bytearray(max(1, min(BLOCK, os.fstat(file.fileno()).st_size))))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            crc = zlib.crc32(buffer[:count], crc) if with_crc else crc
            size += count
            advance(count)
    return Content(digest.hexdigest(), size, crc if with_crc else None)


class _Bar:
    """How far the reading is: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self.lock, self.told, self.bar = threading.Lock(), time.monotonic(), None

    def __enter__(self) -> _Bar:
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.total, desc="reading", unit="B", unit_scale=True, leave=False)
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, count: int) -> None:
        with self.lock:
            self.done += count
            if self.bar is not None:
                self.bar.update(count)
            elif time.monotonic() - self.told > SECONDS_BETWEEN_LINES:
                self.told = time.monotonic()
                print(f"reading: {self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB", file=sys.stderr, flush=True)


def sizes_below(folder: str, paths: Iterable[str]) -> dict[str, int]:
    """Sizes of those of ``paths`` that are files, links followed."""
    found = {}
    for path in paths:
        try:
            status = os.stat(os.path.join(folder, path))
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(status.st_mode):
            found[path] = status.st_size
    return found
