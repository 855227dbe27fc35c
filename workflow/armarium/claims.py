"""Who works on what: locks on single bytes of a file, which the kernel frees when their holder dies, however it dies.

Locks of an open file (``F_OFD_SETLK``, fcntl(2)) and not ``flock``: one file serves any number of things, and there is
nothing to remove. Where a file system has no locks, or the file cannot be written, nobody claims anything: work may then be
done twice, and each result is still put in place whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_FLOCK = struct.Struct("hhqqi0q")  # struct flock of fcntl(2): type, whence, start, length, process
_TAKEN = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def claimed(path: Path, number: int, wait: bool) -> Iterator[bool]:
    """Claim ``number`` for the body; whether it was free.

    Parameters
    ----------
    path:
        The file of the locks; made where it is missing.
    number:
        A byte of it, below 2^63; it need not exist.
    wait:
        Until it is free.
    """
    file = claim(path, number, wait)
    try:
        yield file is not None
    finally:
        if file is not None:
            os.close(file)


def claim(path: Path, number: int, wait: bool = False) -> int | None:
    """The same until the returned file descriptor is closed, in this process and those forked since; None where it is not free."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return os.open(os.devnull, os.O_RDONLY)
    try:
        lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, lock)
    except OSError as error:
        if error.errno in _TAKEN:
            os.close(file)
            return None
    except BaseException:
        os.close(file)
        raise
    return file


def in_use(path: Path) -> int | None:
    """A file descriptor that says, as long as it is open, that this process uses what lies beside ``path``.

    None where it cannot be said: in a folder that is not there and cannot be made.
    """
    while True:
        try:
            file = _opened(path)
        except OSError:
            return None
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        os.close(file)  # who cleaned up was quicker


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Keep others from beginning to use what lies beside ``path`` during the body; whether nobody does."""
    try:
        file = _to_lock(path)
    except FileNotFoundError:
        yield True
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError as error:
            free = error.errno in _NO_LOCKS
        yield free


def _to_lock(path: Path) -> IO[str]:
    try:
        return open(path, "r+")  # as NFS wants it
    except PermissionError:
        return open(path)
