"""How sure the mean of a metric over cases is. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean

RESAMPLES = 1000
SURE = 0.95


def interval(values: Sequence[float], resamples: int = RESAMPLES) -> tuple[float, float] | None:
    """95 % interval of the mean by the percentile bootstrap (Efron 1979), cases drawn with replacement.

    The draws are seeded, so the same values give the same interval.

    Parameters
    ----------
    values:
        Of each case the metric, all defined.

    Returns
    -------
    The interval; None for fewer than two values.
    """
    if len(values) < 2:
        return None
    draw = random.Random(0)
    means = sorted(fmean(draw.choices(values, k=len(values))) for _ in range(resamples))
    cut = round(resamples * (1 - SURE) / 2)
    return means[cut], means[-1 - cut]
