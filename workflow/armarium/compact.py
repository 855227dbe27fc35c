"""An archive's weights and exports that are equal byte for byte, kept once on the disk. No torch.

A best checkpoint is often the last one too, and a published model is a split's. A clone of a file's blocks (btrfs, XFS and
others) is a file of its own. A hard link is the same file under two names: whoever writes into one, and does not put a new
one in its place as everything here does, changes both; so links are made only where they are asked for.
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

from . import layout
from .boundary import check_boundary, is_inside
from .calling import place_of
from .errors import UserError
from .files import folder_while_alive, remove_abandoned
from .hashing import sha256
from .run import member_of_checkpoint, run_info
from .running import at_work
from .zips import opened

KINDS = (".pt", ".ts", ".onnx", ".pt2")
"""Endings of what nobody edits by hand."""
LEAST = 4096
"""Bytes of a file that is worth it: a disk's block."""
FICLONE = 0x40049409
"""The request that Linux's ioctl_ficlone(2) defines."""
_NO_CLONES = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EPERM}


@dataclass
class Compacted:
    """What an archive takes, in bytes.

    Attributes
    ----------
    size:
        All its files, each name of a file counted.
    checkpoints:
        The weights that its runs hold, each once.
    shared:
        What equal files share: the sizes of all but the first of each.
    left:
        What they could share, by hard links.
    """

    size: int
    checkpoints: int
    shared: int = 0
    left: int = 0

    def __str__(self) -> str:
        now = self.size - self.shared
        text = f"{_mb(self.checkpoints)} of checkpoints in {_mb(self.size)} of files{_times(self.size, self.checkpoints)}; "
        text += f"on the disk {_mb(now)}{_times(now, self.checkpoints)}"
        if self.left:
            text += f"; equal files could share {_mb(self.left)} more, by --hard-links: this disk cannot clone them"
        return text


def compact(archive: str, hard_links: bool) -> Compacted:
    """Let files of equal weights and exports share their place on the disk; their bytes, and what is planned, stay.

    Raises
    ------
    UserError
        If there is no such archive, or it is being built.
    """
    directory, relative = place_of(archive)
    check_boundary(archive)
    if busy := [p for p in at_work(directory) if any(is_inside(f, str(directory / relative)) for f in p.makes)]:
        raise UserError(f"{archive}: being built ({busy[0]}); compact it when that has ended")
    remove_abandoned(archive)
    files = {path: path.stat() for path in _files(Path(archive))}
    found = Compacted(sum(status.st_size for status in files.values()), _checkpoints(archive))
    for group in _equal(files):
        # The newest is kept: no file becomes older than what it was made from.
        kept, *others = sorted(group, key=lambda path: (-files[path].st_mtime_ns, str(path)))
        for path in others:
            size = files[path].st_size
            if os.path.samefile(kept, path) or _cloned(kept, path) or (hard_links and _linked(kept, path)):
                found.shared += size
            else:
                found.left += size
    return found


def _files(archive: Path) -> Iterator[Path]:
    """What an archive is of: neither resume states nor what is hidden, and nothing behind a link."""
    for folder, names, files in os.walk(archive):
        names[:] = [name for name in names if not name.startswith(".") and not _is_state(archive, Path(folder, name))]
        yield from (path for name in files if (path := Path(folder, name)).is_file() and not path.is_symlink())


def _is_state(archive: Path, folder: Path) -> bool:
    return folder.parent.parent == archive / "training" and folder.name == os.path.basename(layout.tmp_dir("", "0"))


def _checkpoints(archive: str) -> int:
    """Bytes of the weights in the archive's runs."""
    total = 0
    for path in sorted(Path(archive).glob(layout.run_zip("", "*").lstrip("/"))):
        info = run_info(path) or {}
        with opened(path) as run:
            total += sum(
                run.getinfo(member_of_checkpoint(int(epoch))).file_size for epoch in info.get("checkpoints", ())
            )
    return total


def _equal(files: dict[Path, os.stat_result]) -> list[list[Path]]:
    """Groups of equal files."""
    by_size, by_content = defaultdict(list), defaultdict(list)
    for path, status in files.items():
        if path.suffix in KINDS and status.st_size >= LEAST:
            by_size[status.st_size].append(path)
    for size, paths in by_size.items():
        for path in paths if len(paths) > 1 else ():
            by_content[size, sha256(path)].append(path)
    return [paths for paths in by_content.values() if len(paths) > 1]


def _cloned(kept: Path, path: Path) -> bool:
    """Let a file have the blocks of another, and its own times; whether the file system can."""

    def clone(temporary: Path) -> None:
        with open(kept, "rb") as source, open(temporary, "wb") as target:
            ioctl(target.fileno(), FICLONE, source.fileno())
        shutil.copystat(path, temporary)

    return _replaced(path, kept, clone)


def _linked(kept: Path, path: Path) -> bool:
    """Make a file another name of one; whether the file system can."""
    return _replaced(path, kept, lambda temporary: os.link(kept, temporary))


def _replaced(path: Path, kept: Path, make: Callable[[Path], None]) -> bool:
    with folder_while_alive(path.parent) as folder:
        temporary = folder / path.name
        try:
            make(temporary)
        except OSError as error:
            if error.errno in _NO_CLONES | {errno.EMLINK}:
                return False
            raise
        if not filecmp.cmp(temporary, path, shallow=False):
            raise UserError(f"{path}: changed meanwhile, or {kept} did; compact the archive when nothing writes there")
        os.replace(temporary, path)
    return True


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _times(part: int, whole: int) -> str:
    return f" ({part / whole:.1f} times)" if whole else ""
