"""What a training leaves: the resume state while it runs, run.zip when it is done.

Neither needs MONAI. run.zip is a stored zip, the one output of training; the state is undeclared, so
that Snakemake never deletes it, and is only ever replaced whole.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from . import layout
from .errors import UserError
from .files import parse_json, read_text, refusals_of, replacing, until_changed, write_bytes
from .hashing import sha256
from .tables import read_tsv, tsv
from .zips import copy_member, damaged, member_bytes, opened, zip_bytes, zip_member

LOG = logging.getLogger(__name__)
INFO = "run.json"
JOURNAL = "journal.tsv"
TRAINING_LOSS = "logs/training_loss.tsv"
TRAINED, SAVED = "trained", "saved"
"""What the journal notes of an epoch."""


def member_of_checkpoint(epoch: int) -> str:
    return f"checkpoints/epoch-{epoch}.pt"


def run_info(path: str | os.PathLike) -> dict | None:
    """What a product's zip says of itself, or None where there is no whole one."""
    try:
        return _described(path)
    except (FileNotFoundError, UserError):
        return None


def finished_run(path: str | os.PathLike, *needed: str) -> dict:
    """run.zip's own description, with the epochs, the best of them, and whatever else is ``needed``.

    Raises
    ------
    UserError
        If there is no whole run.zip, or it does not say that.
    """
    try:
        info = _described(path)
    except FileNotFoundError:
        raise UserError(f"{path}: file not found; ask Snakemake for it to have the split trained") from None
    wrong = [k for k in ("epochs", "best", *needed) if k not in info]
    wrong += [k for k, is_right in _RUN.items() if k in info and not is_right(info[k])]
    if wrong:
        raise damaged(path, f"{INFO}: {', '.join(wrong)} missing or of the wrong kind")
    return info


def _described(path: str | os.PathLike) -> dict:
    return dict(_description(path))


@until_changed(64)
def _description(path: str) -> dict:
    text = zip_member(path, INFO).decode(errors="replace")
    info = parse_json(text, f"{path}: {INFO}")
    if not isinstance(info, dict):
        raise damaged(path, f"{INFO}: found a JSON {type(info).__name__}, wanted an object")
    return info


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_best(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(b, dict) and _is_count(b.get("epoch")) and isinstance(b.get("value"), int | float | None)
        for b in value.values()
    )


def _are_digests(value: Any) -> bool:
    return isinstance(value, dict) and all(e.isdecimal() and isinstance(h, str) for e, h in value.items())


_RUN = {
    "epochs": _is_count,
    "best": _is_best,
    "checkpoints": _are_digests,
    "input_shape": lambda v: isinstance(v, list) and len(v) in (3, 4) and all(map(_is_count, v)),
    "parameters": _is_count,
    "stopped_early": lambda v: isinstance(v, bool),
    "device": lambda v: isinstance(v, str),
    "network": lambda v: isinstance(v, dict) and isinstance(v.get("args"), dict),
}
"""What the rules need to know of a run, and how it looks."""


def weights_of(info: dict, checkpoints: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the weights of each checkpoint that a run holds: they tell one training's outcome from another's."""
    epochs = {c: c.removeprefix("epoch-") for c in checkpoints}
    epochs |= {c: str(info["epochs"]) for c in epochs if c == "final"}
    epochs |= {f"best-{name}": str(best["epoch"]) for name, best in info["best"].items() if f"best-{name}" in epochs}
    return {c: info["checkpoints"][epoch] for c, epoch in epochs.items() if epoch in info["checkpoints"]}


def lacking(info: dict, listed: Iterable[int]) -> list[int]:
    """Listed epochs that a run reached and does not hold."""
    return [e for e in listed if e <= info["epochs"] and str(e) not in info["checkpoints"]]


@contextmanager
def only_trainer(archive: str, split: str) -> Iterator[None]:
    """Hold the split's lock; wait, saying for whom, while another trainer lives.

    The kernel drops the lock when its holder dies, however it dies.
    """
    folder = Path(layout.tmp_dir(archive, split))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+b", buffering=0) as lock:
        told = 0.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - told > 60:
                    lock.seek(0)
                    holder = lock.read().decode(errors="replace").strip() or "unknown"
                    LOG.info(f"split {split}: another trainer ({holder}) is at work; waiting for it")
                    told = time.monotonic()
                time.sleep(0.5)
        with refusals_of(folder / "lock"):
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def epochs_noted(folder: str | os.PathLike, what: str) -> list[int]:
    """Every epoch that the journal says was ``TRAINED`` or ``SAVED`` for the present configuration, in order.

    An epoch that was trained again occurs again.
    """
    path = Path(folder, JOURNAL)
    lines = [line.split("\t") for line in read_text(path).splitlines()] if path.is_file() else []
    # A kill may have cut the last line short.
    return [int(line[2]) for line in lines if line[:2] == [lines[-1][0], what] and line[-1].isdecimal()]


class Workspace:
    """The undeclared folder of a split's training.

    Parameters
    ----------
    archive, split:
        Whose training.
    fingerprint:
        Of what determines the training; a state or a finished run with another one is not used.
    folder:
        Another one than the split's own.
    """

    def __init__(self, archive: str, split: str, fingerprint: str, folder: str | None = None):
        self.archive = archive
        self.run_zip = Path(layout.run_zip(archive, split))
        self.folder = Path(folder or layout.tmp_dir(archive, split))
        self.fingerprint = fingerprint
        self.state_file = self.folder / "state.pt"
        self.kept = self.folder / "kept"
        self.events = self.folder / "events"
        self.done = self.folder / "done.zip"

    def take_finished(self, listed: Iterable[int] = ()) -> bool:
        """Put a run that is already finished in place, if it holds the ``listed`` epochs; whether there was one."""
        info = self._finished(self.done)
        if info is None or lacking(info, listed):
            return False
        self._link_into_place()
        return True

    def run_that_lacks(self, listed: Iterable[int]) -> Path | None:
        """A finished run of this training that only lacks some of the ``listed`` epochs, if there is one."""
        last = Path(layout.held_version(self.archive, str(self.run_zip)))
        return next((p for p in (self.done, last) if (info := self._finished(p)) and lacking(info, listed)), None)

    def _finished(self, path: Path) -> dict | None:
        try:
            info = finished_run(path, "fingerprint", "checkpoints")
        except UserError:
            return None
        return info if info["fingerprint"] == self.fingerprint else None

    def _link_into_place(self) -> None:
        with replacing(self.run_zip) as temporary:
            try:
                os.link(self.done, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.done, temporary)

    def load_state(self) -> dict | None:
        """The state of an interrupted training of the same fingerprint, else None."""
        if not self.state_file.is_file():
            return None
        from .weights import load_plain

        try:
            with open(self.state_file, "rb") as file:
                state = load_plain(file, self.state_file)
        except UserError as error:
            LOG.warning(f"{error}; training starts from the first epoch")
            return None
        return state if isinstance(state, dict) and state.get("fingerprint") == self.fingerprint else None

    def start_afresh(self) -> None:
        """Forget what another configuration left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (self.kept, self.events):
            shutil.rmtree(path, ignore_errors=True)
        self.state_file.unlink(missing_ok=True)
        self.done.unlink(missing_ok=True)

    def note_epoch(self, epoch: int, what: str) -> None:
        """Add an epoch that was just ``TRAINED`` or ``SAVED`` to the journal."""
        with refusals_of(self.folder / JOURNAL), open(self.folder / JOURNAL, "a") as file:
            file.write(f"{self.fingerprint}\t{what}\t{epoch}\n")

    def keep_checkpoint(self, epoch: int, weights: dict) -> None:
        """Keep the weights of an epoch that may be selected."""
        self.keep_file(epoch, saved(weights))

    def keep_file(self, epoch: int, data: bytes) -> None:
        """The same of weights that are a file's content already."""
        write_bytes(self.kept / f"{epoch}.pt", data)

    def drop_checkpoints_but(self, epochs: set[int]) -> None:
        for path in self.kept.glob("*.pt"):
            if path.stem not in map(str, epochs):
                path.unlink()

    def save_state(self, state: dict) -> None:
        write_bytes(self.state_file, saved({**state, "fingerprint": self.fingerprint}))

    def digests(self, epochs: Iterable[int]) -> dict[str, str]:
        """SHA-256 of the kept weights of ``epochs``; those that are not kept, as they were listed too late, left out."""
        paths = {epoch: self.kept / f"{epoch}.pt" for epoch in sorted(epochs)}
        return {str(epoch): sha256(path) for epoch, path in paths.items() if path.is_file()}

    def finish(self, members: dict[str, bytes | str]) -> None:
        """Write run.zip with the checkpoints that it says it holds, then forget the resume state."""
        epochs = map(int, json.loads(members[INFO])["checkpoints"])
        self._write(members, {epoch: (self.kept / f"{epoch}.pt").read_bytes for epoch in epochs})

    def extend(self, run: Path, added: Workspace) -> None:
        """Write run.zip as ``run`` with the checkpoints that another workspace kept, all else as it is."""
        with opened(run) as archive:
            info = json.loads(archive.read(INFO))
            new = added.digests(int(path.stem) for path in added.kept.glob("*.pt"))
            read = {e: partial(archive.read, member_of_checkpoint(int(e))) for e in info["checkpoints"]}
            read |= {e: (added.kept / f"{e}.pt").read_bytes for e in new}
            info["checkpoints"] = dict(sorted((info["checkpoints"] | new).items(), key=lambda item: int(item[0])))
            others = [name for name in archive.namelist() if name not in map(member_of_checkpoint, read)]
            members = {name: archive.read(name) for name in others}
            self._write({**members, INFO: info_text(info)}, {int(epoch): data for epoch, data in read.items()})

    def _write(self, members: dict[str, bytes | str], weights: dict[int, Callable[[], bytes]]) -> None:
        with replacing(self.done) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                zip_bytes(archive, name, data)
            for epoch, read in sorted(weights.items()):
                zip_bytes(archive, member_of_checkpoint(epoch), read())
        self._link_into_place()
        self.state_file.unlink(missing_ok=True)
        for path in (self.kept, self.events):
            shutil.rmtree(path, ignore_errors=True)


class ReadWorkspace(Workspace):
    """A workspace that another process writes: the state is read, nothing is written."""

    def start_afresh(self) -> None:
        pass

    def note_epoch(self, epoch: int, what: str) -> None:
        pass

    def keep_checkpoint(self, epoch: int, weights: dict) -> None:
        pass

    def keep_file(self, epoch: int, data: bytes) -> None:
        pass

    def drop_checkpoints_but(self, epochs: set[int]) -> None:
        pass

    def save_state(self, state: dict) -> None:
        pass


def info_text(info: dict) -> str:
    """What a run says of itself, as its zip holds it."""
    return json.dumps(info, indent=1, ensure_ascii=False)


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
    if kind == "best" and name not in info["best"]:
        raise UserError(f"{checkpoint}: the run has no best epoch by {name}; it has {', '.join(info['best'])}")
    if kind == "epoch" and int(name) > info["epochs"]:
        raise UserError(
            f"{checkpoint}: training stopped early, after epoch {info['epochs']}; take {name} out of select.epochs"
        )
    return info["best"][name]["epoch"] if kind == "best" else int(name)


def select_checkpoint(archive: str, split: str, checkpoint: str) -> None:
    """Write a checkpoint's weights."""
    path = layout.run_zip(archive, split)
    epoch = epoch_of(finished_run(path), checkpoint)
    target = layout.checkpoint_pt(layout.checkpoint_dir(archive, split, checkpoint))
    copy_member(path, member_of_checkpoint(epoch), target)


def select_tables(archive: str, split: str, checkpoint: str) -> None:
    """Write a checkpoint's validation tables: the rows of its epoch in the split's history."""
    path = layout.run_zip(archive, split)
    epoch = str(epoch_of(finished_run(path), checkpoint))
    for table, target in zip(
        layout.METRIC_TABLES, layout.checkpoint_tables(layout.checkpoint_dir(archive, split, checkpoint)), strict=True
    ):
        name = f"validation_metrics/{table}"
        text = zip_member(path, name).decode(errors="replace")
        columns, rows = text.split("\n", 1)[0].split("\t"), read_tsv(text, f"{path}: {name}")
        if "epoch" not in columns:
            raise damaged(path, f"{name} has no column 'epoch'")
        write_bytes(target, tsv(columns, (r for r in rows if r["epoch"] == epoch)).encode())


def copy_members(archive: str, split: str, targets: list[str]) -> None:
    """Write files of a split that run.zip holds under the same name; measured ones lie below ``timing/``."""
    path = layout.run_zip(archive, split)
    base = layout.split_dir(archive, split)
    with opened(path) as archive_file:
        names = set(archive_file.namelist())
        for target in targets:
            name = target.removeprefix(f"{base}/")
            write_bytes(target, member_bytes(archive_file, name if name in names else f"timing/{name}", path))
