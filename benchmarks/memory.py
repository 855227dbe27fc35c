"""What a large volume, many cases and an archive take: peaks of processes, bytes on the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from .measuring import REPO, environment, show, whole_process

SHAPE, CASES = (512, 512, 800), 100_000


def measure(rounds: int) -> None:
    """Peaks hardly differ between runs, and these take minutes: each is measured once, whatever ``rounds`` is."""
    with tempfile.TemporaryDirectory() as folder:
        _large_volume(Path(folder, "volume"))
    with tempfile.TemporaryDirectory() as folder:
        _many_cases(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        _size(Path(folder))


def _large_volume(folder: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.large_volume", str(folder)]
    whole_process([*command, *map(str, SHAPE)], cwd=REPO, env=environment())
    used = whole_process(command, cwd=REPO, env=environment())
    found = json.loads(used.output.splitlines()[-1])
    voxels = SHAPE[0] * SHAPE[1] * SHAPE[2]
    show(
        f"Scoring a volume of {'x'.join(map(str, SHAPE))} voxels, five classes, Dice and Hausdorff distance",
        ["step", "peak, GB", "bytes a voxel"],
        [[name, f"{found[key] / 1e9:.2f}", f"{found[key] / voxels:.0f}"] for name, key in _PEAKS.items()],
        f"{found['seconds']:.0f} s in all, {used.cpu:.0f} s of them on a CPU.",
    )


_PEAKS = {"preparing it": "peak_of_preparing", "and scoring it": "peak"}


def _many_cases(folder: Path) -> None:
    rows = []
    for task in ("segmentation", "classification"):
        place = folder / task
        made = [sys.executable, "-m", "benchmarks.many_cases", str(place), str(CASES), task]
        whole_process(made, cwd=REPO, env=environment())
        for step in ("check-data", "split-data"):
            wall, cpu, peak = watched([sys.executable, "-m", "armarium", step, "archives/many"], place)
            rows.append([task, step, f"{peak / 1e9:.2f}", f"{wall:.0f}", f"{cpu:.0f}", f"{CASES / wall:.0f}"])
    columns = ["task", "step", "peak of all its processes, GB", "s", "CPU s", "cases/s"]
    show(f"Checking and splitting {CASES:,} cases, 5 folds, grouped and stratified", columns, rows)


def watched(command: list[str], folder: Path) -> tuple[float, float, float]:
    """Seconds, CPU seconds, and the most bytes that a process and its children had together, shared pages counted once."""
    most, ended = [0], threading.Event()
    started, before = time.perf_counter(), os.times()
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:

        def watch() -> None:
            while not ended.wait(0.2):
                most[0] = max(most[0], _proportional(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        ended.set()
        watcher.join()
    if status:
        sys.exit(f"error: {' '.join(command)} ended with {status}")
    after = os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    return time.perf_counter() - started, cpu, most[0]


def _proportional(session: int) -> int:
    """Bytes of a session's processes, each page divided by those that share it."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):  # it has ended meanwhile
            continue
    return total


def _size(folder: Path) -> None:
    """The demo, built for it."""
    (folder / "config").symlink_to(REPO / "config")
    snakemake = [sys.executable, "-m", "snakemake", "-s", str(REPO / "Snakefile"), "--directory", str(folder)]
    whole_process([*snakemake, "--cores", "2", "--configfile", str(REPO / "config/config.yaml")], cwd=REPO)
    rows = []
    for name, options in (("as it is built", []), ("compacted", ["--hard-links"])):
        said = whole_process(
            [sys.executable, "-m", "armarium", "compact", "archives/demo", *options],
            cwd=str(folder),
            env=environment(),
        )
        rows.append([name, said.output.strip()])
    show("The demo's archive", ["", "armarium compact says"], rows)
