"""Many independent pieces of work, shared by this process's workers and by other jobs that do the same.

A worker is a forked process: MONAI's transforms are Python's own work for the most part, of which threads of one process do
one piece at a time. There is no queue: each worker goes through all pieces from a place of its own and does those that are
neither done nor claimed, so that workers of other jobs share in the same way. Last it waits for those that others have.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from .claims import claim
from .errors import UserError
from .faults import in_words
from .ranks import end_with

T = TypeVar("T")
CORES = "ARMARIUM_CORES"
"""Environment variable: the cores that Snakemake may use on this machine."""
ALONE = 0.5
"""Seconds that a job works by itself before it starts workers, each of which takes a tenth of a second to start."""
YIELDING = 10
"""How much a worker beyond the job's own threads gives way, as nice(2) has it: it takes what else lies idle."""
AtWork = Callable[[], AbstractContextManager[Callable[[Any, bool], bool | None]]]
"""Gives what does a piece, waiting for another who does it if told so: True if it did, False if it was done, None if another is at it."""


def spare_cores(own: int) -> int:
    """Cores beyond a job's ``own`` threads that this machine and the caller of Snakemake let it use."""
    allowed = [len(os.sched_getaffinity(0))]
    allowed += [int(v) for name in (CORES, "SLURM_CPUS_PER_TASK") if (v := os.environ.get(name, "")).isdecimal()]
    return max(0, min(allowed) - own) if os.environ.get(CORES) else 0


def work_off(pieces: Sequence[T], at_work: AtWork, own: int, places: Path, most: int, title: str) -> None:
    """Have every piece done, by this job or another.

    Parameters
    ----------
    at_work:
        What each worker enters once, and does its pieces by.
    own:
        Workers that the job has cores for; with one, and no spare core, the work is done in this process.
    places:
        Folder of the locks by which all jobs together take no more spare cores than there are.
    most:
        Workers that may be at work at once.
    title:
        Of the progress bar.

    Raises
    ------
    UserError
        Where a worker meets one, or ends before its time.
    """
    with tqdm(total=len(pieces), desc=title, disable=None, unit="case") as bar:
        left = _alone(pieces, at_work, bar.update)
        workers = max(1, min(own, most, len(left), len(os.sched_getaffinity(0))))
        held = _places(places, min(spare_cores(workers), len(left) - workers, most - workers))
        try:
            if workers + len(held) == 1:
                _go_through(left, 0, at_work, bar.update)
            else:
                _in_processes(left, at_work, workers, held, bar, title)
        finally:
            for place in held:
                os.close(place)
        bar.update(bar.total - bar.n)  # what others did


def _alone(pieces: Sequence[T], at_work: AtWork, did: Callable[[], Any]) -> list[T]:
    """Do pieces for a while, in this process; those that may be still to do."""
    left, until = [], time.monotonic() + ALONE
    with at_work() as work:
        for number, piece in enumerate(pieces):
            if time.monotonic() >= until:
                return [*left, *pieces[number:]]
            done = work(piece, False)
            if done is None:
                left.append(piece)
            elif done:
                did()
    return left


def _places(folder: Path, wanted: int) -> list[int]:
    """Claims on spare cores of this machine."""
    file = folder / f"workers-{platform.node()}"
    claims = (claim(file, number) for number in range(spare_cores(0)))
    held: list[int] = []
    while len(held) < wanted and (place := next(claims, -1)) != -1:
        held += [] if place is None else [place]
    return held


def _go_through(pieces: Sequence[T], start: int, at_work: AtWork, did: Callable[[], Any]) -> None:
    left = []
    with at_work() as work:
        for piece in (*pieces[start:], *pieces[:start]):
            done = work(piece, False)
            if done is None:
                left.append(piece)
            elif done:
                did()
        for piece in left:
            if work(piece, True):
                did()


def _in_processes(pieces: Sequence[T], at_work: AtWork, workers: int, held: list[int], bar: tqdm, title: str) -> None:
    fork, size = get_context("fork"), workers + len(held)
    told, running = {}, []
    sys.stderr.flush()
    try:
        for number in range(size):
            here, there = fork.Pipe(duplex=False)
            keep = held[number - workers] if number >= workers else None
            rest = [place for place in held if place != keep]
            start = number * len(pieces) // size
            process = fork.Process(
                target=_worker, args=(pieces, start, at_work, there, os.getpid(), keep, rest), daemon=True
            )
            process.start()
            there.close()
            told[here] = process
            running.append(process)
        while told:
            for here in connection.wait(list(told)):
                _take_in(here, told, bar, title)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _take_in(here: connection.Connection, told: dict, bar: tqdm, title: str) -> None:
    """What a worker says: a piece done, nothing more to do, or why it cannot go on."""
    try:
        said = here.recv()
    except EOFError:
        process = told.pop(here)
        process.join()
        if process.exitcode:
            how = f"by signal {-process.exitcode}" if process.exitcode < 0 else f"with status {process.exitcode}"
            raise UserError(
                f"{title}: a worker ended {how}, as where a machine runs out of memory; "
                "give the job more memory, or fewer threads; then run the same command again: what is done is kept"
            ) from None
        return
    if said is None:
        bar.update()
    elif said[0]:
        raise UserError(said[1])
    else:
        raise RuntimeError(said[1])


def _worker(
    pieces: Sequence[T],
    start: int,
    at_work: AtWork,
    tell: connection.Connection,
    parent: int,
    keep: int | None,
    rest: list[int],
) -> None:
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    for place in rest:
        os.close(place)
    if keep is not None:
        os.nice(YIELDING)
    try:
        _go_through(pieces, start, at_work, lambda: tell.send(None))
    except Exception as error:
        words = in_words(error)
        with suppress(OSError):
            tell.send((words is not None, words or traceback.format_exc()))
