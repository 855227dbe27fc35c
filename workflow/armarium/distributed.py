"""Several processes that train or evaluate together: who does what, and how it comes together again.

Each process (a rank) holds the whole network and computes a part of every step's cases. The gradients are added up over
the processes, each weighted by its share of the step's cases, and every process takes the same step: that of one process
with all of the cases. So none counts twice and none is dropped, also where numbers are not divisible by that of the
processes. They are added as one vector in the order of the parameters, after the backward pass, and not by torch's
``DistributedDataParallel``: that divides by the number of processes and not of cases, and orders its sums by what it
met before in the same process, so that a resumed training of three and more would differ in the last bit.

Built on torch.distributed: NCCL between GPUs, gloo between CPUs and for all that is no tensor of the network.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed
from torch.utils.data import Sampler

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another that lives and does not answer; one that died is noticed at once by torchrun."""


@dataclass(frozen=True)
class Team:
    """The processes that work together, as one of them sees them; alone by default, and then nothing is sent.

    Attributes
    ----------
    rank, size:
        Which of how many this process is.
    device:
        What this process computes on; None leaves the choice to :func:`armarium.network.choose_device`.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0

    @property
    def seed(self) -> tuple:
        """What tells this process's dropout from the others'; nothing for the first, as for one that is alone."""
        return () if self.is_first else ("rank", self.rank)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Every so many of ``items``: this process's part."""
        return items[self.rank :: self.size]

    # ---- of any values

    def gather(self, value: T) -> list[T]:
        """Each process's value by rank in the first process, nothing in the others."""
        if self.size == 1:
            return [value]
        found: list | None = [None] * self.size if self.is_first else None
        distributed.gather_object(value, found)
        return found or []

    def in_order(self, own: Sequence[T]) -> list[T]:
        """The results of all processes' shares in the order of the whole, in the first process; nothing in the others."""
        parts = [list(part) for part in self.gather(own)]
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]

    def tell(self, value: T) -> T:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told)
        return told[0]

    def wait(self) -> None:
        """Until all have come here."""
        self.gather(None)
        self.tell(None)

    # ---- of a network

    def even_out(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give tensors the first process's values."""
        for tensor in tensors if self.size > 1 else ():
            distributed.broadcast(tensor, 0)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; one that no process has stays away."""
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in trained]
        there = torch.tensor([float(p.grad is not None) for p in trained], device=parts[0].device)
        summed = torch.cat([*parts, there])
        distributed.all_reduce(summed)
        *sums, there = summed.split([*(p.numel() for p in trained), len(trained)])
        for parameter, total, count in zip(trained, sums, there.tolist(), strict=True):
            if count:
                parameter.grad = total.view_as(parameter).to(parameter.dtype)

    def add(self, values: list[float]) -> list[float]:
        """The sums over the processes, the same in each."""
        if self.size == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(summed)
        return summed.tolist()

    def synchronised(self, network: torch.nn.Module) -> torch.nn.Module:
        """The network with batch normalisation over the cases of all processes, which torch has for GPUs only.

        On CPUs each process normalises its own cases. The weights' names and the network that is exported stay.
        """
        if self.size == 1 or self.device is None or self.device.type != "cuda":
            return network
        return torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)


ALONE = Team()


class Batches(Sampler[list[int]]):
    """This process's part of each step's cases.

    A step takes ``batch_size`` cases for each process; where fewer are left, each takes as many as others, or one less.
    A process that none is left for computes the step's first case again, with weight 0.

    Parameters
    ----------
    order:
        The numbers of an epoch's cases, anew each time it is walked through.
    batch_size:
        Cases of a process in a step.
    drop_last:
        Whether a step with fewer cases is left out.
    """

    def __init__(self, order: Sampler, batch_size: int, drop_last: bool, team: Team):
        self.order, self.whole, self.drop_last, self.team = order, batch_size * team.size, drop_last, team

    def __len__(self) -> int:
        steps, left = divmod(len(self.order), self.whole)
        return steps + (left > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        numbers = list(self.order)
        for step in range(len(self)):
            of_all = numbers[step * self.whole : (step + 1) * self.whole]
            first, last = self._bounds(len(of_all))
            yield of_all[first:last] or of_all[:1]

    def _bounds(self, cases: int) -> tuple[int, int]:
        first, last = (-(-rank * cases // self.team.size) for rank in (self.team.rank, self.team.rank + 1))
        return first, last

    def weight(self, step: int) -> float:
        """What this process's mean over its cases counts in the mean over all of a step's."""
        cases = min(self.whole, len(self.order) - step * self.whole)
        first, last = self._bounds(cases)
        return (last - first) / cases


@contextmanager
def joined(device: str) -> Iterator[Team]:
    """Be one of the processes that torchrun started.

    Parameters
    ----------
    device:
        ``cuda`` takes the GPU of this process's number, ``cpu`` none.
    """
    from ignite import distributed as idist

    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    chosen = torch.device("cuda", local) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    idist.sync()  # asks the other processes, so it must not wait for the first metric of one of them
    yield Team(rank, distributed.get_world_size(), chosen)
    distributed.destroy_process_group()


@contextmanager
def by_itself() -> Iterator[None]:
    """MONAI's and ignite's metrics as of one process: it has all cases already, they would ask the others for more."""
    from ignite.distributed import utils

    known = utils._model, utils._need_to_sync
    utils._model, utils._need_to_sync = utils._SerialModel(), False
    try:
        yield
    finally:
        utils._model, utils._need_to_sync = known
