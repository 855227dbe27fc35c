"""Tab-separated tables, written the same to the byte every time. No pandas: cheap steps copy these."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

UNDEFINED = "n/a"
"""As in BIDS; pandas reads it as NaN."""


def cell(value: Any) -> str:
    """One value as text; floats so that reading gives the same float."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return UNDEFINED
    return repr(value) if isinstance(value, float) else str(value)


def tsv(columns: Sequence[str], rows: Iterable[dict], separator: str = "\t") -> str:
    """A table as text.

    Parameters
    ----------
    columns:
        Names, in order.
    rows:
        One dict each; a column it lacks is undefined.
    separator:
        A comma for MMAR's csv reports.
    """
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell(row.get(c)) for c in columns] for row in rows)
    return out.getvalue()


def read_tsv(text: str, separator: str = "\t") -> list[dict[str, str]]:
    """The rows of a table; values stay text."""
    return list(csv.DictReader(io.StringIO(text), delimiter=separator))
