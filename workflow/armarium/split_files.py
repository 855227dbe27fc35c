"""Split files: the forms in which given splits are read, and the archive's own."""

from __future__ import annotations

from os import PathLike
from typing import Any

from .dataset import SUBSETS, TRAINING
from .errors import UserError
from .files import read_json
from .naming import CASE, GROUP

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


# ---- the archive's own


def read_splits(path: str | PathLike) -> dict[str, Any]:
    """``data/splits.json``: the splits, the test groups, and the cases in them by name.

    Raises
    ------
    UserError
        If there is none, or it is not as this workflow writes it: names become parts of paths and commands.
    """
    splits = read_json(path)
    problem = _problem(splits)
    if problem:
        raise UserError(f"{path}: {problem}; put back a copy, or delete this file to have the splits drawn again")
    return splits


def _problem(splits: Any) -> str | None:
    if not isinstance(splits, dict):
        return f"found a JSON {type(splits).__name__}, wanted an object"
    sides, groups, cases = (splits.get(key) for key in ("splits", "groups", "cases"))
    if not isinstance(sides, list) or not all(
        isinstance(s, dict) and {"train", "validation"} <= s.keys() for s in sides
    ):
        return "found no list 'splits' of objects with train and validation"
    if not isinstance(groups, dict) or not isinstance(cases, dict):
        return "found no objects 'groups' and 'cases'"
    if wrong := [g for g in groups if not GROUP.fullmatch(g)]:
        return f"found test group {wrong[0]!r}, wanted letters, digits and _ in its name"
    if wrong := [c for c in cases if not CASE.fullmatch(c)]:
        return f"found case {wrong[0]!r}, wanted a file name of letters, digits, '_', '-' and '.'"
    for members in (*(side for split in sides for side in split.values()), *groups.values()):
        if not isinstance(members, list) or not all(isinstance(m, str) and m in cases for m in members):
            return "found a side or group that is no list of its cases' names"
    facts = {"participant_id": str, "session_id": str, "image": list, "label": str | int | float | None}
    for name, case in cases.items():
        wrong = [k for k, kind in facts.items() if not isinstance(case, dict) or not isinstance(case.get(k), kind)]
        if wrong or not case["image"] or not all(isinstance(image, str) for image in case["image"]):
            return f"case {name!r}: found no {', '.join(wrong) or 'images'} of the right kind"
    return None
