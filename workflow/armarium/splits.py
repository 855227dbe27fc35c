"""Who trains, who validates, who tests: k-fold, hold-out, the list's own or given splits.

Cases that share a participant, a value of a ``group_by`` column or their voxels stay together. Every draw
depends on the seed and the cases' names alone, never on the list's order. A target that is a number is stratified by
its quantiles, classes that may occur together one by one.
"""

from __future__ import annotations

import posixpath
import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from .dataset import SUBSETS, TARGET, TEST, TRAINING, UNLABELLED, VALIDATION, Case, Dataset, with_test_lists
from .draws import counts_by_type, possible_count, reachable
from .errors import Problems, UserError
from .iterative import Group, drawn, folds
from .multi_label import as_text
from .split_files import cases_tested_by, given_groups, name_in, own_groups, sides_of, tested_on

CONTENT = "content_sha256"
MOST_QUANTILES = 5
"""Strata that a target is divided into, where there are cases enough for each."""
_SHOWN = 10
Split = dict[str, list[str]]


def make_splits(
    dataset: Dataset,
    rows: dict[str, dict[str, str]],
    splits_spec: dict,
    test_spec: dict,
    given: dict | list | None,
    data_root: str,
) -> dict[str, Any]:
    """Divide the labelled cases into splits and test groups.

    k-fold and hold-out divide the lists ``training`` and ``validation``, less what test groups take.

    Parameters
    ----------
    dataset, rows:
        The cases, and their rows of the table that the data check wrote.
    splits_spec, test_spec:
        The sections ``splits`` and ``test`` of an archive's configuration.
    given:
        Content of a split file for method ``file``: ``{"train": [...], "validation": [...], "test": [...]}``
        (two sides, or three of which ``test`` becomes a test group), a list of these (whose ``test`` becomes a group
        of each split where they differ), or a MONAI datalist with ``fold``.

    Returns
    -------
    dict
        Content of ``data/splits.json``: ``splits``, ``groups``, ``own_groups`` if there are any (by group the split that
        alone is tested on it), and ``cases``.

    Raises
    ------
    UserError
        For a request that cannot be met, unknown columns or names, or leakage between sides.
    """
    return _Splitter(with_test_lists(dataset, test_spec, data_root), rows, splits_spec).make(test_spec, given)


def datalist_of_split(splits: dict, k: int, facts: dict) -> dict[str, Any]:
    """The MMAR datalist of split ``k``; ``facts`` (``Dataset.header()``) come before its lists."""
    if not 0 <= k < len(splits["splits"]):
        raise UserError(f"split {k}: found splits 0 to {len(splits['splits']) - 1}, wanted one of them")
    split = splits["splits"][k]
    test = cases_tested_by(splits, k)
    lists = {TRAINING: split["train"], VALIDATION: split["validation"], TEST: test}
    counts = {f"num{key.capitalize()}": len(names) for key, names in lists.items()}
    return {
        **facts,
        **counts,
        **{key: [_entry(splits["cases"][n]) for n in names] for key, names in lists.items()},
    }


def _entry(case: dict) -> dict[str, Any]:
    images = case["image"]
    return {"image": images[0] if len(images) == 1 else images, "label": case["label"]}


class _Splitter:
    """A dataset's cases by name, sorted, and the columns that bind or balance them."""

    def __init__(self, dataset: Dataset, rows: dict[str, dict[str, str]], spec: dict):
        self.dataset, self.spec = dataset, spec
        self.cases = {c.case: c for c in sorted(dataset.cases, key=lambda c: c.case)}
        if unknown := [name for name in self.cases if name not in rows]:
            raise UserError(f"table of cases: found no row of {_some(unknown)}; check the dataset again")
        self.rows = rows
        self.label_names = {"label", dataset.spec.get("target") or TARGET}
        self.group_by, self.stratify_by = (
            list(spec.get("group_by") or ()),
            list(spec.get("stratify_by") or ()),
        )
        for option in ("group_by", "stratify_by"):
            self._check_columns(option, getattr(self, option))

    def make(self, test_spec: dict, given: Any) -> dict[str, Any]:
        method = self.spec["method"]
        makers = {"kfold": self._kfold, "holdout": self._holdout, "lists": self._lists}
        if method not in (*makers, "file"):
            raise UserError(f"splits.method: found {method!r}, wanted one of {', '.join([*makers, 'file'])}")
        groups, own = self._test_groups(test_spec["groups"], method), {}
        if method == "file":
            splits, groups, own = self._given(given, groups)
        else:
            taken = {name for names in groups.values() for name in names}
            splits = makers[method]([c for c in self._labelled(TRAINING, VALIDATION) if c.case not in taken])
        self._check(splits, groups, own)
        used = {name for sides in (*splits, groups) for names in sides.values() for name in names}
        return {
            "splits": splits,
            "groups": groups,
            **({"own_groups": own} if own else {}),
            "cases": {n: _record(self.cases[n]) for n in sorted(used)},
        }

    # ---- methods

    def _kfold(self, pool: list[Case]) -> list[Split]:
        import numpy as np
        from sklearn import model_selection as ms

        n, groups = self.spec["n_splits"], self._groups(pool)
        if isinstance(n, bool) or not isinstance(n, int) or n < 2:
            raise UserError(f"splits.n_splits: found {n!r}, wanted a whole number of at least 2")
        found = len(set(groups))
        if found < n:
            raise UserError(
                f"splits.n_splits: found {n}, wanted at most {found}: the {len(pool)} cases form {found} groups that must stay together"
            )
        if self._has_several_classes(pool):
            ids, divided = self._divisible(pool, groups, n)
            fold_of = dict(zip(ids, folds(divided, n, f"{self.spec['seed']} folds"), strict=True))
            return [
                _sides(pool, {c.case for c, g in zip(pool, groups, strict=True) if fold_of[g] == k}) for k in range(n)
            ]
        strata = self._strata(pool, groups, n)
        kind = "Stratified" if self.stratify_by else ""
        if found < len(pool):
            # With one stratum it balances group sizes, which a shuffled GroupKFold does not.
            kind = "StratifiedGroup"
        folder = getattr(ms, f"{kind}KFold")(n, shuffle=True, random_state=self.spec["seed"])
        indices = np.unique(strata, return_inverse=True)[1]
        return [
            {"train": [pool[i].case for i in train], "validation": [pool[i].case for i in validation]}
            for train, validation in folder.split(np.zeros(len(pool)), indices, groups if found < len(pool) else None)
        ]

    def _holdout(self, pool: list[Case]) -> list[Split]:
        return [_sides(pool, self._draw(pool, self.spec["holdout"], len(pool), "splits.holdout"))]

    def _lists(self, pool: list[Case]) -> list[Split]:
        by_list = {s: [c.case for c in pool if c.subset == s] for s in (TRAINING, VALIDATION)}
        if not by_list[VALIDATION]:
            raise UserError(
                f"{self.dataset.source}: found no cases in the list 'validation', wanted some for splits.method: lists"
            )
        return [{"train": by_list[TRAINING], "validation": by_list[VALIDATION]}]

    def _given(self, given: Any, groups: Split) -> tuple[list[Split], Split, dict[str, int]]:
        if not given:
            raise UserError("splits.method is 'file': found no split file (or an empty one), wanted one with the names")
        given = given["splits"] if isinstance(given, dict) and "splits" in given else given
        names, problems = self._given_names(), []
        splits, tests = [], []
        given = sides_of(given)
        for k, sides in enumerate(given):
            resolved = {side: self._resolve(k, side, entries, names, problems) for side, entries in sides.items()}
            tests.append(sorted(resolved.pop("test", [])))
            listed = [name for side in (*resolved.values(), tests[-1]) for name in side]
            if repeated := [name for name, times in Counter(listed).items() if times > 1]:
                problems.append(f"split {k}: found {_some(repeated)} more than once, wanted each case once")
            known = {*listed, *(name for members in groups.values() for name in members)}
            if missing := [c.case for c in self._labelled(TRAINING, VALIDATION) if c.case not in known]:
                problems.append(f"split {k}: found no side for {_some(missing)}; add them, or take them off the list")
            splits.append({side: sorted(members) for side, members in resolved.items()})
        brought = given_groups(given)
        problems += [
            f"found a test side, but the configuration has a test group {name!r} too; rename that group"
            for name in brought
            if name in groups
        ]
        if problems:
            raise Problems("split file", problems)
        own = own_groups(brought)
        return splits, {**groups, **{name: tests[own.get(name, 0)] for name in brought}}, own

    def _given_names(self) -> dict[str, str]:
        """Every way to name a case: its name, its image relative to the data root or to its list."""
        folder, names = posixpath.dirname(self.dataset.source), {}
        for case in self.cases.values():
            image = case.images[0]
            names |= {image: case.case, posixpath.relpath(image, folder or "."): case.case}
        return names | {name: name for name in self.cases}

    def _resolve(self, k: int, side: str, entries: list, names: dict, problems: list[str]) -> list[str]:
        texts = [name_in(entry) for entry in entries]
        found = {text: names.get(text) or names.get(posixpath.normpath(text)) for text in texts}
        if unknown := [text for text in found if not found[text]]:
            problems.append(f"split {k}: {side}: found unknown {_some(unknown)}, wanted names of cases or images")
        result = [found[text] for text in texts if found[text]]
        if bare := [name for name in result if self.cases[name].label is None]:
            problems.append(f"split {k}: {side}: found no label of {_some(bare)}, wanted labelled cases")
        return result

    # ---- test groups

    def _test_groups(self, spec: dict, method: str) -> Split:
        groups: Split = {}
        for name, group in spec.items():
            if len(group) != 1 or not group.keys() <= {"from", "list", "count", "fraction"}:
                raise UserError(f"test group {name!r}: found {group}, wanted one of from, list, count, fraction")
            if "from" in group:
                groups[name] = self._from_list(name, group["from"])
            elif "list" in group:
                path = posixpath.normpath(group["list"])
                groups[name] = [c.case for c in self.cases.values() if c.subset == path]
        taken = {name for names in groups.values() for name in names}
        # 'lists' keeps the validation list whole: only training cases are drawn from it.
        subsets = (TRAINING,) if method == "lists" else (TRAINING, VALIDATION)
        pool = [c for c in self._labelled(*subsets) if c.case not in taken]
        total = len(pool)
        for name, group in spec.items():
            size = group.get("count", group.get("fraction"))
            if size is None:
                continue
            if method == "file":
                raise UserError(f"test group {name!r}: cannot be drawn from given splits; give it in the split file")
            drawn = self._draw(pool, size, total, f"test group {name!r}")
            groups[name] = sorted(drawn)
            pool = [c for c in pool if c.case not in drawn]
        return {name: groups[name] for name in spec}

    def _from_list(self, name: str, subset: str) -> list[str]:
        cases = [c for c in self.cases.values() if c.subset == SUBSETS.get(subset, subset)]
        if not cases:
            raise UserError(f"test group {name!r}: found no cases in list {subset!r} of {self.dataset.source}")
        if bare := [c.case for c in cases if c.label is None]:
            raise UserError(
                f"test group {name!r}: {len(bare)} of {len(cases)} cases of list {subset!r} have no label "
                f"({_some(bare)}) and cannot be scored; label them, or draw the group by 'count'"
            )
        return [c.case for c in cases]

    # ---- drawing whole groups

    def _draw(self, pool: list[Case], size: Any, total: int, what: str) -> set[str]:
        """Draw whole groups: exactly ``size`` cases, or as near the fraction of ``total`` as they allow."""
        fraction = isinstance(size, float) and 0 < size < 1
        if isinstance(size, bool) or not (fraction or (isinstance(size, int) and size > 0)):
            raise UserError(f"{what}: found {size!r}, wanted a number of cases, or a fraction between 0 and 1")
        count = round(size * total) if fraction else size
        ids = self._groups(pool)
        if self._has_several_classes(pool):
            return self._draw_balanced(pool, ids, count, fraction, what)
        strata = self._strata(pool, ids, 2)
        members, kinds = defaultdict(list), defaultdict(Counter)
        for case, group, stratum in zip(pool, ids, strata, strict=True):
            members[group].append(case.case)
            kinds[group][stratum] += 1
        # A mixed group counts for the stratum that most of its cases have.
        types = defaultdict(list)
        for group, names in members.items():
            types[min(kinds[group], key=lambda s: (-kinds[group][s], s)), len(names)].append(names)
        count = possible_count(reachable(types)[-1], count, len(pool), fraction, what)
        rng = random.Random(f"{self.spec['seed']} {what}")
        chosen = counts_by_type(types, count)
        return {n for key in sorted(types) for names in rng.sample(types[key], chosen[key]) for n in names}

    def _draw_balanced(self, pool: list[Case], ids: list[int], count: int, fraction: bool, what: str) -> set[str]:
        """The same where cases have several classes."""
        groups, divisible = self._divisible(pool, ids, 2)
        sizes: dict[tuple[str, int], list] = defaultdict(list)
        for group, (size, _) in zip(groups, divisible, strict=True):
            sizes["", size].append([group])
        count = possible_count(reachable(sizes)[-1], count, len(pool), fraction, what)
        chosen = drawn(divisible, count, f"{self.spec['seed']} {what}")
        taken = {group for group, is_drawn in zip(groups, chosen, strict=True) if is_drawn}
        return {c.case for c, group in zip(pool, ids, strict=True) if group in taken}

    def _has_several_classes(self, cases: list[Case]) -> bool:
        """Whether what is balanced are classes that a case may have together."""
        return any(isinstance(c.label, tuple) and self._is_label(c, s) for s in self.stratify_by for c in cases)

    def _divisible(self, cases: list[Case], ids: list[int], least: int) -> tuple[list[int], list[Group]]:
        """The groups by number, and of each its size and what is balanced: classes, values of other columns.

        Raises
        ------
        UserError
            If fewer than ``least`` groups have one of these.
        """
        sizes, traits = Counter(ids), defaultdict(Counter)
        for case, group in zip(cases, ids, strict=True):
            traits[group].update(trait for column in self.stratify_by for trait in self._traits(case, column))
        having = Counter(trait for of_group in traits.values() for trait in of_group)
        having = dict.fromkeys(self.dataset.labels.values(), 0) | having
        if rare := [f"{trait!r} ({n})" for trait, n in sorted(having.items()) if n < least]:
            raise UserError(
                f"splits.stratify_by {self.stratify_by}: found fewer than {least} groups of cases that have: {_some(rare)}; lower "
                "splits.n_splits, stratify by less, or leave these classes out"
            )
        return list(sizes), [(size, traits[group]) for group, size in sizes.items()]

    def _traits(self, case: Case, column: str) -> list[str]:
        if self._is_label(case, column):
            return [self.dataset.labels[i] for i, has in enumerate(case.label) if has]
        return [f"{column} {self._value(case, column)}"]

    def _groups(self, cases: Sequence[Case]) -> list[int]:
        """For each case the number of its group: connected by participant, ``group_by`` values or voxels."""
        parent = list(range(len(cases)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = i = parent[parent[i]]
            return i

        first: dict[tuple[str, str], int] = {}
        for i, case in enumerate(cases):
            for column in ("participant_id", *self.group_by, CONTENT):
                a, b = root(first.setdefault((column, self._value(case, column)), i)), root(i)
                parent[max(a, b)] = min(a, b)
        return [root(i) for i in range(len(cases))]

    def _strata(self, cases: list[Case], groups: list[int], least: int) -> list[str]:
        columns = [self._kinds(cases, column, len(set(groups)), least) for column in self.stratify_by]
        strata = [" / ".join(values) for values in zip(*columns, strict=True)] if columns else [""] * len(cases)
        spread = defaultdict(set)
        for stratum, group in zip(strata, groups, strict=True):
            spread[stratum].add(group)
        if small := [f"{s!r} ({len(g)})" for s, g in sorted(spread.items()) if len(g) < least and self.stratify_by]:
            raise UserError(
                f"splits.stratify_by {self.stratify_by}: found strata with fewer than {least} groups of "
                f"cases: {_some(small)}; lower splits.n_splits, stratify by less, or merge strata (dataset.columns bins "
                "numbers)"
            )
        return strata

    def _kinds(self, cases: list[Case], column: str, groups: int, least: int) -> list[str]:
        """For each case what is to be balanced: its value, of a number that is learnt the quantile it lies in.

        Each quantile holds at least ``least`` of the cases' ``groups``, if all are of one size; equal numbers are
        never divided.
        """
        if not all(self._is_label(c, column) and isinstance(c.label, float) for c in cases):
            return [self._value(c, column) for c in cases]
        count = min(MOST_QUANTILES, groups // least)
        if count < 2:
            raise UserError(
                f"splits.stratify_by: {column!r} is a number and is stratified by its quantiles: found {groups} groups of "
                f"cases, wanted at least {2 * least} for two quantiles; lower splits.n_splits, or leave it out"
            )
        ordered = sorted(c.label for c in cases)
        limits = [ordered[k * len(ordered) // count] for k in range(1, count)]
        return [f"{column} quantile {bisect_right(limits, c.label) + 1} of {count}" for c in cases]

    # ---- columns

    def _check_columns(self, option: str, columns: list[str]) -> None:
        for column in columns:
            lacking = [c for c in self._labelled(TRAINING, VALIDATION) if self._value(c, column, "") in UNLABELLED]
            if not lacking:
                continue
            some = next(iter(self.cases.values()))
            available = sorted(
                {"participant_id", "session_id", *some.columns, *self.rows[some.case]} | self.label_names
            )
            if column not in available:
                raise UserError(f"splits.{option}: found {column!r}, wanted columns among {', '.join(available)}")
            raise UserError(
                f"splits.{option}: column {column!r} is empty for {_some([c.case for c in lacking])}; fill it in"
            )

    def _value(self, case: Case, column: str, default: str | None = None) -> str:
        if column in ("participant_id", "session_id", "subset"):
            return getattr(case, column)
        if self._is_label(case, column) and not isinstance(case.label, str | None):
            return as_text(case.label) if isinstance(case.label, tuple) else str(case.label)
        value = case.columns.get(column) or self.rows[case.case].get(column) or default
        if value is None:
            raise UserError(f"table of cases: found no {column!r} of case {case.case}; check the dataset again")
        return value

    def _is_label(self, case: Case, column: str) -> bool:
        return column in self.label_names and (column == "label" or column not in case.columns)

    def _labelled(self, *subsets: str) -> list[Case]:
        return [c for c in self.cases.values() if c.subset in subsets and c.label is not None]

    # ---- invariants

    def _check(self, splits: list[Split], groups: Split, own: dict[str, int]) -> None:
        """Every side has cases, and no two sides that must be strangers share anybody."""
        problems = [f"test group {name!r}: found no cases, wanted some" for name, g in groups.items() if not g]
        for k, split in enumerate(splits):
            problems += [f"split {k}: {side}: found no cases, wanted some" for side, s in split.items() if not s]
            tests = {f"test group {name!r}": groups[name] for name in tested_on(k, groups, own)}
            sides = {**split, **tests}
            for a, b in [("train", "validation"), *((side, test) for side in split for test in tests)]:
                problems += [f"split {k}: {text}" for text in self._leaks(a, sides[a], b, sides[b])]
        if problems:
            raise Problems("splits", problems)

    def _leaks(self, a: str, left: list[str], b: str, right: list[str]) -> Iterable[str]:
        for column in ("participant_id", *self.group_by, CONTENT):
            shared = self._values(left, column).keys() & (values := self._values(right, column)).keys()
            if shared:
                people = sorted({p for value in shared for p in (values[value] | self._values(left, column)[value])})
                reason = {"participant_id": "", CONTENT: " (identical images)"}.get(column, f" (same {column})")
                yield f"{a} and {b} share participants {_some(people)}{reason}, wanted each on one side"

    def _values(self, names: list[str], column: str) -> dict[str, set[str]]:
        """Participants by value; cases of other lists have no ``group_by`` columns to compare."""
        found = defaultdict(set)
        for case in (self.cases[name] for name in names):
            foreign = case.subset not in (TRAINING, VALIDATION, TEST) and column in self.group_by
            if not foreign and (value := self._value(case, column, "")):
                found[value].add(case.participant_id)
        return found


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _sides(pool: list[Case], validation: set[str]) -> Split:
    return {"train": [c.case for c in pool if c.case not in validation], "validation": sorted(validation)}


def _record(case: Case) -> dict[str, Any]:
    return {
        "participant_id": case.participant_id,
        "session_id": case.session_id,
        "image": list(case.images),
        "label": list(case.label) if isinstance(case.label, tuple) else case.label,
        "columns": case.columns,
    }
