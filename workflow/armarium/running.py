"""Who is at work in a working directory: Snakemakes and their jobs, known however a process ends.

Each holds the lock (flock) of a file of its own, which the kernel drops when the process dies. So nothing is
left to be cleaned up after a kill, other than with Snakemake's own locks, which moreover are deleted for all
as soon as one of several Snakemakes ends (9.27, persistence/file.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO

from .errors import UserError
from .files import locked_file, refusals_of

STATE = Path(".snakemake/armarium/running")
"""Relative to the working directory, as Snakemake's own records are."""

RUN = "ARMARIUM_RUN"
"""Environment variable by which a job knows its Snakemake."""

WAIT = "ARMARIUM_WAIT"
"""Environment variable: wait for another Snakemake's files instead of refusing; then end with ``AGAIN``."""

AGAIN = 75
"""Exit status of a Snakemake that waited and is to be started again (EX_TEMPFAIL of sysexits.h)."""

SETTLE = 0.5
"""Seconds in which a job that was just started has announced itself."""

SNAKEMAKE, JOB = "snakemake", "job"


@dataclass(frozen=True)
class Process:
    """A process at work.

    Attributes
    ----------
    kind:
        ``snakemake`` or ``job``.
    number, host:
        Which process.
    command, since:
        What it was started as, and when (local time).
    run:
        Of a job: the name of its Snakemake's record.
    makes, reads:
        Of a Snakemake: absolute paths of the files that its jobs make and read.
    """

    kind: str
    number: int
    host: str
    command: str
    since: str
    run: str = ""
    makes: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.host}-{self.number}"

    @property
    def trains(self) -> bool:
        return self.kind == JOB and self.command.startswith("armarium train ")

    def __str__(self) -> str:
        return f"process {self.number} on {self.host}, since {self.since}: {self.command}"


class Announced:
    """This process's record; closed, it is gone."""

    def __init__(self, kind: str, command: str):
        since = datetime.now().isoformat(sep=" ", timespec="seconds")
        run = os.environ.get(RUN, "") if kind == JOB else ""
        self.process = Process(kind, os.getpid(), socket.gethostname(), command, since, run)
        self.path = STATE.absolute() / f"{self.process.name}.json"
        self.file = locked_file(self.path)
        self._write()

    def claim(self, makes: Iterable[str], reads: Iterable[str]) -> None:
        """Say which files this Snakemake's jobs make and read."""
        made, read = ([os.path.abspath(p) for p in paths] for paths in (makes, reads))
        self.process = Process(**{**asdict(self.process), "makes": made, "reads": read})
        self._write()

    def _write(self) -> None:
        with refusals_of(self.path):
            self.file.seek(0)
            self.file.truncate()
            json.dump(asdict(self.process), self.file)
            self.file.flush()

    def close(self) -> None:
        with suppress(OSError):
            self.path.unlink()
        self.file.close()


def at_work(directory: str | os.PathLike = ".") -> list[Process]:
    """Every living process that announced itself in a working directory, but this one."""
    own = f"{socket.gethostname()}-{os.getpid()}.json"
    found = (_living(path) for path in sorted(Path(directory, STATE).glob("*.json")) if path.name != own)
    return [process for process in found if process]


def _living(path: Path) -> Process | None:
    """Who holds a record; the record of a dead process is removed."""
    try:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _described(file, path)
            path.unlink()
    except OSError:  # it ended meanwhile, or this user may not look or remove
        pass
    return None


def _described(file: IO[str], path: Path) -> Process:
    try:
        return Process(**json.load(file))
    except (ValueError, TypeError):  # just being written
        host, _, number = path.stem.rpartition("-")
        return Process(JOB, int(number), host, "starting", "now")


def orphans(processes: list[Process]) -> list[Process]:
    """Jobs whose Snakemake is gone."""
    living = {p.name for p in processes if p.kind == SNAKEMAKE}
    return [p for p in processes if p.kind == JOB and p.run not in living]


# ---- one Snakemake beside others


class Run:
    """A Snakemake that plans and then works beside others in one working directory.

    Plans are made one at a time, and nobody's work ends while a plan is made: what is found missing then
    is missing, or its maker is seen. :meth:`start` ends the planning.
    """

    def __init__(self):
        self.folder = STATE.absolute()
        try:
            self.planning = self._plan_alone()
            self.announced = Announced(SNAKEMAKE, shlex.join(["snakemake", *sys.argv[1:]]))
        except OSError as error:
            raise UserError(
                f"{error.filename or self.folder}: {error.strerror}; Snakemake works in a folder where you may write, on a "
                "file system with room and with locks (flock)"
            ) from None
        os.environ[RUN] = self.announced.process.name
        wait_for("left by a Snakemake that is gone", lambda: [p for p in orphans(at_work()) if not p.trains])

    def _plan_alone(self) -> IO[str]:
        return locked_file(self.folder.parent / "planning.lock")

    def is_alone(self) -> bool:
        """Whether no other Snakemake is at work here."""
        return not any(p.kind == SNAKEMAKE for p in at_work())

    def others_at(self, folder: str) -> list[Process]:
        """Other Snakemakes that make files below ``folder``."""
        below = f"{os.path.abspath(folder)}/"
        return [p for p in at_work() if any(path.startswith(below) for path in p.makes)]

    def start(self, makes: Iterable[str], reads: Iterable[str]) -> None:
        """Claim the files that this Snakemake's jobs make and read, and let others plan.

        Raises
        ------
        UserError
            If another Snakemake makes one of them, or reads what this one would make.
        SystemExit
            With ``AGAIN``, after waiting for that one, where the environment says to wait.
        """
        self.announced.claim(makes, reads)
        conflict = _conflict(self.announced.process, at_work())
        if conflict:
            self._give_way(*conflict)
        self.planning.close()

    def _give_way(self, path: str, holder: Process) -> None:
        shared = os.path.relpath(path)
        if not os.environ.get(WAIT):
            raise UserError(
                f"{shared}: another Snakemake is at work on this file ({holder}); run this again when that one has ended, "
                "or have it wait: armarium build, with the same targets and options"
            )
        self.announced.close()
        self.planning.close()
        wait_for(f"at work on {shared}", lambda: [p for p in at_work() if p.name == holder.name])
        raise SystemExit(AGAIN)

    def end(self) -> None:
        """Leave, but not while another plans."""
        if self.planning.closed:
            self.planning = self._plan_alone()
        self.announced.close()
        self.planning.close()


def _conflict(mine: Process, others: list[Process]) -> tuple[str, Process] | None:
    makes, reads = set(mine.makes), set(mine.reads)
    for other in others:
        shared = ((makes | reads) & set(other.makes)) | (makes & set(other.reads))
        if shared:
            return min(shared), other
    return None


def wait_for(why: str, who: Callable[[], Sequence[object]], seconds: float = 0.2) -> None:
    """Wait until nobody is left, naming whom once; ``seconds`` between two looks."""
    told = False
    while found := who():
        if not told:
            names = "".join(f"\n  {p}" for p in found)
            print(f"armarium: waiting for what is {why}:{names}", file=sys.stderr, flush=True)
            told = True
        time.sleep(seconds)


# ---- Snakemake's own locks, for who runs it without this workflow's profile


def unlock(wait: bool) -> bool:
    """Remove the locks that a killed Snakemake left in this working directory; whether there were any.

    Parameters
    ----------
    wait:
        Wait for whoever is still at work, instead of refusing.

    Raises
    ------
    UserError
        If a Snakemake or a job is alive.
    """
    locks = STATE.parents[1] / "locks"  # persistence/file.py of Snakemake
    if wait:
        wait_for("still at work here", at_work)
    time.sleep(SETTLE)
    if found := at_work():
        names = "".join(f"\n  {p}" for p in found)
        raise UserError(
            f"{Path.cwd()}: still at work here:{names}\nwait until they have ended (armarium unlock --wait), or stop them with kill"
        )
    left = list(locks.glob("*.lock"))
    for lock in left:
        lock.unlink()
    return bool(left)
