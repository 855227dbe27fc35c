"""A job in this process, or in several that torchrun starts and watches on this machine. No torch until it is needed.

This process holds the locks and writes the record of the step; it is torchrun's agent and does not compute. If one of
its processes ends, however it ends, the agent ends the others at once; if this process ends, the kernel ends all of them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError
from .files import folder_while_alive, read_json, remove_abandoned, write_json
from .loading import sparingly
from .zips import opened, write_zip

AGENT = "ARMARIUM_AGENT"
"""Environment variable: the process that started this one; when it is gone this one ends."""
LOG = "ARMARIUM_RANKS_LOG"
"""Environment variable: the file that the first process's messages go to as well."""
RANKS = "ranks"
"""Folder of the cache in which a job's processes are handed what they do."""
JOB, GIVEN, SAYS, MADE = "job.json", "given.zip", "says.json", "made.zip"
"""Files by which a job and its outcome are handed over."""


def compute(
    job: str, processes: int, device: str, cache_dir: str, given: dict, files: dict[str, bytes] | None = None
) -> tuple[dict, dict[str, bytes | str]]:
    """Do a job of :mod:`armarium.jobs`.

    Parameters
    ----------
    job:
        Its name.
    processes:
        How many do it together.
    device:
        ``auto``, ``cpu`` or ``cuda``.
    cache_dir:
        Where files are handed over.
    given, files:
        What it takes: JSON values, and files by name.

    Returns
    -------
    What is said of it, and what it made by name.

    Raises
    ------
    UserError
        If there are fewer GPUs than processes, or one of these fails.
    """
    if processes == 1:
        with sparingly():
            from .jobs import JOBS
        return JOBS[job](given, files or {}, device)
    parent = Path(cache_dir, RANKS)
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent)
    with folder_while_alive(parent) as folder:
        kind, environment = _share_of_machine(device, processes)
        write_json(folder / JOB, {"job": job, "device": kind, "given": given})
        write_zip(folder / GIVEN, files or {})
        print(f"{processes} processes on {kind}", file=sys.stderr, flush=True)
        with _environment(environment | _for_ranks()):
            _run(folder, processes)
        with opened(folder / MADE) as made:
            return read_json(folder / SAYS), {name: made.read(name) for name in made.namelist()}


def _share_of_machine(device: str, processes: int) -> tuple[str, dict[str, str]]:
    """``cuda`` with a GPU for each process, held as long as this process lives; ``cpu`` where there is none or none wanted."""
    from .network import take_gpus

    taken = take_gpus(device, processes)
    return ("cuda", {"CUDA_VISIBLE_DEVICES": ",".join(taken)}) if taken else ("cpu", {})


def _for_ranks() -> dict[str, str]:
    """What the processes find in their environment."""
    package = str(Path(__file__).resolve().parents[1])
    log = getattr(sys.stderr, "path", None)
    return {
        AGENT: str(os.getpid()),
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0"),
        "OMP_NUM_THREADS": os.environ.get(
            "OMP_NUM_THREADS", "1"
        ),  # as torchrun would say at length; torch's are set by the job
        **({LOG: log} if log else {}),
        **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),  # nobody else is to listen to
    }


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """torchrun's agent takes signals for itself and keeps them."""
    known = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    try:
        yield
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)


def _run(folder: Path, processes: int) -> None:
    """What ``torchrun --standalone`` does; its words on what failed are replaced by one message."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    options = ["--standalone", "--local-addr=127.0.0.1", "--max-restarts=0", "--monitor-interval=0.2"]
    options += [f"--nproc-per-node={processes}", f"--log-dir={folder / 'log'}", "-m", "armarium.ranks", str(folder)]
    quiet = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with _signals_as_before():
            run(parse_args(options))
    except ChildFailedError as error:
        raise _in_words(folder, processes, {rank: f.exitcode for rank, f in error.failures.items()}) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None
    finally:
        logging.disable(quiet)


def _in_words(folder: Path, processes: int, ended: dict[int, int]) -> Exception:
    """Why a job of several processes failed.

    Parameters
    ----------
    ended:
        By rank, with which status; negative is the signal. Those that the agent ended have SIGTERM.
    """
    if said := _first(folder, "said"):
        return UserError(said.read_text(encoding="utf-8"))
    killed = {rank: -status for rank, status in ended.items() if status < 0}
    if set(killed.values()) - {signal.SIGTERM} or len(killed) == len(ended):
        rank = min(killed, key=lambda r: (killed[r] == signal.SIGTERM, r))
        return UserError(
            f"process {rank} of 0 to {processes - 1} was ended by {signal.Signals(killed[rank]).name}, and the others with it (if nobody did "
            "that, the machine was out of memory: lower batch_size, or give the job more); run the same command again: "
            "nothing is half-written, and a training goes on after its last saved epoch"
        )
    rank, status = min((rank, status) for rank, status in ended.items() if status > 0)
    told = _first(folder, "bug")
    return RuntimeError(told.read_text(encoding="utf-8") if told else f"process {rank} ended with status {status}")


def _first(folder: Path, kind: str) -> Path | None:
    """What the first process to fail left behind: the others fail for want of it."""
    return min(folder.glob(f"*.{kind}"), key=lambda path: path.stat().st_mtime_ns, default=None)
