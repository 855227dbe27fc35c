"""Columns made from other columns, for grouping and stratifying."""

from __future__ import annotations

import re
from dataclasses import replace

from .errors import UserError


def derive_columns(cases: list, columns: dict, problems: list[str]) -> list:
    """Add to every case the columns that the configuration derives from its name or its other columns.

    A value that cannot be derived is added to ``problems``, and its case left out.
    """
    for name, spec in columns.items():
        fields = ("case", "participant_id", "session_id", "subset")
        available = [*fields, *(cases[0].columns if cases else ())]
        if cases and (spec["from"] not in available or name in available):
            raise UserError(
                f"dataset.columns.{name}: found from: {spec['from']!r}, wanted one of {', '.join(available)}, and a name that none of them has"
            )
        try:
            pattern = re.compile(spec["pattern"])
        except re.error as error:
            raise UserError(f"dataset.columns.{name}: pattern {spec['pattern']!r}: {error}") from None
        if pattern.groups != 1:
            raise UserError(
                f"dataset.columns.{name}: found {pattern.groups} groups in pattern {spec['pattern']!r}, wanted one (…)"
            )
        derived = []
        for case in cases:
            value = getattr(case, spec["from"]) if spec["from"] in fields else case.columns.get(spec["from"], "")
            try:
                columns_of_case = {**case.columns, name: _derived(value, pattern, spec)}
            except ValueError as error:
                problems.append(f"case {case.case}: column {name!r}: {spec['from']} {value!r} {error}")
                continue
            derived.append(replace(case, columns=columns_of_case))
        cases = derived
    return cases


def _derived(value: str, pattern: re.Pattern, spec: dict) -> str:
    match = pattern.search(value)
    if not match or match[1] is None:
        raise ValueError(f"does not match pattern {spec['pattern']!r}; mend the pattern or the case")
    if not spec.get("bin"):
        return match[1]
    if not re.fullmatch(r"-?\d+", match[1]):
        raise ValueError(f"gives {match[1]!r} by pattern {spec['pattern']!r}, wanted a whole number to bin")
    return str((int(match[1]) - (spec.get("start") or 0)) // int(spec["bin"]))
