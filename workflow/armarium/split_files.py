"""Split files: the forms in which given splits are read, and the archive's own."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from .dataset import SUBSETS, TEST, TRAINING
from .errors import UserError
from .files import read_json
from .naming import CASE, GROUP

Sides = dict[str, list]
"""Entries (names, image paths or datalist entries) under train, validation and, perhaps, test."""
_SIDES = {key: "train" if subset == TRAINING else subset for key, subset in SUBSETS.items()}

_NO_SIDES = ("label_format",)
"""Lists that Clara Train's datalists have beside those of cases."""


def given_sides(given: dict | list) -> list[dict[str, list]]:
    """The sides of each split in a file of given splits: one object, a list of them, or MONAI's ``fold`` keys."""
    given = given["splits"] if isinstance(given, dict) and "splits" in given else given
    if not given:
        raise UserError("split file: found no split, wanted lists 'train' and 'validation'")
    return sides_of(given)


def split_numbers(part: dict) -> list[int]:
    """The splits' numbers; ``part`` is the effective configuration's ``split``."""
    if part["splits"]["method"] == "kfold":
        return list(range(part["splits"]["n_splits"]))
    return list(range(len(given_sides(part["given"])))) if part["splits"]["method"] == "file" else [0]


def sides_of(given: Any) -> list[Sides]:
    """The sides of each given split under the names train, validation and test."""
    training = given.get(TRAINING) if isinstance(given, dict) else None
    if isinstance(training, list) and any(isinstance(e, dict) and "fold" in e for e in training):
        return _folds(training)
    splits = given if isinstance(given, list) else [given]
    return [_named(k, split) for k, split in enumerate(splits)]


def _named(k: int, split: Any) -> Sides:
    found = split.items() if isinstance(split, dict) else ()
    lists = {key: v for key, v in found if isinstance(v, list) and key not in _NO_SIDES}
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


def name_in(entry: Any) -> str:
    """What an entry names a case by: its name, or its image, the first of several."""
    name = entry.get("image") if isinstance(entry, dict) else entry
    return str(name[0] if isinstance(name, list) and name else name)


# ---- their test groups


def given_groups(given: Sequence[Sides]) -> dict[str, dict]:
    """The test groups that given splits bring, as the effective configuration has them.

    ``test`` where the test lists of all splits name the same; else ``test_K`` of every split that has one, whose
    ``split`` alone is tested on it.
    """
    tests = [sorted(posixpath.normpath(name_in(entry)) for entry in sides.get("test", [])) for sides in given]
    if all(test == tests[0] for test in tests):
        return {TEST: {"given": True}} if tests and tests[0] else {}
    return {f"{TEST}_{k}": {"given": True, "split": k} for k, test in enumerate(tests) if test}


def own_groups(groups: Mapping[str, Mapping]) -> dict[str, int]:
    """Of test groups that a single split is tested on, that split; ``groups`` as the effective configuration has them."""
    return {name: group["split"] for name, group in groups.items() if "split" in group}


def shared_groups(groups: Mapping[str, Mapping]) -> list[str]:
    """The test groups of all splits, whose cases none of them trains or validates on; ``groups`` as for :func:`own_groups`."""
    return [name for name in groups if name not in own_groups(groups)]


def tested_on(split: int, groups: Iterable[str], own: Mapping[str, int]) -> list[str]:
    """The test groups of a split: those of all splits, and its ``own``."""
    return [group for group in groups if own.get(group, split) == split]


# ---- the archive's own


def read_splits(path: str | PathLike) -> dict[str, Any]:
    """``data/splits.json``: the splits, the test groups, the single split of each of ``own_groups``, and the cases by name.

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


def cases_tested_by(splits: dict, k: int) -> list[str]:
    """The cases of all groups that split ``k`` is tested on, sorted; ``splits`` is the content of that file."""
    groups = splits["groups"]
    return sorted({name for group in tested_on(k, groups, splits.get("own_groups", {})) for name in groups[group]})


def cases_unseen(splits: dict) -> list[str]:
    """The cases of the groups of all splits, sorted; nobody of them is on a side of any split."""
    own, cases = splits.get("own_groups", {}), splits["cases"]
    seen = {name for sides in splits["splits"] for side in ("train", "validation") for name in sides[side]}
    people = {cases[name]["participant_id"] for name in seen}
    tested = {name for group, names in splits["groups"].items() if group not in own for name in names}
    return sorted(name for name in tested - seen if cases[name]["participant_id"] not in people)


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
    own = splits.get("own_groups", {})
    if not isinstance(own, dict) or not all(g in groups and k in range(len(sides)) for g, k in own.items()):
        return "found own_groups that are not some of its groups, each with the number of a split"
    for members in (*(side for split in sides for side in split.values()), *groups.values()):
        if not isinstance(members, list) or not all(isinstance(m, str) and m in cases for m in members):
            return "found a side or group that is no list of its cases' names"
    facts = {"participant_id": str, "session_id": str, "image": list, "label": str | int | float | list | None}
    for name, case in cases.items():
        wrong = [k for k, kind in facts.items() if not isinstance(case, dict) or not isinstance(case.get(k), kind)]
        if wrong or not case["image"] or not all(isinstance(image, str) for image in case["image"]):
            return f"case {name!r}: found no {', '.join(wrong) or 'images'} of the right kind"
        if isinstance(case["label"], list) and not all(type(one) is int and one in (0, 1) for one in case["label"]):
            return f"case {name!r}: found label {case['label']!r:.80}, wanted 0 and 1"
    return None
