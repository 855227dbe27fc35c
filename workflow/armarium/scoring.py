"""How a recipe scores: its metrics, which value of each is best, and when training stops early. No torch."""

from __future__ import annotations

import re
from typing import Any

from .config import nearest, typed
from .errors import UserError
from .forms import refuse_references, stops_by, without_output_transform
from .grammar import is_active, read_component

METRIC_NAME = re.compile(r"[A-Za-z0-9]+")
SMALLER_IS_BETTER = {
    "loss",
    "CalibrationError",
    "HausdorffDistance",
    "SurfaceDistance",
    "MeanSquaredError",
    "MeanAbsoluteError",
    "RootMeanSquaredError",
    "CanberraMetric",
    "FractionalAbsoluteError",
    "GeometricMeanAbsoluteError",
    "GeometricMeanRelativeAbsoluteError",
    "ManhattanDistance",
    "MaximumAbsoluteError",
    "MeanAbsoluteRelativeError",
    "MedianAbsoluteError",
    "MedianAbsolutePercentageError",
    "MedianRelativeAbsoluteError",
    "WaveHedgesDistance",
}
BEST_NEAR_ZERO = {"FractionalBias", "MeanError", "MeanNormalizedBias"}
"""Signed errors, of which neither the smallest nor the largest is best."""


def metric_name(component: dict) -> str:
    """A metric's name in tables and paths: its label if that has only letters and digits, else its class."""
    label = str(component.get("log_label", ""))
    name = label if METRIC_NAME.fullmatch(label) else component.get("name", component.get("path", "").rsplit(".")[-1])
    if not METRIC_NAME.fullmatch(name):
        raise UserError(f"metric '{name}': wanted letters and digits only (MAPS paths); give it such a log_label")
    return name


def _metric(raw: Any, where: str) -> dict:
    component = without_output_transform(read_component(raw, f"{where}.key_metric"), f"{where}.key_metric")
    refuse_references(component["args"], f"{where}.key_metric.args")
    name = metric_name(raw)
    if "mode" not in raw and raw.get("name") in BEST_NEAR_ZERO:
        raise UserError(
            f"{where}: metric {name}: its best value is 0, so neither the smallest nor the largest is kept; take an error "
            "without sign, or say min or max as its mode"
        )
    mode = raw.get("mode", "min" if {name, raw.get("name")} & SMALLER_IS_BETTER else "max")
    if mode not in ("min", "max"):
        raise UserError(f"{where}: metric {name}: mode is {mode!r}; wanted min or max")
    return {"label": name, "mode": mode, **component}


def _listed_metrics(section: dict) -> tuple[list, list]:
    """The key metrics, Clara 4.0's marked one first, and the additional ones."""
    keyed, extra = section.get("key_metric", section.get("metrics")) or [], section.get("additional_metrics") or []
    keyed, extra = (
        [m for m in (part if isinstance(part, list) else [part]) if is_active(m)] for part in (keyed, extra)
    )
    return sorted(keyed, key=lambda raw: not (isinstance(raw, dict) and raw.get("is_key_metric"))), extra


def read_metrics(section: dict, where: str) -> list[dict]:
    """A section's metrics with ``label`` and ``mode``, the key metric first.

    Raises
    ------
    UserError
        If there is no key metric, two have one name, or one cannot be read.
    """
    keyed, extra = _listed_metrics(section)
    if not keyed:
        raise UserError(f"{where}: no key_metric; checkpoints are selected by one")
    found = [_metric(raw, where) for raw in (*keyed, *extra)]
    labels = [m["label"] for m in found]
    repeated = {x for x in labels if labels.count(x) > 1 or x == "loss"}
    if repeated:
        raise UserError(
            f"{where}: two metrics are named {sorted(repeated)}; give each its own log_label of letters and digits"
        )
    return found


def early_stopping(args: dict | None, validate: dict, source: str) -> dict | None:
    """What an EarlyStopHandler asks for, checked before anything is trained."""
    if args is None:
        return None
    where = f"{source} EarlyStopHandler"
    patience = typed("patience", args.get("patience"), 1, where)
    margin = typed("min_delta", args.get("min_delta", 0.0), 0.0, where)
    if patience < 1 or margin < 0:
        raise UserError(f"{where}: patience is {patience}, min_delta is {margin}; wanted at least 1 and at least 0")
    metrics = [raw for part in _listed_metrics(validate) for raw in part]
    names = {str(raw.get("log_label", "")): metric_name(raw) for raw in metrics}
    names |= {name: name for name in ("loss", *names.values())}
    metric = args.get("metric") or stops_by(args.get("score_function"))
    if metric and metric not in names:
        raise UserError(f"{where}: no metric {metric!r}; {nearest(metric, [name for name in names if name])}")
    return {"patience": patience, "min_delta": margin, **({"metric": names[metric]} if metric else {})}
