"""Where prepared cases lie in the cache folder, and how they are named. No torch: also who only counts them needs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FORMAT = 3
"""Of an entry; another number leaves older entries unread."""
ENTRY = ".case"
CLAIMS, USERS, USED_BY = "claims", "users", "used-by"
"""Beside the entries of a recipe: whose cases are in work, who reads them, and the data and transforms they were made of."""


def prepared_dir(cache_dir: str) -> Path:
    return Path(cache_dir, "prepared")


def folder_of(cache_dir: str, recipe: str) -> Path:
    """Entries of one recipe, by its key."""
    return prepared_dir(cache_dir) / recipe


def entry_name(recipe: str, sha256: Sequence[str], label: Any) -> str:
    """File of a case.

    Parameters
    ----------
    recipe:
        The key of the transforms.
    sha256:
        Of the images (``;`` between several) and of the label's file.
    label:
        The label's file, or a value. A file counts by its content.
    """
    content = json.dumps([recipe, list(sha256), None if isinstance(label, str) else label, isinstance(label, str)])
    return f"{hashlib.sha256(content.encode()).hexdigest()}{ENTRY}"


def number_of(name: str) -> int:
    """The byte of ``CLAIMS`` that stands for an entry."""
    return int(name[:15], 16)


def use_name(data_root: Path, components: list[dict], names: Iterable[str]) -> str:
    """File of ``USED_BY`` for some cases of a dataset."""
    content = json.dumps([str(data_root), components, sorted(names)], sort_keys=True)
    return f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"
