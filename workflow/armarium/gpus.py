"""The GPUs of this machine: counted without torch, and each held by one job at a time."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
import time
from pathlib import Path

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


def claim(devices: int) -> int:
    """The number of a device that no other job of this user holds; waits for one.

    A scheduler that gives a job its own devices has set CUDA_VISIBLE_DEVICES for it; then the first is it.

    Parameters
    ----------
    devices:
        How many devices this process sees.
    """
    if "SLURM_JOB_ID" in os.environ:
        return 0
    folder = Path(tempfile.gettempdir(), f"armarium-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if len(visible) == devices and visible[0] else [str(i) for i in range(devices)]
    while True:
        for number, name in enumerate(names):
            lock = open(folder / f"{name}.lock", "w")  # noqa: SIM115 (held open)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            _HELD.append(lock)
            return number
        time.sleep(1)
