"""The MMAR face: the reports in eval/, as Clara Train 4 and MONAI lay them out. No torch.

Writers return the paths they wrote.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from . import layout
from .configure import read_effective
from .errors import UserError
from .files import write_text
from .split_files import read_splits
from .tables import read_tsv, tsv
from .zips import zip_member


def _eval_table(archive: str, by: str, name: str) -> list[dict[str, str]]:
    path = layout.eval_zip(archive, by)
    try:
        return read_tsv(zip_member(path, name).decode(errors="replace"), f"{path}: {name}")
    except FileNotFoundError:
        raise UserError(
            f"{path}: file not found; evaluate {'the ' + by.strip('/') if by else 'the published model'} first"
        ) from None


def _number(cell: str | None) -> float:
    return float("nan") if cell in (None, "", "n/a") else float(cell)


def _cell(value: float) -> str:
    """As a csv reader takes for a number: an undefined value is nan."""
    return repr(value)


def write_eval_metrics(archive: str, by: str = "") -> list[str]:
    """``eval/metrics.csv``: ``name,value`` for each metric of the published model; no header, as MMAR's."""
    row = _eval_table(archive, by, "aggregated.tsv")[0]
    text = "".join(f"{name},{_cell(_number(value))}\n" for name, value in row.items())
    write_text(layout.eval_metrics_csv(archive, by), text)
    return [layout.eval_metrics_csv(archive, by)]


def _key_metric(archive: str) -> str:
    return read_effective(archive, "train")["validate"]["metrics"][0]["label"]


def _image_names(archive: str) -> dict[tuple[str, str], str]:
    cases = read_splits(layout.splits_json(archive))["cases"]
    return {(c["participant_id"], c["session_id"]): c["image"][0] for c in cases.values()}


def _values_by_image(archive: str, by: str, metric: str) -> tuple[list[str], dict[str, dict[str, float]]]:
    """The class names in order, and each image's value of each class."""
    rows, images = _eval_table(archive, by, "class_details.tsv"), _image_names(archive)
    if not rows or metric not in rows[0]:
        raise UserError(
            f"{layout.eval_zip(archive, by)}: no {metric} per class; these tables need a key metric per case"
        )
    values: dict[str, dict[str, float]] = {}
    for row in rows:
        image = images[row["participant_id"], row["session_id"]]
        values.setdefault(image, {})[row["name"]] = _number(row[metric])
    return list(dict.fromkeys(r["name"] for r in rows)), values


def write_eval_dice_tables(archive: str, by: str = "") -> list[str]:
    """``eval/val_mean_dice_raw.csv`` and ``_summary.csv``: the key metric by image and class.

    Percentiles are linearly interpolated; ``std`` is that of the population; undefined values are counted
    and left out.
    """
    raw, summary = layout.eval_dice_tables(archive, by)
    classes, values = _values_by_image(archive, by, _key_metric(archive))
    rows = [
        {**by_class, "mean": _mean([by_class[c] for c in classes if c in by_class])} for by_class in values.values()
    ]
    columns = [*classes, "mean"]
    table = [
        {"filename": image, **{c: _cell(row.get(c, float("nan"))) for c in columns}}
        for image, row in zip(values, rows, strict=True)
    ]
    write_text(raw, tsv(["filename", *columns], table, ","))
    write_text(
        summary,
        tsv(
            ["class", *SUMMARY],
            ({"class": c, **_summary([r.get(c, float("nan")) for r in rows])} for c in columns),
            ",",
        ),
    )
    return [raw, summary]


SUMMARY = ("mean", "median", "max", "5percentile", "95percentile", "std", "defined", "undefined")


def _defined(values: Sequence[float]) -> list[float]:
    return [v for v in values if not math.isnan(v)]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(_defined(values)) if _defined(values) else float("nan")


def _percentile(values: Sequence[float], percent: float) -> float:
    """As ``numpy.percentile``'s default."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * percent / 100
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def _summary(values: Sequence[float]) -> dict:
    known = _defined(values)
    counts = {"defined": len(known), "undefined": len(values) - len(known)}
    if not known:
        return {**dict.fromkeys(SUMMARY, "nan"), **counts}
    numbers = (
        statistics.fmean(known),
        statistics.median(known),
        max(known),
        _percentile(known, 5),
        _percentile(known, 95),
        statistics.pstdev(known),
    )
    return {**dict(zip(SUMMARY, map(_cell, numbers), strict=False)), **counts}
