"""What a training leaves: the resume state while it runs, run.zip when it is done.

Neither needs MONAI. run.zip is a stored zip, the one output of training; the state is undeclared, so
that Snakemake never deletes it, and is only ever replaced whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import layout
from .files import replacing, write_bytes
from .tables import read_tsv, tsv

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
INFO = "run.json"


def member_of_checkpoint(epoch: int) -> str:
    return f"checkpoints/epoch-{epoch}.pt"


def zip_bytes(archive: zipfile.ZipFile, name: str, data: bytes | str) -> None:
    """Store a member without a clock: the same bytes every time."""
    info = zipfile.ZipInfo(name, ZIP_EPOCH)
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def write_zip(path: str | os.PathLike, members: dict[str, bytes | str]) -> None:
    """A stored zip with ``members`` in order, put in place whole."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            zip_bytes(archive, name, data)


def zip_member(path: str | os.PathLike, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def run_info(path: str | os.PathLike) -> dict | None:
    """run.zip's own description, or None where there is no whole run.zip."""
    try:
        return json.loads(zip_member(path, INFO))
    except (FileNotFoundError, KeyError, zipfile.BadZipFile, ValueError):
        return None


def run_identity(info: dict | None) -> str | None:
    """Tells one training's outcome from another's: a hash over what its run.zip says of itself."""
    return None if info is None else hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


@contextmanager
def only_trainer(archive: str, split: str) -> Iterator[None]:
    """Hold the split's lock; wait, saying for whom, while another trainer lives.

    The kernel drops the lock when its holder dies, however it dies.
    """
    folder = Path(layout.tmp_dir(archive, split))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as lock:
        told = 0.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - told > 60:
                    lock.seek(0)
                    holder = lock.read().strip() or "unknown"
                    print(
                        f"split {split}: another trainer ({holder}) is at work; waiting for it",
                        file=sys.stderr,
                        flush=True,
                    )
                    told = time.monotonic()
                time.sleep(0.5)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


class Workspace:
    """The undeclared folder of a split's training.

    Parameters
    ----------
    archive, split:
        Whose training.
    fingerprint:
        Of what determines the training; a state or a finished run with another one is not used.
    """

    def __init__(self, archive: str, split: str, fingerprint: str):
        self.run_zip = Path(layout.run_zip(archive, split))
        self.folder = Path(layout.tmp_dir(archive, split))
        self.fingerprint = fingerprint
        self.state_file = self.folder / "state.pt"
        self.kept = self.folder / "kept"
        self.events = self.folder / "events"
        self.done = self.folder / "done.zip"

    def take_finished(self) -> bool:
        """Put a run that is already finished in place; whether there was one."""
        info = run_info(self.done)
        if info is None or info["fingerprint"] != self.fingerprint:
            return False
        self._link_into_place()
        return True

    def _link_into_place(self) -> None:
        with replacing(self.run_zip) as temporary:
            try:
                os.link(self.done, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.done, temporary)

    def load_state(self) -> dict | None:
        """The state of an interrupted training of the same fingerprint, else None."""
        import torch

        if not self.state_file.is_file():
            return None
        try:
            state = torch.load(self.state_file, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, ValueError, OSError):
            return None
        return state if state.get("fingerprint") == self.fingerprint else None

    def start_afresh(self) -> None:
        """Forget what another configuration left."""
        for path in (self.kept, self.events):
            shutil.rmtree(path, ignore_errors=True)
        self.state_file.unlink(missing_ok=True)
        self.done.unlink(missing_ok=True)

    def keep_checkpoint(self, epoch: int, weights: dict) -> None:
        """Keep the weights of an epoch that may be selected."""
        write_bytes(self.kept / f"{epoch}.pt", saved(weights))

    def drop_checkpoints_but(self, epochs: set[int]) -> None:
        for path in self.kept.glob("*.pt"):
            if int(path.stem) not in epochs:
                path.unlink()

    def save_state(self, state: dict) -> None:
        write_bytes(self.state_file, saved({**state, "fingerprint": self.fingerprint}))

    def finish(self, members: dict[str, bytes | str], epochs: set[int]) -> None:
        """Write run.zip with the kept checkpoints of ``epochs``, then forget the resume state."""
        with replacing(self.done) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                zip_bytes(archive, name, data)
            for epoch in sorted(epochs):
                zip_bytes(archive, member_of_checkpoint(epoch), (self.kept / f"{epoch}.pt").read_bytes())
        self._link_into_place()
        self.state_file.unlink(missing_ok=True)
        for path in (self.kept, self.events):
            shutil.rmtree(path, ignore_errors=True)


def saved(value: Any) -> bytes:
    """``torch.save`` to memory: bytes that depend on the value alone."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def forget_workspaces(archive: str, splits: list[int]) -> None:
    """Remove what resuming needed, once the archive is complete."""
    for split in splits:
        if run_info(layout.run_zip(archive, split)):
            shutil.rmtree(layout.tmp_dir(archive, split), ignore_errors=True)


# ---- selecting: members of run.zip, copied without torch


def epoch_of(info: dict, checkpoint: str) -> int:
    """The epoch that a checkpoint's name stands for in a finished run."""
    if checkpoint == "final":
        return info["epochs"]
    kind, _, name = checkpoint.partition("-")
    return info["best"][name]["epoch"] if kind == "best" else int(name)


def select_checkpoint(archive: str, split: str, checkpoint: str) -> None:
    """Write a checkpoint's weights."""
    path = layout.run_zip(archive, split)
    epoch = epoch_of(run_info(path), checkpoint)
    write_bytes(
        layout.checkpoint_pt(layout.checkpoint_dir(archive, split, checkpoint)),
        zip_member(path, member_of_checkpoint(epoch)),
    )


def select_tables(archive: str, split: str, checkpoint: str) -> None:
    """Write a checkpoint's validation tables: the rows of its epoch in the split's history."""
    path = layout.run_zip(archive, split)
    epoch = str(epoch_of(run_info(path), checkpoint))
    for table, target in zip(
        layout.METRIC_TABLES, layout.checkpoint_tables(layout.checkpoint_dir(archive, split, checkpoint)), strict=True
    ):
        text = zip_member(path, f"validation_metrics/{table}").decode()
        columns = text.split("\n", 1)[0].split("\t")
        write_bytes(target, tsv(columns, (r for r in read_tsv(text) if r["epoch"] == epoch)).encode())


def copy_members(archive: str, split: str, targets: list[str]) -> None:
    """Write files of a split that run.zip holds under the same name; measured ones lie below ``timing/``."""
    path = layout.run_zip(archive, split)
    base = layout.split_dir(archive, split)
    with zipfile.ZipFile(path) as archive_file:
        names = set(archive_file.namelist())
        for target in targets:
            name = target.removeprefix(f"{base}/")
            write_bytes(target, archive_file.read(name if name in names else f"timing/{name}"))
