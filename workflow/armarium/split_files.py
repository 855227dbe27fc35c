"""Split files: the forms in which given splits are read."""

from __future__ import annotations

from typing import Any

from .dataset import SUBSETS, TRAINING
from .errors import UserError

Sides = dict[str, list]
"""Entries (names, image paths or datalist entries) under train, validation and, perhaps, test."""
_SIDES = {key: "train" if subset == TRAINING else subset for key, subset in SUBSETS.items()}


def sides_of(given: Any) -> list[Sides]:
    """The sides of each given split under the names train, validation and test."""
    training = given.get(TRAINING) if isinstance(given, dict) else None
    if isinstance(training, list) and any(isinstance(e, dict) and "fold" in e for e in training):
        return _folds(training)
    splits = given if isinstance(given, list) else [given]
    return [_named(k, split) for k, split in enumerate(splits)]


def _named(k: int, split: Any) -> Sides:
    lists = {key: v for key, v in split.items() if isinstance(v, list)} if isinstance(split, dict) else {}
    sides = {_SIDES.get(key, key): v for key, v in lists.items()}
    if set(sides) == {"train", "test"}:
        sides = {"train": sides["train"], "validation": sides["test"]}
    known = {"train", "validation", "test"}
    if len(sides) != len(lists) or not {"train", "validation"} <= sides.keys() <= known:
        raise UserError(
            f"split file: split {k}: found lists {list(lists) or repr(split)[:80]}, wanted train and validation (or test), or all three"
        )
    return sides


def _folds(training: list) -> list[Sides]:
    folds = [e.get("fold") if isinstance(e, dict) else None for e in training]
    n = len(set(folds))
    if n < 2 or set(folds) != set(range(n)):
        raise UserError(
            f"split file: found fold numbers {sorted(set(map(str, folds)))}, wanted 0, 1, … in every training entry"
        )
    entries = list(zip(training, folds, strict=True))
    return [
        {"train": [e for e, f in entries if f != k], "validation": [e for e, f in entries if f == k]} for k in range(n)
    ]
