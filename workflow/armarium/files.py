"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path with ``path``'s own basename; rename it to ``path`` on success.

    The temporary lies in a hidden folder beside ``path`` (same file system), because the bytes that
    torch.save and torch.jit.save write depend on the file's own name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def read_json(path: str | os.PathLike) -> Any:
    """Parse a JSON file.

    Raises
    ------
    UserError
        If the file is missing or is no JSON.
    """
    from .errors import UserError

    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: file not found") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
