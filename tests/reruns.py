"""The tables of docs/reruns.md: which rules an edit reruns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/reruns.md"
MANIFEST = "write_manifest"


@dataclass(frozen=True)
class Row:
    """An edit, whether it trains again, and the rules that run; None where it is refused."""

    edit: str
    trains: bool
    rules: frozenset[str] | None


def table() -> dict[str, Row]:
    """Every row by its edit's name, that of its section before it: ``archives.NAME.dataset.list``."""
    found: dict[str, Row] = {}
    sets = rule_sets()
    for section, cells in _rows("Edit"):
        first, trains, runs = cells
        names = re.findall(r"`([\w.]+)`", first.partition(":")[0]) if first.startswith("`") else [first]
        for name in names:
            name = f"{section}.{name}".lstrip(".")
            assert name not in found and trains in ("yes", "no"), first
            found[name] = Row(name, trains == "yes", _meant(runs, sets))
    return found


def rule_sets() -> dict[str, frozenset[str]]:
    """The named sets of rules; one may name those above it."""
    sets: dict[str, frozenset[str]] = {}
    for _, (name, rules) in _rows("Set"):
        sets[name] = _named(rules, sets)
    return sets


def _meant(runs: str, sets: dict[str, frozenset[str]]) -> frozenset[str] | None:
    """The rules that a cell of the last column names; a remark follows its semicolon."""
    runs = runs.partition(";")[0]
    if runs in ("nothing", "refused"):
        return frozenset() if runs == "nothing" else None
    return _named(runs, sets) | {MANIFEST}


def _named(cell: str, sets: dict[str, frozenset[str]]) -> frozenset[str]:
    """Rules and sets, separated by commas."""
    items = cell.split(", ")
    return frozenset().union(*({item.strip("`")} if item.startswith("`") else sets[item] for item in items))


def _rows(first_column: str):
    """Section and cells of every row of the tables that begin with ``first_column``."""
    section, reading = "", False
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            section = "".join(re.findall(r"`(.+)`", line))
        cells = [c.strip() for c in line.strip("|").split("|")]
        if not line.startswith("|"):
            reading = False
        elif cells[0] == first_column:
            reading = True
        elif reading and not line.startswith("|-"):
            yield section, cells
