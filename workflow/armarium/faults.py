"""What a machine refuses: room on a disk, memory, a file. Told in one line, with what ran out and what to do."""

from __future__ import annotations

import errno
import os
import re
import resource
import traceback
from pathlib import Path

from .errors import UserError

REFUSED = {
    errno.ENOSPC: "no space left on its disk; free some",
    errno.EDQUOT: "no space left in the disk quota; free some",
    errno.EFBIG: "larger than a file may be here; raise the limit (ulimit -f)",
    errno.EROFS: "read-only file system; mount it writable, or work in another folder",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
}
_AGAIN = "; then run the same command again: nothing is half-written, and nothing that was there is lost"
_SHARED_MEMORY = re.compile(r"shared memory|</torch_|Bus error", re.I)
_NO_MEMORY = re.compile(
    r"(can't|cannot) allocate memory|bad_alloc|out of memory|failed to map segment|can't start new thread|could not create a (primitive|memory)(?! desc)",
    re.I,
)
_WANTED = re.compile(r"(?:tried|unable) to allocate ([\d.]+ ?[a-z]+)", re.I)

LOADED = 960 << 20
"""Address space in bytes that torch, MONAI and SciPy take when they are loaded, at least (measured: torch for CPU)."""
LOADED_PER_CPU = 48 << 20
"""The same for each processor: NumPy's and SciPy's algebra each reserve 32 MiB and a stack for every thread of theirs."""


def in_words(error: BaseException) -> str | None:
    """An error that is the user's or the machine's, in one line; None for any other, which is a bug."""
    if isinstance(error, UserError):
        return str(error)
    if _is_shared_memory(error):
        return (
            "shared memory (/dev/shm) is full, through which a loader's worker hands over cases; "
            f"set num_workers to 0, or enlarge it (docker run --shm-size){_AGAIN}"
        )
    if is_no_memory(error):
        wanted = _WANTED.search(str(error))
        tried = f" (tried to allocate {wanted[1]})" if wanted else ""
        return f"out of memory{tried}; lower batch_size, or give the job more (ulimit -v, a scheduler's mem_mb){_AGAIN}"
    return _about_a_file(error) if isinstance(error, OSError) else None


def is_no_memory(error: BaseException) -> bool:
    """Whether memory, or what counts as memory, was refused."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = isinstance(error, RuntimeError | ImportError) and _NO_MEMORY.search(str(error))
    return bool(known) or isinstance(error, MemoryError)


def _is_shared_memory(error: BaseException) -> bool:
    """Whether what processes share was refused; of a semaphore the error names no file."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        raised_in = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        return "multiprocessing" in Path(raised_in[-1] if raised_in else "").parts
    return isinstance(error, RuntimeError) and bool(_SHARED_MEMORY.search(str(error)))


def _about_a_file(error: OSError) -> str:
    if error.errno is None:  # out of a loader's worker it comes as text
        return str(error).strip().rpartition("\n")[2]
    path = error.filename or Path.cwd()
    if error.errno in (errno.EACCES, errno.EPERM):
        what = f"{error.strerror.lower()} for user {os.geteuid()}; give that user access, or work in another folder"
    else:
        what = REFUSED.get(error.errno, f"{error.strerror}; mend this")
    return f"{os.fsdecode(path)}: {what}{_AGAIN}"


def require_address_space() -> None:
    """Refuse a limit (``ulimit -v``) under which the libraries cannot be loaded.

    Without memory for its threads OpenBLAS tries for ever, or ends the process without a word of where.

    Raises
    ------
    UserError
        If less is left than loading them takes.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return
    threads = LOADED_PER_CPU * len(os.sched_getaffinity(0))
    for library, needed in (("torch", LOADED + threads), ("scipy", 2 * threads)):
        left = limit - _address_space()
        if left < needed:
            raise UserError(
                f"memory: found a limit of {limit >> 20} MiB (ulimit -v), of which {left >> 20} MiB are left to load {library} and what needs it; "
                f"wanted {needed >> 20} MiB, and more to compute with; raise the limit{_AGAIN}"
            )
        __import__(library)


def _address_space() -> int:
    """Bytes of address space that this process takes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
