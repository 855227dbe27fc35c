"""The GPUs of this machine: counted without torch, and each held by one job at a time."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

UNLIMITED = 1_000_000


def count() -> int:
    """GPUs that nvidia-smi lists; 0 where there is no driver."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def local_limit(wanted: int | None, device: str) -> int:
    """How many jobs that ask for a GPU may run at once on this machine.

    As many as it has GPUs, so that ``--cores 8`` does not start eight trainings on one. Where none
    is there or wanted, such jobs run on the CPU and only cores limit them.
    """
    if wanted is not None:
        return wanted
    return (0 if device == "cpu" else count()) or UNLIMITED


_HELD = []
"""Open lock files: a device is held as long as the process lives, however it ends."""


def names(devices: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls each of the devices that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible if len(visible) == devices and visible[0] else [str(i) for i in range(devices)]


def claim(devices: int, wanted: int = 1) -> list[int]:
    """The numbers of devices that no other job of this user holds; waits until there are as many as ``wanted``.

    A scheduler that gives a job its own devices has set CUDA_VISIBLE_DEVICES for it; then they are the first ones.

    Parameters
    ----------
    devices:
        How many devices this process sees.
    """
    if "SLURM_JOB_ID" in os.environ:
        return list(range(wanted))
    folder = Path(tempfile.gettempdir(), f"armarium-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        locks = {number: _lock(folder / f"{name}.lock") for number, name in enumerate(names(devices))}
        free = [number for number, lock in locks.items() if lock]
        taken = free[:wanted] if len(free) >= wanted else []  # all or none: two jobs must not each wait for the other's
        _HELD.extend(locks[number] for number in taken)
        for number in set(free).difference(taken):
            locks[number].close()
        if taken:
            return taken
        time.sleep(random.uniform(0.5, 1.5))


def _lock(path: Path) -> IO[str] | None:
    """The file with its lock held; None where another job holds it."""
    lock = open(path, "w")  # noqa: SIM115 (held open)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    except BlockingIOError:
        lock.close()
        return None
