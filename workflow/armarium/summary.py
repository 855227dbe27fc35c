"""What an archive holds, for a person at a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean, stdev

from . import layout
from .configure import read_effective
from .errors import UserError
from .run import run_info
from .tables import UNDEFINED, read_tsv


def summary(archive: str) -> str:
    """Where the archive is, its results as mean and standard deviation over splits, and what to try next.

    Raises
    ------
    UserError
        If there is no complete archive.
    """
    if not Path(layout.manifest(archive)).is_file():
        raise UserError(
            f"{archive}: no complete archive (no manifest); build it with: snakemake --cores all {layout.manifest(archive)}"
        )
    splits = sorted(int(p.name.partition("-")[2]) for p in Path(archive, "training").glob("split-*"))
    part = read_effective(archive, "evaluate")
    rows = [row for c in part["checkpoints"] for row in _rows(archive, c, list(part["groups"]), splits)]
    best = part["checkpoints"][0]
    snakemake = _as_typed(Path(sys.executable).parent / "snakemake")
    lines = [
        f"archive: {archive} ({_trained(archive, splits)})",
        "",
        *_aligned(rows),
        "",
        "try next:",
        f"  rm {layout.published_ts(archive)} && {snakemake} --cores 2 {layout.published_ts(archive)}    # rebuilds that file, trains nothing",
        f"  {snakemake} --cores 2 --config set='{{epochs: 12}}'    # trains anew with another setting, which the archive keeps",
        f"  column -t -s $'\\t' {layout.checkpoint_tables(layout.checkpoint_dir(archive, splits[0], best))[1]}    # scores of every validation case",
    ]
    return "\n".join(lines)


def _as_typed(command: Path) -> str:
    """A command as one types it in this folder."""
    return str(command.relative_to(Path.cwd())) if command.is_relative_to(Path.cwd()) else command.name


def _trained(archive: str, splits: list[int]) -> str:
    infos = [run_info(layout.run_zip(archive, k)) for k in splits]
    epochs = sorted({i["epochs"] for i in infos})
    return f"{len(splits)} split{'s' if len(splits) > 1 else ''}, {'-'.join(map(str, epochs))} epochs, {infos[0]['parameters']} parameters"


def _rows(archive: str, checkpoint: str, groups: list[str], splits: list[int]) -> list[dict[str, str]]:
    sets = {"validation": [layout.checkpoint_tables(layout.checkpoint_dir(archive, k, checkpoint))[0] for k in splits]}
    for group in groups:
        sets[f"test {group}"] = [
            layout.result_tables(layout.result_dir(archive, group, k, checkpoint))[0] for k in splits
        ]
    return [{"checkpoint": checkpoint, "cases": name, **_over_splits(paths)} for name, paths in sets.items()]


def _over_splits(paths: list[str]) -> dict[str, str]:
    tables = [read_tsv(Path(p).read_text())[0] for p in paths if Path(p).is_file()]
    metrics = [m for m in (tables[0] if tables else {}) if m != "epoch"]
    return {m: _spread([float(t[m]) for t in tables if t[m] != UNDEFINED]) for m in metrics}


def _spread(values: list[float]) -> str:
    if not values:
        return UNDEFINED
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _aligned(rows: list[dict[str, str]]) -> list[str]:
    columns = list(rows[0])
    table = [columns, *([r.get(c, "") for c in columns] for r in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    return ["  ".join(f"{v:<{w}}" for v, w in zip(line, widths, strict=True)).rstrip() for line in table]
