"""GPUs that this machine does not have: an nvidia-smi that lists them, with memory and programs as a test says."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

SCRIPT = """#!/bin/sh
cd "$(dirname "$0")"
case "$*" in
    "") echo "| NVIDIA-SMI 550.54  Driver Version: 550.54  CUDA Version: 12.4 |" ;;
    -L) cat listed ;;
    *name,driver_version*) cat models ;;
    *uuid,memory.used,memory.total*) cat memory ;;
    *compute-apps=gpu_uuid,pid,used_memory,process_name*) cat programs ;;
    *) echo "unknown option: $*"; exit 2 ;;
esac
"""


class StandInGpus:
    """GPUs of 40960 MiB with UUIDs of their own; ``folder`` is to come first in PATH.

    Parameters
    ----------
    folder:
        A new one, for the nvidia-smi.
    """

    def __init__(self, folder: Path, count: int):
        self.folder = folder
        self.uuids = [f"GPU-{uuid.uuid4()}" for _ in range(count)]
        folder.mkdir()
        (folder / "nvidia-smi").write_text(SCRIPT)
        (folder / "nvidia-smi").chmod(0o755)
        self._say("models", ["Test, 550.54" for _ in self.uuids])
        self._say("listed", [f"GPU {n}: Test (UUID: {u})" for n, u in enumerate(self.uuids)])
        self.fill()

    def divide(self, number: int, parts: int) -> list[str]:
        """Have a GPU in MIG mode; the UUIDs of its parts."""
        lines, found = (self.folder / "listed").read_text().splitlines(), [f"MIG-{uuid.uuid4()}" for _ in range(parts)]
        at = next(n for n, line in enumerate(lines) if self.uuids[number] in line) + 1
        lines[at:at] = [f"  MIG 1g.5gb      Device  {n}: (UUID: {u})" for n, u in enumerate(found)]
        self._say("listed", lines)
        return found

    def fill(self, *programs: tuple[int, int, int, str]) -> None:
        """Programs that compute: number of the GPU, process, MiB, name; whoever computed before no longer does."""
        used = [sum(mib for gpu, _, mib, _ in programs if gpu == n) for n in range(len(self.uuids))]
        self._say("memory", [f"{u}, {mib}, 40960" for u, mib in zip(self.uuids, used, strict=True)])
        self._say("programs", [f"{self.uuids[gpu]}, {pid}, {mib}, {name}" for gpu, pid, mib, name in programs])

    def _say(self, name: str, lines: list[str]) -> None:
        new = self.folder / f"{name}.new"
        new.write_text("".join(f"{line}\n" for line in lines))
        os.replace(new, self.folder / name)
