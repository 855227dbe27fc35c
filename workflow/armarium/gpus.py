"""The GPUs of this machine, counted without torch."""

from __future__ import annotations

import subprocess

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
