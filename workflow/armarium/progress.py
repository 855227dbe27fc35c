"""How a training shows where it is: a bar on a terminal, sparse lines in a log, live TensorBoard events."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

LOG = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 10.0


class EpochProgress:
    """Shows epochs as they end.

    Parameters
    ----------
    split:
        Number of the split.
    epochs:
        How many there will be.
    events:
        Folder of the live TensorBoard events.
    done:
        Epochs trained before this process.
    """

    def __init__(self, split: str, epochs: int, events: Path, done: int):
        self.split, self.epochs, self.done = split, epochs, done
        self.events = events
        self.started = self.told = time.monotonic()

    def __enter__(self) -> EpochProgress:
        from .events import EventFile

        self.file = self.live = self.bar = None
        now = time.time()
        with self._dispensable():
            self.events.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(now)}.{os.getpid()}"
            self.file = open(self.events / name, "wb", buffering=0)
            self.live = EventFile(self.file, now)
        if sys.stderr.isatty():
            self.bar = tqdm(total=self.epochs, initial=self.done, desc=f"split {self.split}", unit="epoch", leave=False)
        elif self.done:
            LOG.info(f"split {self.split}: resuming after epoch {self.done}")
        return self

    def __exit__(self, *_) -> None:
        if self.file is not None:
            self.file.close()
        if self.bar is not None:
            self.bar.close()

    @contextmanager
    def _dispensable(self) -> Iterator[None]:
        """Live events are to look at: that they cannot be written stops no training."""
        try:
            yield
        except OSError as error:
            self.live = None
            LOG.warning(f"{self.events}: {error.strerror}; training goes on without live events")

    def epoch(self, progress, validated: bool) -> None:
        """Show the epoch that just ended; ``progress`` is the training's record."""
        epoch = progress.epoch
        loss = mean_loss(progress.losses, epoch)
        scores = progress.history["aggregated"][-1] if validated else {}
        scores = {k: v for k, v in scores.items() if k != "epoch"}
        if self.live:
            rate = progress.rates[-1][2]
            with self._dispensable():
                self.live.add(epoch, event_scalars(loss, rate, scores), time.time())
        shown = {"loss": f"{loss:.4f}", **{f"val {k}": f"{v:.4f}" for k, v in scores.items()}}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(1)
        else:
            self._line(epoch, shown)

    def _line(self, epoch: int, shown: dict[str, str]) -> None:
        now = time.monotonic()
        if now - self.told < SECONDS_BETWEEN_LINES and epoch not in (self.epochs, self.done + 1):
            return
        self.told = now
        left = (now - self.started) / (epoch - self.done) * (self.epochs - epoch)
        text = ", ".join(f"{k} {v}" for k, v in shown.items())
        LOG.info(f"split {self.split}: epoch {epoch}/{self.epochs}, {text}, {left:.0f} s left")


class NoProgress:
    """In place of :class:`EpochProgress`, in the processes that another one shows the progress of."""

    def __init__(self, *_):
        pass

    def __enter__(self) -> NoProgress:
        return self

    def __exit__(self, *_) -> None:
        pass

    def epoch(self, progress, validated: bool) -> None:
        pass


def event_scalars(loss: float, rate: float, scores: dict[str, float]) -> dict[str, float]:
    """What TensorBoard shows of an epoch."""
    return {"train_loss": loss, "learning_rate": rate, **{f"val_{k}": v for k, v in scores.items()}}


def mean_loss(losses: list, epoch: int) -> float:
    """The mean training loss of an epoch; ``losses`` are rows of epoch, batch, loss."""
    values = []
    for row in reversed(losses):
        if row[0] != epoch:
            break
        values.append(row[2])
    return sum(values) / len(values)
