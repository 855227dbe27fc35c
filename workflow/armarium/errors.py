"""Errors that are the user's to mend: shown as one clear message, never as a traceback."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """A mistake in input: says the file, the value found, the value wanted and what to do."""


class Problems(UserError):
    """Everything wrong with one input, reported together.

    Parameters
    ----------
    title:
        What was being checked.
    problems:
        One message each; at least one.
    """

    def __init__(self, title: str, problems: Iterable[str]):
        self.problems = list(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}"
        super().__init__("\n".join([f"{title}: {count}", *(f"  - {p}" for p in self.problems)]))
