"""Tab-separated tables, written the same to the byte every time. No pandas: cheap steps copy these."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from .errors import UserError

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


def read_tsv(text: str, source: str = "table", separator: str = "\t") -> list[dict[str, str]]:
    """The rows of a table; values stay text.

    Raises
    ------
    UserError
        If ``source`` has rows of other lengths than its header, or no fields that fit into memory.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(text), delimiter=separator))
    except csv.Error as error:
        kind = "tab" if separator == "\t" else "comma"
        raise UserError(f"{source}: not a table of {kind}-separated values ({error})") from None
    if any(None in row or None in row.values() for row in rows):
        raise UserError(f"{source}: found rows of other lengths than the header; have it made again")
    return rows
