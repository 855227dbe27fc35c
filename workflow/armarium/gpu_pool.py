"""Which job computes on which GPU of this machine: each holds a lock (flock) for every GPU that it takes.

The kernel drops the lock when the process ends, however it ends, so there is nothing to clean up: a lock file that
is left behind says nothing. The pool is the machine's, all users share it, and a GPU is known by its UUID, whoever
sees it as which number. What is no job of ours, but fills a GPU's memory, is told by nvidia-smi.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shlex
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from .errors import UserError, shown
from .gpus import Gpu, Use, listed, use, visible
from .running import JOB, Process

SHARING = "ARMARIUM_GPU_SHARING"
"""Environment variable: the configuration's keys on GPUs and their values, as JSON."""

VISIBLE = "CUDA_VISIBLE_DEVICES"

SCHEDULERS = ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID", "_CONDOR_JOB_AD")
"""Environment variables of a job of Slurm, LSF, PBS and HTCondor; where it has GPUs, CUDA_VISIBLE_DEVICES names them."""

POOL = Path("/tmp/armarium-gpus")
"""The same for all users and whatever TMPDIR is: who looks elsewhere does not see who is at work."""

LARGEST_RECORD = 10_000
MOST_FILES = 1000


@dataclass(frozen=True)
class Sharing:
    """How jobs share GPUs.

    Attributes
    ----------
    trainings_per_gpu:
        Jobs that compute on one GPU at once.
    gpu_memory:
        MiB that a job must find free of other programs; None: its share of half of the GPU's memory.
    gpu_wait:
        Minutes after which a job that waits for a GPU gives up; None: never.
    """

    trainings_per_gpu: int = 1
    gpu_memory: int | None = None
    gpu_wait: float | None = None

    @classmethod
    def configured(cls) -> Sharing:
        """What the workflow's configuration says."""
        return cls(**dict(json.loads(os.environ.get(SHARING, "[]"))))

    def needs(self, total: int) -> float:
        """MiB for one job on a GPU of ``total``."""
        return self.gpu_memory or total / (2 * self.trainings_per_gpu)


@dataclass(frozen=True)
class Holder:
    """A job that holds a GPU.

    Attributes
    ----------
    gpu:
        The GPU, for people.
    process:
        Who.
    trainings_per_gpu:
        How many jobs it lets compute there.
    """

    gpu: str
    process: Process
    trainings_per_gpu: int = 1

    def __str__(self) -> str:
        return f"{self.gpu}: held by {self.process}"


_HELD: dict[str, IO[str]] = {}
"""Open lock files by UUID: a GPU is held as long as this process lives."""


def _keep_to_the_parent() -> None:
    """A loader's worker must not hold what its trainer, if that is killed, no longer does."""
    for lock in _HELD.values():
        lock.close()


os.register_at_fork(after_in_child=_keep_to_the_parent)


def take(wanted: int) -> list[str]:
    """Hold GPUs until this process ends; from here on it and those that it starts see these alone.

    To be called before CUDA is used. A job that a scheduler gave GPUs keeps these; they are nobody else's.

    Returns
    -------
    What CUDA_VISIBLE_DEVICES calls each of them; none where nvidia-smi lists none that may be used.

    Raises
    ------
    UserError
        If there are fewer than ``wanted``, or others hold or fill them for longer than a job is to wait.
    """
    given = os.environ.get(VISIBLE)
    if given and any(name in os.environ for name in SCHEDULERS):
        names = given.split(",")[:wanted]
    else:
        gpus = visible(listed())
        if not gpus:
            return []
        names = _claim(gpus, wanted)
    os.environ[VISIBLE] = ",".join(names)
    return names


def take_unlisted(there: int, wanted: int) -> list[str]:
    """The same of the ``there`` GPUs that torch sees where nvidia-smi lists none; what this process sees stays."""
    return _claim([Gpu(name, str(number)) for number, name in enumerate(names_of(there))], wanted)


def names_of(there: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each of the GPUs that torch sees."""
    given = os.environ.get(VISIBLE, "").split(",")
    return given if len(given) == there and given[0] else [str(number) for number in range(there)]


def _claim(gpus: Sequence[Gpu], wanted: int) -> list[str]:
    """Wait until as many are free, and hold them: all or none, as two jobs must not each wait for the other's."""
    if _HELD:
        return list(_HELD)[:wanted]
    sharing = Sharing.configured()
    gpus = _that_can_do(gpus, wanted, sharing, use())
    started, told = time.monotonic(), False
    while True:
        taken, hindered = _attempt(gpus, wanted, sharing, use())
        if taken:
            print("\n".join(f"armarium: on {gpu}" for gpu in taken), file=sys.stderr, flush=True)
            return [gpu.uuid for gpu in taken]
        waited = (time.monotonic() - started) / 60
        what = "a GPU" if wanted == 1 else f"{wanted} GPUs"
        why = "".join(f"\n  {reason}" for reason in hindered)
        if sharing.gpu_wait is not None and waited >= sharing.gpu_wait:
            raise UserError(
                f"waited {sharing.gpu_wait:g} minutes (gpu_wait) for {what}:{why}\n"
                "run this again when they are free, raise gpu_wait, lower gpu_memory, or set device: cpu"
            )
        if not told:
            print(f"armarium: waiting for {what}:{why}", file=sys.stderr, flush=True)
            told = True
        time.sleep(random.uniform(0.5, 1.5))


def _that_can_do(gpus: Sequence[Gpu], wanted: int, sharing: Sharing, now: Use) -> list[Gpu]:
    """Those that are large enough; refuses what no waiting would bring."""
    if len(gpus) < wanted:
        raise UserError(
            f"{wanted} processes want a GPU each, found {', '.join(map(str, gpus))}; give the job as many, or take fewer "
            "processes (processes, evaluation_processes), or device=cpu"
        )
    total = {gpu: now.memory[gpu.uuid][1] for gpu in gpus if gpu.uuid in now.memory}
    large = [gpu for gpu in gpus if gpu not in total or total[gpu] >= (sharing.gpu_memory or 0)]
    if len(large) < wanted:
        have = ", ".join(f"{gpu} has {mib}" for gpu, mib in total.items())
        raise UserError(f"gpu_memory: found {sharing.gpu_memory} MiB, wanted no more than a GPU has: {have}; lower it")
    return large


def _attempt(gpus: Sequence[Gpu], wanted: int, sharing: Sharing, now: Use) -> tuple[list[Gpu], list[str]]:
    """The GPUs that are now held, those first that fewest jobs compute on; or why there were too few."""
    folder = _folder()
    with _alone(folder):
        holders = {gpu: _holders_of(folder, _name(gpu.uuid)) for gpu in gpus}
        ours = {holder.process.number for of_gpu in holders.values() for holder in of_gpu}
        reasons = {gpu: _hindrance(gpu, holders[gpu], sharing, now, ours) for gpu in gpus}
        free = sorted((gpu for gpu in gpus if not reasons[gpu]), key=lambda gpu: len(holders[gpu]))
        taken = free[:wanted] if len(free) >= wanted else []
        for gpu in taken:
            _HELD[gpu.uuid] = _hold(folder, gpu, sharing)
    return taken, [reason for reason in reasons.values() if reason]


def _hindrance(gpu: Gpu, holders: list[Holder], sharing: Sharing, now: Use, ours: set[int]) -> str | None:
    """Why a job cannot take a GPU now: as many hold it as may, or other programs leave too little of its memory."""
    if len(holders) >= min([sharing.trainings_per_gpu, *(holder.trainings_per_gpu for holder in holders)]):
        return "\n  ".join(f"{gpu}: held by {holder.process}" for holder in holders)
    if gpu.uuid not in now.memory:
        return None
    used, total = now.memory[gpu.uuid]
    others = [program for program in now.programs if program.gpu == gpu.uuid and not _is_of(program.pid, ours)]
    filled = sum(program.mib for program in others) if holders else used
    if total - filled >= sharing.needs(total) * (len(holders) + 1):
        return None
    who = ", ".join(f"process {p.pid} ({p.name}, {p.mib} MiB)" for p in sorted(others, key=lambda p: -p.mib))
    by = who or "programs that nvidia-smi does not name"
    return f"{gpu}: {filled} of {total} MiB filled by {by}; wanted {sharing.needs(total):.0f} MiB free for a job"


def _is_of(pid: int, ours: set[int]) -> bool:
    """Whether a process is one of ``ours`` or was started by one, such as by torchrun."""
    while pid > 1 and pid not in ours:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
    return pid in ours


# ---- the lock files


def holders() -> list[Holder]:
    """Who holds which GPU of this machine now."""
    folder = _folder(make=False)
    if folder is None:
        return []
    with _alone(folder):
        return _holders_of(folder, "*")


def _folder(make: bool = True) -> Path | None:
    """Where the lock files are: where all users' are, or where that cannot be, this user's."""
    for folder, mode in ((POOL, 0o1777), (Path(tempfile.gettempdir(), f"armarium-gpus-{os.getuid()}"), 0o700)):
        if make:
            with suppress(FileExistsError, PermissionError):
                folder.mkdir()
                folder.chmod(mode)  # whatever the umask is
        if folder.is_dir() and not folder.is_symlink() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    if make:
        raise UserError(
            f"{folder}: no folder where you may write; it is for the locks of GPUs: delete it, or have it deleted"
        )
    return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else looks or takes meanwhile: for an instant, so that attempts do not see each other's."""
    lock = next(_writable(lambda n: folder / f"pool{n or ''}.lock"))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        lock.close()


def _hold(folder: Path, gpu: Gpu, sharing: Sharing) -> IO[str]:
    """A lock file of a GPU that nobody held, with this process's record."""
    for file in _writable(lambda n: folder / f"{_name(gpu.uuid)}.{n}.lock"):
        if _is_free(file):
            file.truncate()
            json.dump(asdict(Holder(str(gpu), _this_process(), sharing.trainings_per_gpu)), file)
            file.flush()
            return file
        file.close()
    raise AssertionError("ends by itself")


def _this_process() -> Process:
    arguments = sys.argv[3:] if sys.argv[1:2] == ["--log"] else sys.argv[1:]
    since = datetime.now().isoformat(sep=" ", timespec="seconds")
    return Process(JOB, os.getpid(), socket.gethostname(), shlex.join(["armarium", *arguments]), since)


def _name(uuid: str) -> str:
    return re.sub(r"[^\w-]", "_", uuid)


def _holders_of(folder: Path, name: str) -> list[Holder]:
    found = []
    for path in sorted(folder.glob(f"{name}.*.lock")):
        file = _opened(path, os.O_RDONLY)
        if file is not None:
            with file:
                if not _is_free(file):
                    found.append(_described(file))
    return found


def _described(file: IO[str]) -> Holder:
    """A holder's record, which another user's program may have written."""
    try:
        found = json.loads(file.read(LARGEST_RECORD))
        process = Process(
            JOB,
            int(found["process"]["number"]),
            *(shown(str(found["process"][k])) for k in ("host", "command", "since")),
        )
        return Holder(shown(str(found["gpu"])), process, int(found["trainings_per_gpu"]))
    except (ValueError, TypeError, KeyError):
        return Holder("a GPU", Process(JOB, 0, "this machine", "a program that does not say which", "an unknown time"))


def _is_free(file: IO[str]) -> bool:
    """Whether nobody held the lock, which this open file now does."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def _writable(path_of: Callable[[int], Path]) -> Iterator[IO[str]]:
    """Lock files 0, 1, …, made where they are missing; those that another user keeps to himself, or are none, are left out."""
    for number in range(MOST_FILES):
        path = path_of(number)
        with suppress(FileExistsError, PermissionError):
            made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
            os.fchmod(made, 0o666)  # whatever the umask is
            os.close(made)
        if (file := _opened(path, os.O_RDWR)) is not None:
            yield file
    raise UserError(f"{path.parent}: no lock file that you may write; it is for the locks of GPUs: have it deleted")


def _opened(path: Path, how: int) -> IO[str] | None:
    """A regular file that is open; None for anything else, a link above all."""
    try:
        number = os.open(path, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        return None
    return os.fdopen(number, "r+" if how == os.O_RDWR else "r")
