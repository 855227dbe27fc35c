"""Names of cases, participants and sessions: safe as file names, and what BIDS and MAPS accept."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import Any

CASE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""A case's name: part of file names and commands."""
GROUP = re.compile(r"[A-Za-z0-9_]+")
CHECKPOINT = re.compile(r"best-[A-Za-z0-9]+|epoch-[1-9][0-9]*|final")


def bids_id(prefix: str, value: Any, what: str) -> str:
    """``value`` as a BIDS entity: the prefix and letters or digits, nothing else."""
    text = str(value if value is not None else "").removeprefix(f"{prefix}-")
    if not re.fullmatch(r"[A-Za-z0-9]+", text):
        raise ValueError(f"{what}: found {value!r}, wanted letters and digits only, with or without '{prefix}-'")
    return f"{prefix}-{text}"


def given_name(name: Any) -> str:
    """``name`` if it may name a case."""
    if not isinstance(name, str) or not CASE.fullmatch(name):
        raise ValueError(f"case: found {name!r}, wanted a file name of letters, digits, '_', '-' and '.'")
    return name


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).lstrip(".-") or "case"


def _without_suffix(path: str) -> str:
    return re.sub(r"\.(nii|nii\.gz|json|tsv)$", "", path)


def stem(images: Iterable[str]) -> str:
    """Case name of an image; of several channel files, that of the first without its channel number."""
    images = list(images)
    name = _without_suffix(posixpath.basename(images[0]))
    return _safe(re.sub(r"_\d{4}$", "", name) if len(images) > 1 else name)


def longer_name(name: str, images: tuple[str, ...], who: str) -> str:
    """A name for one of several images of equal basename: by who it shows, else by its whole path."""
    if who:
        return f"{who}_{name}"
    whole = stem([images[0].replace("/", "_"), *images[1:]])
    return whole if whole != name else name
