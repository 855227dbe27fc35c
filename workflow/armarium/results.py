"""Results over splits: every checkpoint's metrics, their mean and their standard deviation. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from . import layout
from .errors import UserError
from .files import read_text
from .tables import UNDEFINED, read_tsv

if TYPE_CHECKING:
    import pandas

VALIDATION = "validation"
OWN = ""
"""The name under which the groups that single splits are tested on are one set of results."""
INDEX = ["checkpoint", "cases", "metric"]


@dataclass(frozen=True)
class Result:
    """One checkpoint on one set of cases.

    Attributes
    ----------
    checkpoint, cases:
        Such as ``best-loss``; ``validation``, ``test GROUP``, or ``test``: each split's own group.
    metrics:
        By metric the value of each split that has one (NaN where undefined).
    """

    checkpoint: str
    cases: str
    metrics: dict[str, dict[int, float]]


def results_of(
    archive: str, checkpoints: Iterable[str], groups: Iterable[str], own: Mapping[str, int], splits: Sequence[int]
) -> list[Result]:
    """Read the aggregated tables of every checkpoint: validation first, then each test group.

    ``own`` names the split of each group that it alone is tested on; these are one set together.

    Raises
    ------
    UserError
        If one is not a table as this workflow writes it.
    """
    found, tested = [], sets_tested(groups, own, splits)
    for c in checkpoints:
        tables = {k: layout.checkpoint_tables(layout.checkpoint_dir(archive, k, c))[0] for k in splits}
        found.append(Result(c, VALIDATION, _over_splits(tables)))
        for name, by_split in tested.items():
            tables = {k: layout.result_tables(layout.result_dir(archive, g, k, c))[0] for k, g in by_split.items()}
            found.append(Result(c, f"test {name}".rstrip(), _over_splits(tables)))
    return found


def sets_tested(groups: Iterable[str], own: Mapping[str, int], splits: Sequence[int]) -> dict[str, dict[int, str]]:
    """By group, or ``OWN`` for the splits' ``own`` ones together: each split's group."""
    found: dict[str, dict[int, str]] = {}
    for group in groups:
        tested = {k: group for k in splits if own.get(group, k) == k}
        found.setdefault(OWN if group in own else group, {}).update(tested)
    return found


def _over_splits(paths: dict[int, str]) -> dict[str, dict[int, float]]:
    present = {split: path for split, path in paths.items() if Path(path).is_file()}
    tables = {split: read_tsv(read_text(path), path) for split, path in present.items()}
    try:
        rows = {split: table[0] for split, table in tables.items()}
        metrics = [m for m in next(iter(rows.values()), {}) if m != "epoch"]
        return {m: {split: _value(row[m]) for split, row in rows.items()} for m in metrics}
    except (IndexError, KeyError, ValueError) as error:
        raise UserError(
            f"{', '.join(present.values())}: not the tables that this workflow writes ({error}); delete them to have them made again"
        ) from None


def _value(cell: str) -> float:
    return math.nan if cell == UNDEFINED else float(cell)


def mean_and_deviation(values: Iterable[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) over the values that are defined; NaN where there are too few."""
    defined = [v for v in values if not math.isnan(v)]
    return fmean(defined) if defined else math.nan, stdev(defined) if len(defined) > 1 else math.nan


def spread(values: Iterable[float], undefined: str = UNDEFINED) -> str:
    """The same in words; of a single value, that alone."""
    mean, deviation = mean_and_deviation(values)
    if math.isnan(mean):
        return undefined
    return f"{mean:.4f}" + ("" if math.isnan(deviation) else f" ± {deviation:.4f}")


def results_table(results: Iterable[Result], splits: Sequence[int]) -> pandas.DataFrame:
    """A row per checkpoint, set of cases and metric: the value of each split, ``mean`` and ``std``."""
    import pandas

    rows = [
        (
            r.checkpoint,
            r.cases,
            metric,
            *(values.get(k, math.nan) for k in splits),
            *mean_and_deviation(values.values()),
        )
        for r in results
        for metric, values in r.metrics.items()
    ]
    return pandas.DataFrame(rows, columns=[*INDEX, *(f"split-{k}" for k in splits), "mean", "std"]).set_index(INDEX)
