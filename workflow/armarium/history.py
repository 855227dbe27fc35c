"""What a training remembers beside weights and optimizer."""

from __future__ import annotations

import math
import resource
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields


@dataclass
class Progress:
    """All that a training remembers beside weights and optimizer; plain values, so it loads safely."""

    epoch: int = 0
    stopped_early: bool = False
    best: dict = field(default_factory=dict)
    stop_at: float = math.nan
    without_gain: int = 0
    losses: list = field(default_factory=list)
    rates: list = field(default_factory=list)
    history: dict = field(default_factory=lambda: {"aggregated": [], "details": [], "classes": [], "class_details": []})
    timing: list = field(default_factory=list)
    warnings: list = field(default_factory=list)

    @classmethod
    def of(cls, saved: dict) -> Progress:
        """What was saved, if it is a training's progress: epochs become parts of paths.

        Raises
        ------
        TypeError
            If it is not.
        """
        progress = cls(**saved)
        epochs = [progress.epoch, *(b["epoch"] for b in progress.best.values())]
        kinds = {f.name: type(getattr(cls(), f.name)) for f in fields(cls)}
        if not all(type(e) is int for e in epochs) or any(type(v) is not kinds[k] for k, v in vars(progress).items()):
            raise TypeError("a progress of other values than a training's")
        return progress

    def epochs_to_keep(self, listed: Sequence[int]) -> set[int]:
        """Epochs whose weights a rule may select, as known so far."""
        kept = {b["epoch"] for b in self.best.values()} | {e for e in listed if e <= self.epoch}
        return kept | {self.epoch}


def better(value: float, best: float, mode: str, margin: float = 0.0) -> bool:
    """Whether ``value`` beats ``best`` by more than ``margin``; an undefined value never does."""
    if math.isnan(value):
        return False
    return math.isnan(best) or (value > best + margin if mode == "max" else value < best - margin)


def peak_memory_mib() -> float:
    """The process's largest resident size so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class CollectedWarnings:
    """Append every distinct warning to a list, and show it once."""

    def __init__(self, into: list[str]):
        self.into = into

    def __enter__(self):
        self.manager = warnings.catch_warnings()
        self.manager.__enter__()
        warnings.simplefilter("default")
        warnings.showwarning = self._take

    def _take(self, message, category, *_, **__):
        line = f"{category.__name__}: {' '.join(str(message).split())}"
        if line not in self.into:
            self.into.append(line)

    def __exit__(self, *error):
        self.manager.__exit__(*error)
