"""One line in, one epoch, one line out. Nothing but the standard library, for any interpreter."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Turns:
    """What a contender is told and answers; ``task`` is what it is to train, of the file that the command line names."""

    def __init__(self):
        self.task = json.loads(Path(sys.argv[1]).read_text())
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no answer
        if (
            self.task["device"] == "cpu"
        ):  # no contender computes on more cores than it is lent, threads that load ahead included
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.task["threads"]])
        self.synchronise: Callable[[], None] = lambda: None

    def wait(self) -> None:
        """Until the next turn; the process ends when there is none."""
        if not sys.stdin.readline():
            os._exit(0)
        self.started = time.perf_counter(), time.process_time()

    def done(self, samples: int) -> None:
        self.synchronise()
        wall, cpu = (
            now - then for now, then in zip((time.perf_counter(), time.process_time()), self.started, strict=True)
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"samples": samples, "wall": wall, "cpu": cpu, "peak": peak}), file=self.answers, flush=True)

    def serve(self, epoch: Callable[[], int]) -> None:
        """An epoch a turn; ``epoch`` gives how many samples it had."""
        while True:
            self.wait()
            self.done(epoch())


def use_torch(turns: Turns):
    """torch with the task's threads and its device."""
    import torch

    torch.set_num_threads(turns.task["threads"])
    if turns.task["device"] == "cuda":
        turns.synchronise = torch.cuda.synchronize
        torch.backends.cudnn.benchmark = True
    return torch
