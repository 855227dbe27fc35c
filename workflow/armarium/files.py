"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, wraps
from pathlib import Path
from typing import IO, Any

from .errors import UserError

WRITING, LOCK = ".writing-", ".lock"
"""How the folder of a file that is being written begins, and the lock that its writer holds."""
LARGEST_TEXT = 256 << 20
"""Bytes of a text that is read into memory: a list of several hundred thousand cases."""
MOST_PARTS = 8_000_000
"""Objects and lists in one JSON text; each takes a hundred times the memory of its two characters."""
DEEPEST = 64
"""Objects and lists within one another; code that walks through them calls itself."""


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path with ``path``'s own basename; rename it to ``path`` on success.

    The temporary lies in a hidden folder beside ``path`` (same file system), because the bytes that
    torch.save and torch.jit.save write depend on the file's own name.

    Raises
    ------
    OSError
        What the machine refuses, of ``path`` and not of the temporary.
    """
    path = Path(path)
    with refusals_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with folder_while_alive(path.parent) as folder:
            yield folder / path.name
            os.replace(folder / path.name, path)


@contextmanager
def refusals_of(path: Path) -> Iterator[None]:
    """What the machine refuses in the body is told of ``path``; an open file's errors name none."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        refused = error if isinstance(error, OSError) else error.__context__  # torch's writer hides a full disk
        about = getattr(refused, "filename", None)
        if not isinstance(refused, OSError) or (about and WRITING not in os.fsdecode(about)):
            raise
        raise OSError(refused.errno, refused.strerror, str(path)) from error


@contextmanager
def folder_while_alive(parent: Path) -> Iterator[Path]:
    """A new hidden folder; what a kill leaves of it has a lock that nobody holds."""
    folder = Path(tempfile.mkdtemp(prefix=WRITING, dir=parent))
    try:
        with ExitStack() as held:
            with suppress(OSError):  # a file system without locks: then nobody takes the folder for a dead one's
                held.enter_context(locked_file(folder / LOCK))
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def locked_file(path: Path) -> IO[str]:
    """The open file with its lock held; again if somebody took it for a dead process's meanwhile."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (held open)
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Remove what killed processes left of their writing, in a folder and all below."""
    for parent, names, _ in os.walk(folder):
        for left in (Path(parent, n) for n in names if n.startswith(WRITING)):
            with suppress(OSError), open(left / LOCK, "r+") as lock:  # else its writer lives, or is just beginning
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)


def write_with(path: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file, then put it in place."""
    with replacing(path) as temporary:
        write(temporary)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    write_with(path, lambda p: p.write_bytes(data))


def write_text(path: str | os.PathLike, text: str) -> None:
    write_bytes(path, text.encode())


def json_text(value: Any) -> str:
    """JSON as every file of an archive has it: indent 4, no NaN, a newline at the end."""
    return json.dumps(value, indent=4, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike, value: Any) -> None:
    write_text(path, json_text(value))


# ---- reading, with distrust: an archive may come from a stranger


def regular_size(path: str | os.PathLike) -> int:
    """A file's size in bytes; a pipe or a device, which may never end, is refused."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}: not a regular file; delete it, or put back a copy")
    return status.st_size


def memory_bytes() -> int:
    """The machine's memory: whoever claims to need more than that is not believed."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_bytes(path: str | os.PathLike, most: int) -> bytes:
    """A whole file of at most ``most`` bytes.

    Raises
    ------
    FileNotFoundError
        If there is none.
    UserError
        If it has more, or is no regular file.
    """
    size = regular_size(path)
    if size > most:
        raise UserError(
            f"{path}: found {size:,} bytes, wanted at most {most:,}; this is not the file that it should be"
        )
    return Path(path).read_bytes()


def read_text(path: str | os.PathLike, most: int = LARGEST_TEXT) -> str:
    """A whole UTF-8 file.

    Raises
    ------
    UserError
        If the file is missing, has more than ``most`` bytes or is no text.
    """
    try:
        return read_bytes(path, most).decode()
    except FileNotFoundError:
        raise UserError(f"{path}: file not found") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error})") from None


def read_json(path: str | os.PathLike, most: int = LARGEST_TEXT) -> Any:
    """Parse a JSON file of at most ``most`` bytes.

    Raises
    ------
    UserError
        If the file is missing or is no JSON that can be kept: see :func:`parse_json`.
    """
    return parse_json(read_text(path, most), path)


def parse_json(text: str, source: str | os.PathLike) -> Any:
    """Parse JSON from ``source``.

    Raises
    ------
    UserError
        If it is no JSON, or has what would be lost or fail later: a key twice, numbers that are none, characters
        that no file can hold, or more or deeper parts than anything that is made here.
    """
    if text.count("{") + text.count("[") > MOST_PARTS:
        raise UserError(
            f"{source}: found more than {MOST_PARTS:,} lists and objects; this is not the file that it should be"
        )
    try:
        value = json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_no_number, parse_float=_finite)
        if _is_deeper(value, DEEPEST):
            raise UserError(f"{source}: nested more than {DEEPEST} levels deep; nothing here is")
        if "\\u" in text:
            _refuse_characters(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid JSON ({error})") from None
    return value


def until_changed(most: int) -> Callable[[Callable[[str], Any]], Callable[[str | os.PathLike], Any]]:
    """Decorator: what was read from a path is kept while the same file lies there, by its size, time and inode.

    Of the last ``most`` paths: planning asks of one file many times. What is returned is shared, so nobody may change it.
    """

    def keeping(read: Callable[[str], Any]) -> Callable[[str | os.PathLike], Any]:
        kept = lru_cache(maxsize=most)(lambda path, *_signature: read(path))

        @wraps(read)
        def if_changed(path: str | os.PathLike) -> Any:
            found = os.stat(path)
            return kept(os.fspath(path), found.st_size, found.st_mtime_ns, found.st_ino)

        return if_changed

    return keeping


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (repeated, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated!r:.80} occurs twice in one object")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number; write null where a value is unknown")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text:.40} is too large a number")
    return value


def _refuse_characters(value: Any) -> None:
    """Zero bytes end a path early, and half characters (lone surrogates) cannot be written."""
    text = json.dumps(value, ensure_ascii=False).replace("\\\\", "")
    text.encode()
    if "\\u0000" in text:
        raise ValueError("a text with a zero byte")


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            part for v in level if isinstance(v, dict | list) for part in (v.values() if isinstance(v, dict) else v)
        ]
    return any(isinstance(v, dict | list) for v in level)
