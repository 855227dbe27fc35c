"""How a step computes: the speed-ups that a recipe asks for, and the losses that a GPU keeps until they are asked for.

Each of these options changes arithmetic (kernels sum in another order, TF32 rounds), so each is the recipe's to choose and a
training that has one is another training. On the CPU ``channels_last`` and ``compile`` do what they do on a GPU; what
only a GPU has (``amp``, ``cuda_graphs``, ``tf32``) is left out there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from .distributed import Team
from .errors import UserError

STEPS_KEPT = 1000
"""Losses that stay on a GPU before they are fetched, however long an epoch is."""
WARM_UP = 3
"""Passes before a graph is recorded, in which libraries choose their algorithms; torch's documentation has as many."""


# ---- memory format, compilation


def memory_format(dimensions: int) -> torch.memory_format:
    """Channels last, of a tensor of so many dimensions; others than images have no such format."""
    known = {4: torch.channels_last, 5: torch.channels_last_3d}
    return known.get(dimensions, torch.contiguous_format)


def laid_out(network: torch.nn.Module, settings: dict) -> torch.nn.Module:
    """The network with its weights in the memory format that the recipe asks for."""
    if settings.get("channels_last"):
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous(memory_format=memory_format(parameter.ndim))
    return network


def compiled(network: torch.nn.Module, settings: dict) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a training calls in the network's place: the network, or what torch compiles of it.

    Each shape is compiled for itself, so that a resumed training runs the same code as one that met other shapes before.
    """
    return torch.compile(network, dynamic=False) if settings.get("compile") else network


def refuse_without_compiler(settings: dict, device: torch.device) -> None:
    """Refuse, before anything is prepared, to compile where torch cannot.

    Raises
    ------
    UserError
        If there is no compiler, or on a GPU no Triton.
    """
    if not settings.get("compile"):
        return
    advice = "or set compile: false, which gives other bytes"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError(
            f"compile is true, and torch compiles for a GPU by Triton, which is not installed; install it, {advice}"
        )
    variable, usual = ("CC", ("gcc", "clang", "cc")) if device.type == "cuda" else ("CXX", ("g++", "clang++"))
    given = os.environ.get(variable)
    if not any(map(shutil.which, (given,) if given else usual)):
        looked = f"{variable}={given}" if given else ", ".join(usual)
        raise UserError(f"compile is true, and there is no compiler (looked for {looked}); install one, {advice}")


# ---- loss and gradients of a step


class Gradients:
    """Computes a batch's loss and leaves each parameter its gradient.

    Parameters
    ----------
    network:
        Whose parameters they are.
    loss_of:
        From images and labels to the loss, a scalar.
    scaler:
        Scales the loss that gradients are taken of.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        scaler: torch.amp.GradScaler,
    ):
        self.network, self.loss_of, self.scaler = network, loss_of, scaler

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, weight: float) -> torch.Tensor:
        """The loss; gradients are of ``weight`` times it, scaled."""
        self.network.zero_grad(set_to_none=True)
        loss = self.loss_of(images, labels)
        self.scaler.scale(loss if weight == 1 else loss * weight).backward()
        return loss.detach()


@dataclass
class Recorded:
    """What was recorded for batches of one shape: where to put them, how to run it, and where the results lie."""

    images: torch.Tensor
    labels: torch.Tensor
    replay: Callable[[], None]
    loss: torch.Tensor
    gradients: list[torch.Tensor | None]


class RecordedGradients(Gradients):
    """The same, recorded once for each shape of a batch and played again: a GPU then waits for no Python.

    For small networks, whose kernels take less time than it takes to ask for them. What is recorded must not look at
    values; that is refused when it is recorded, in the first step.

    Parameters
    ----------
    record:
        Runs a function so that it can be run again on the same memory: :func:`cuda_graph`.
    """

    def __init__(self, *given, record: Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], None], torch.Tensor]]):
        super().__init__(*given)
        self.record, self.recorded = record, {}

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, weight: float) -> torch.Tensor:
        key = (images.shape, images.dtype, labels.shape, labels.dtype, weight)
        if key not in self.recorded:
            self.recorded[key] = self._recorded(images, labels, weight)
        of_shape = self.recorded[key]
        of_shape.images.copy_(images)
        of_shape.labels.copy_(labels)
        of_shape.replay()
        for parameter, gradient in zip(self.network.parameters(), of_shape.gradients, strict=True):
            parameter.grad = gradient
        return of_shape.loss.clone()  # the next step writes there

    def _recorded(self, images: torch.Tensor, labels: torch.Tensor, weight: float) -> Recorded:
        images, labels = images.clone(), labels.clone()
        before = [
            buffer.clone() for buffer in self.network.buffers()
        ]  # batch normalisation counts the passes to warm up
        compute = super().__call__
        replay, loss = self.record(lambda: compute(images, labels, weight))
        for buffer, value in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(value)
        return Recorded(images, labels, replay, loss, [p.grad for p in self.network.parameters()])


def cuda_graph(compute: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """Record a function's kernels as a CUDA graph; how to play it again, and the tensor that it then writes.

    As torch's documentation has it (CUDA semantics, CUDA graphs: "Usage with torch.cuda.amp"): the optimizer's step stays
    outside. The random numbers that a GPU draws are as without.

    Raises
    ------
    UserError
        If what is computed cannot be recorded.
    """
    drawn = torch.cuda.get_rng_state()
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            compute()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = compute()
    except RuntimeError as error:
        raise UserError(
            f"cuda_graphs is true, and the network or the loss looks at values while it computes, which no graph can: {error}; "
            "set cuda_graphs: false"
        ) from None
    torch.cuda.set_rng_state(drawn)
    return graph.replay, result


def gradients(settings: dict, device: torch.device, *given) -> Gradients:
    """What computes a step's gradients on a device; ``given`` is what :class:`Gradients` takes."""
    if settings.get("cuda_graphs") and device.type == "cuda":
        return RecordedGradients(*given, record=cuda_graph)
    return Gradients(*given)


# ---- losses


class Losses:
    """The losses of steps, each with what it counts; a GPU's are fetched together, as each fetch waits for all it has to do.

    Parameters
    ----------
    team:
        The processes whose losses add up.
    device:
        Where losses are computed; a CPU's are there at once.
    """

    def __init__(self, team: Team, device: torch.device):
        self.team, self.most = team, 1 if device.type == "cpu" else STEPS_KEPT
        self.rows: list[list] = []
        self.kept: list[torch.Tensor] = []
        self.weights: list[float] = []

    def add(self, row: Sequence, loss: torch.Tensor, weight: float) -> None:
        """Take in a step's loss; ``row`` says of which."""
        self.rows.append(list(row))
        self.kept.append(loss)
        self.weights.append(weight)

    @property
    def is_full(self) -> bool:
        """Whether it is time to fetch them."""
        return len(self.rows) >= self.most

    def fetched(self) -> Iterable[list]:
        """Each row with its loss after it, the sum over the processes; they are then forgotten."""
        if not self.rows:
            return []
        values = torch.stack(self.kept).to("cpu", torch.float64).tolist()
        sums = self.team.add([v * w for v, w in zip(values, self.weights, strict=True)])
        rows = [[*row, value] for row, value in zip(self.rows, sums, strict=True)]
        self.rows, self.kept, self.weights = [], [], []
        return rows
