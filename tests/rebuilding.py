"""The table of docs/rebuilding.md: what runs when a file of an archive is lost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/rebuilding.md"


@dataclass(frozen=True)
class Row:
    """A rule, and the pattern of each file that one job of it makes."""

    patterns: tuple[str, ...]
    rule: str

    def made_with(self, name: str) -> list[str] | None:
        """The files that one job makes, ``name`` among them; None where it is not of this row."""
        for pattern in self.patterns:
            if found := re.fullmatch(_expression(pattern), name):
                return [_filled(p, found.groupdict()) for p in self.patterns]
        return None


@cache
def table() -> list[Row]:
    """The rows as the document has them."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("| Lost this | Runs this |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| `(.+)` \| `(\w+)` \|$", text, re.M)
    assert len(cells) == len(text.splitlines()) - 2, "a row that cannot be read"
    return [Row(_together(lost), rule) for lost, rule in cells]


def cut_from_a_run() -> set[str]:
    """The rules whose jobs are repeated when a run is trained again."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("| Lost this | Cut again |")[2].partition("\n\n")[0]
    return set(re.findall(r"`(\w+)`", text))


def row_of(name: str) -> tuple[str, list[str]]:
    """The rule that makes a file, and what one job of it makes; the file is of one row and no more."""
    found = [(row.rule, files) for row in table() if (files := row.made_with(name))]
    assert len(found) == 1, f"{name} is of {len(found)} rows of {DOCUMENT.name}"
    return found[0]


def _together(lost: str) -> tuple[str, ...]:
    before, brace, rest = lost.partition("{")
    inside, _, after = rest.partition("}")
    return tuple(f"{before}{name}{after}" for name in inside.split(",")) if brace else (lost,)


def _expression(pattern: str) -> str:
    """A regular expression for a pattern; a name that comes again is the same."""
    seen: set[str] = set()

    def group(match: re.Match) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>{'.+' if name == 'kind' else '[^/]+'})"

    parts = re.split(r"(<\w+>)", pattern)
    return "".join(re.sub(r"<(\w+)>", group, p) if p.startswith("<") else re.escape(p) for p in parts)


def _filled(pattern: str, names: dict[str, str]) -> str:
    return re.sub(r"<(\w+)>", lambda match: names[match[1]], pattern)
