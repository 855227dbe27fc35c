"""Causing faults of a machine for real, and what must hold after each."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import Project

# ---- disks and folders


@contextmanager
def mounted(target: Path, *options: str) -> Iterator[None]:
    """A mount at a folder; the test is skipped where this user may not mount."""
    done = subprocess.run(["mount", *options, str(target)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)


class Disk:
    """A small disk, to be filled."""

    def __init__(self, folder: Path):
        self.folder, self.filling = folder, folder / ".filling"

    def leave(self, kilobytes: int) -> None:
        """Fill it up to what is given."""
        self.filling.write_bytes(b"")
        now = os.statvfs(self.folder)
        free = now.f_bavail * now.f_frsize - kilobytes * 1024
        assert free >= 0, "the disk is fuller than that"
        self.filling.write_bytes(b"\0" * free)

    def empty(self) -> None:
        self.filling.unlink()


@contextmanager
def disk_of(folder: Path, kilobytes: int = 6_000) -> Iterator[Disk]:
    """Put a folder on a disk of its own, with what it holds."""
    aside = folder.with_name(f"{folder.name}-aside")
    folder.rename(aside)
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs"):
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield Disk(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield


# ---- processes


def limited(project: Project, *args: str, **limits: int) -> subprocess.CompletedProcess:
    """A Snakemake call under resource limits, such as ``RLIMIT_FSIZE=1000``."""
    return _run(project, project.command(*args), limits)


def step(project: Project, *args: str, **limits: int) -> subprocess.CompletedProcess:
    """A step by itself, as its rule calls it."""
    return _run(project, [sys.executable, "-m", "armarium", *args], limits)


def step_with_shared_memory(project: Project, kilobytes: int, *args: str) -> subprocess.CompletedProcess:
    """A step that finds a /dev/shm of that size; the test is skipped where this user may not mount."""
    own = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={kilobytes}k tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("needs to mount")
    return _run(project, [*own, sys.executable, "-m", "armarium", *args], {})


def _run(project: Project, command: list[str], limits: dict[str, int]) -> subprocess.CompletedProcess:
    def limit() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, name), (value, value))

    environment = {**project.environment, "PYTHONPATH": str(project.folder / "workflow")}
    return subprocess.run(
        command, cwd=project.folder, env=environment, capture_output=True, text=True, preexec_fn=limit, timeout=120
    )


# ---- what must hold


def contents(archive: Path) -> dict[str, str]:
    """SHA-256 of every file of an archive but resume state."""
    named = {str(p.relative_to(archive)): p for p in sorted(archive.rglob("*")) if p.is_file()}
    kept = {name: p for name, p in named.items() if "/tmp/" not in name}
    assert len(kept) > 20, "this looks at no archive"
    return {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in kept.items()}


def the_message(done: subprocess.CompletedProcess) -> str:
    """The one message of a call that failed."""
    output = done.stdout + done.stderr
    assert done.returncode != 0, output[-3000:]
    assert "Traceback" not in output, output[-6000:]
    messages = {line for line in output.splitlines() if line.startswith("armarium: ")}
    assert len(messages) == 1, (messages, output[-6000:])
    return messages.pop()


def half_done(folder: Path) -> list[str]:
    """What a writer left lying about."""
    return [str(p) for p in folder.rglob("*") if p.name.startswith(".writing-") or p.name == ".held"]


class Faults:
    """Counts faults, and what they cost an archive.

    Parameters
    ----------
    project:
        Whose archive; every fault is compared with how it is now.
    """

    def __init__(self, project: Project, figures):
        self.project, self.figures, self.before = project, figures, contents(project.archive)

    def survived(self, done: subprocess.CompletedProcess, *words: str, repeated: str = "") -> None:
        """A failed call told what was wrong in one message with these words, and cost no artifact.

        ``repeated`` is the record of a step that the call did again.
        """
        self.cost_nothing(repeated)
        message = the_message(done)
        assert all(word in message for word in words), message

    def cost_nothing(self, *repeated: str) -> None:
        """Every artifact is as it was, and nothing lies about."""
        now = contents(self.project.archive)
        lost = [name for name, digest in self.before.items() if now.get(name) != digest and name not in repeated]
        self.figures.add("faults caused")
        self.figures.add("faults that cost an artifact", int(bool(lost)))
        assert not lost, lost
        assert not half_done(self.project.folder), half_done(self.project.folder)
