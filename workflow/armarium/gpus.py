"""The GPUs of this machine, as nvidia-smi tells of them: no torch, and no CUDA, which would take a share of each.

A GPU is known by its UUID. Its number is nvidia-smi's, which counts by the bus; CUDA counts the fastest first.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import shown

UNLIMITED = 1_000_000
_GPU = re.compile(r"GPU (\d+): (.+) \(UUID: (\S+)\)")
_MIG = re.compile(r"\s+MIG (\S+)\s+Device\s+(\d+): \(UUID: (\S+)\)")


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one (a MIG device) that programs see as one.

    Attributes
    ----------
    uuid:
        What CUDA_VISIBLE_DEVICES calls it.
    number:
        nvidia-smi's; of a MIG device ``<number of its GPU>:<its own>``.
    model:
        What it is.
    """

    uuid: str
    number: str
    model: str = ""

    def __str__(self) -> str:
        return f"GPU {self.number}" + (f" ({self.model})" if self.model else "")


@dataclass(frozen=True)
class Program:
    """A process that computes on a GPU; ``mib`` is its memory there, 0 where that is not told."""

    gpu: str
    pid: int
    mib: int
    name: str


@dataclass(frozen=True)
class Use:
    """What the GPUs are used for.

    Attributes
    ----------
    memory:
        MiB in use, and in all, by UUID; a MIG device's is not told.
    programs:
        Who computes; in a container nobody, or processes by numbers that mean nothing there.
    """

    memory: dict[str, tuple[int, int]] = field(default_factory=dict)
    programs: list[Program] = field(default_factory=list)


def nvidia_smi(*arguments: str) -> str:
    """What nvidia-smi prints; nothing where there is none, or no GPU that answers."""
    try:
        command = ["nvidia-smi", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def listed() -> list[Gpu]:
    """The machine's GPUs; of one that is divided (MIG) its parts."""
    found: list[Gpu] = []
    for line in nvidia_smi("-L").splitlines():
        if gpu := _GPU.fullmatch(line):
            found.append(Gpu(gpu[3], gpu[1], gpu[2]))
        elif (part := _MIG.fullmatch(line)) and found:
            whole = found.pop() if ":" not in found[-1].number else found[-1]
            found.append(Gpu(part[3], f"{whole.number.partition(':')[0]}:{part[2]}", f"MIG {part[1]}"))
    return found


def visible(gpus: list[Gpu]) -> list[Gpu]:
    """Those of ``gpus`` that CUDA_VISIBLE_DEVICES leaves, in its order; all where it is not set.

    As CUDA reads it: numbers, or UUIDs or unique beginnings of them, up to the first that is neither. (CUDA C++
    Programming Guide, "CUDA Environment Variables".)
    """
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return gpus
    found: list[Gpu] = []
    for name in map(str.strip, asked.split(",")):
        meant = [g for g in gpus if name and (name in (g.number, g.number.partition(":")[0]) or g.uuid == name)]
        meant = meant or [g for g in gpus if name[:4] in ("GPU-", "MIG-") and g.uuid.startswith(name)]
        if not meant or (len(meant) > 1 and not name.isdigit()):
            break
        found += [g for g in meant if g not in found]
    return found


def use() -> Use:
    """How much of each GPU's memory is in use now, and by whom."""
    memory, programs = {}, []
    for uuid, used, total in _table("--query-gpu=uuid,memory.used,memory.total", 3):
        if used.isdigit() and total.isdigit():
            memory[uuid] = int(used), int(total)
    for uuid, pid, mib, name in _table("--query-compute-apps=gpu_uuid,pid,used_memory,process_name", 4):
        if pid.isdigit():
            programs.append(Program(uuid, int(pid), int(mib) if mib.isdigit() else 0, shown(name)))
    return Use(memory, programs)


def _table(query: str, columns: int) -> Iterator[list[str]]:
    rows = csv.reader(nvidia_smi(query, "--format=csv,noheader,nounits").splitlines(), skipinitialspace=True)
    return ([cell.strip() for cell in row] for row in rows if len(row) == columns)


def count() -> int:
    """GPUs that this process may use; 0 where there is no driver."""
    return len(visible(listed()))


def local_limit(wanted: int | None, device: str, trainings_per_gpu: int = 1) -> int:
    """How many jobs that ask for a GPU may run at once on this machine.

    As many as its GPUs take, so that ``--cores 8`` does not start eight trainings on one. Where none
    is there or wanted, such jobs run on the CPU and only cores limit them.
    """
    if wanted is not None:
        return wanted
    return (0 if device == "cpu" else count() * trainings_per_gpu) or UNLIMITED
