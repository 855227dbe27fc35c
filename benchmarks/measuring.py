"""Honest timing: what is compared runs in turn, in one call, and each figure is a median with its spread."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tabulate import tabulate

REPO = Path(__file__).resolve().parents[1]


def environment(**more: str) -> dict[str, str]:
    """This process's, in which ``benchmarks`` and ``armarium`` are found from any folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO / "workflow"), str(REPO)]), **more}


def alternately(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Each of ``runs`` once a round, every round begun with another one; what each returned, in order.

    So a machine whose speed drifts slows all of them alike.
    """
    names = list(runs)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            found[name].append(runs[name]())
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round, for what ran side by side."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median, least and most."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


@dataclass(frozen=True)
class Usage:
    """What a process took, with its children that it waited for: seconds, MiB of the largest."""

    wall: float
    cpu: float
    peak_mib: float
    output: str


def whole_process(command: Sequence[str], cwd: str | None = None, env: Mapping[str, str] | None = None) -> Usage:
    """Run a command; :class:`SystemExit` with what it said if it fails."""
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        output = said.read().decode(errors="replace")
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with {process.returncode}; it said:\n{output[-4000:]}")
    return Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, output)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence], note: str = "") -> None:
    """Print a table, as Markdown so that it can be kept in docs/performance.md."""
    print(f"\n### {title}\n\n{tabulate(rows, columns, tablefmt='github')}", flush=True)
    if note:
        print(f"\n{note}", flush=True)
