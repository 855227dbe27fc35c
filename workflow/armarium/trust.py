"""TorchScript is code: a file is run only if it was exported here, or if its user trusts it. No torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

EXPORTED = "exported"
"""Folder of the cache with an empty file for each TorchScript that was exported here, named by its SHA-256."""


def note_exported(cache_dir: str | os.PathLike, files: Iterable[bytes]) -> None:
    """Remember TorchScript files that were exported from weights on this file system."""
    folder = Path(cache_dir, EXPORTED)
    folder.mkdir(parents=True, exist_ok=True)
    for data in files:
        (folder / hashlib.sha256(data).hexdigest()).touch()


def is_exported_here(cache_dir: str | os.PathLike, data: bytes) -> bool:
    return Path(cache_dir, EXPORTED, hashlib.sha256(data).hexdigest()).is_file()
