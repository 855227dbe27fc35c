"""TensorBoard's event files, written where and when it is said.

The library's own writer is a thread, which tells a full disk to nobody.
"""

from __future__ import annotations

from typing import IO

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar


class EventFile:
    """Scalars by epoch.

    Parameters
    ----------
    file:
        Where to write, empty.
    started:
        Seconds since 1970.
    """

    def __init__(self, file: IO[bytes], started: float):
        self.records = RecordWriter(file)
        self._write(Event(wall_time=started, file_version="brain.Event:2"))

    def add(self, epoch: int, values: dict[str, float], time: float) -> None:
        for tag, value in values.items():
            self._write(Event(wall_time=time, step=epoch, summary=scalar(tag, value)))

    def _write(self, event: Event) -> None:
        self.records.write(event.SerializeToString())
