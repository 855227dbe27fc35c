"""What an archive holds, for a person at a terminal."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from . import layout
from .contents import contents_of
from .errors import UserError
from .parent import read_parent
from .results import Result, results_of, spread
from .run import finished_run


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
    held = contents_of(archive)
    splits = [k for k in held.splits if Path(layout.run_zip(archive, k)).exists()]
    if not splits:
        raise UserError(
            f"{archive}: no split is trained; build it with: snakemake --cores all {layout.manifest(archive)}"
        )
    results = results_of(archive, held.checkpoints, held.groups, held.own_groups, splits)
    rows = [_row(result) for result in results]
    typed, table = shlex.quote(layout.published_ts(archive)), _table(archive, splits[0], held.checkpoints[0])
    snakemake = _as_typed(Path(sys.executable).parent / "snakemake")
    lines = [
        f"archive: {archive} ({_trained(archive, splits)})",
        *([f"started from: {parent}"] if (parent := read_parent(archive)) else []),
        "",
        *_aligned(rows),
        "",
        "try next:",
        f"  rm {typed} && {snakemake} --cores 2 {typed}    # rebuilds that file, trains nothing",
        f"  {snakemake} --cores 2 --config set='{{epochs: 12}}'    # trains anew with another setting, which the archive keeps",
        f"  column -t -s $'\\t' {shlex.quote(table)}    # scores of every validation case",
    ]
    return "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines)


def _table(archive: str, split: int, checkpoint: str) -> str:
    """The scores of every validation case."""
    return layout.checkpoint_tables(layout.checkpoint_dir(archive, split, checkpoint))[1]


def _as_typed(command: Path) -> str:
    """A command as one types it in this folder."""
    return str(command.relative_to(Path.cwd())) if command.is_relative_to(Path.cwd()) else command.name


def _trained(archive: str, splits: list[int]) -> str:
    infos = [finished_run(layout.run_zip(archive, k), "parameters") for k in splits]
    epochs = sorted({i["epochs"] for i in infos})
    return f"{len(splits)} split{'s' if len(splits) > 1 else ''}, {'-'.join(map(str, epochs))} epochs, {infos[0]['parameters']} parameters"


def _row(result: Result) -> dict[str, str]:
    scores = {metric: spread(values.values()) for metric, values in result.metrics.items()}
    return {"checkpoint": result.checkpoint, "cases": result.cases, **scores}


def _aligned(rows: list[dict[str, str]]) -> list[str]:
    columns = list(rows[0])
    table = [columns, *([r.get(c, "") for c in columns] for r in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    return ["  ".join(f"{v:<{w}}" for v, w in zip(line, widths, strict=True)).rstrip() for line in table]
