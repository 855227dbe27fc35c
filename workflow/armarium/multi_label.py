"""Classes that may occur together: a list of 0 and 1 for a case, or a channel for each class of a label file. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from .errors import UserError

SEPARATOR = ";"
"""Between a case's zeros and ones in tables, as between the files of several channels."""
_WRITTEN = re.compile(r"[01](\.0*)?")


def is_multi_label(spec: dict) -> bool:
    """Whether classes may occur together; of a dataset's section or of effective training settings."""
    return bool(spec.get("multi_label"))


def labels_of_case(label: Any, names: dict[int, str]) -> tuple[int, ...]:
    """0 or 1 for each class, from a list of numbers or from text such as ``0;1;1``.

    Raises
    ------
    ValueError
        If it is no such thing; the message says what was found and wanted.
    """
    given = label.strip("[] ").replace(",", SEPARATOR).split(SEPARATOR) if isinstance(label, str) else label
    found = [_zero_or_one(one) for one in given] if isinstance(given, list) else []
    if len(found) != len(names) or None in found:
        known = ", ".join(f"{i} {name}" for i, name in names.items())
        raise ValueError(
            f"label: found {label!r:.80}, wanted 0 or 1 for each of the {len(names)} classes ({known}), as [0, 1, …] or 0;1;…"
        )
    return tuple(found)


def _zero_or_one(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value.strip()[0]) if _WRITTEN.fullmatch(value.strip()) else None
    return int(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def as_text(label: Sequence[int]) -> str:
    """Such as ``0;1;1``."""
    return SEPARATOR.join(map(str, label))


def class_columns_of(spec: dict, header: list[str], path: str) -> list[str]:
    """The columns, named as the classes, that hold a case's zeros and ones where a table has no label column.

    Raises
    ------
    UserError
        If the configuration has no class names, or the table not all of these columns.
    """
    named = spec.get("labels") or {}
    names = [str(named[key]) for key in sorted(named, key=lambda k: int(k) if str(k).isdecimal() else -1)]
    if not names or any(name not in header for name in names):
        raise UserError(
            f"{path}: found columns {', '.join(header)}; wanted label, with 0 or 1 for each class as in 0;1;1, or a column "
            f"of 0 and 1 for each class of dataset.labels ({', '.join(names) or 'none given'})"
        )
    return names


def positives(labels: Iterable[Sequence[int]], names: dict[int, str]) -> dict[str, int]:
    """How many cases have each class, by its name."""
    listed = list(labels)
    return {name: sum(label[i] for label in listed) for i, name in names.items()}


def one_sided(sides: dict[str, list[dict]], names: dict[int, str]) -> list[str]:
    """Sentences on the classes that all cases of a side have, or none.

    Parameters
    ----------
    sides:
        Cases with their ``label`` by the side's name, such as ``validation``.
    names:
        Of the classes, by number.
    """
    lines = []
    for side, cases in sides.items():
        for name, count in positives((case["label"] for case in cases), names).items():
            if count in (0, len(cases)):
                effect = (
                    "its AUC and average precision are undefined" if side == "validation" else "it cannot be learnt"
                )
                lines.append(
                    f"class {name}: {count} of {len(cases)} {side} cases have it, wanted some with and some without: {effect}"
                )
    return lines


def label_fits(label: Any, of_files: bool, several: bool) -> bool:
    """Whether a case's label is a list where, and only where, cases of classes have several; no label fits everywhere."""
    return label is None or isinstance(label, list) == (several and not of_files)
