"""Errors that are the user's to mend: shown as one clear message, never as a traceback."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_LINE = 2000


class UserError(Exception):
    """A mistake in input: says the file, the value found, the value wanted and what to do.

    What it quotes may be a stranger's: control characters, which a terminal would obey, are shown as escapes, and
    endless lines are cut.
    """

    def __init__(self, message: str = ""):
        super().__init__("\n".join(map(shown, message.split("\n"))))


def shown(line: str) -> str:
    """A stranger's line as a terminal may have it."""
    cut = line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}… ({len(line):,} characters)"
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in cut)


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
