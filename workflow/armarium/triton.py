"""The published TorchScript as a model repository of Triton Inference Server.

``<name>/config.pbtxt``, ``<name>/1/model.pt`` and, beside them, the classes' names, as Triton's documentation has them
(user guide: Model Repository, Model Configuration). Its PyTorch backend takes inputs and outputs by the number at the end
of their names. Served is the network alone: what a client sends is an image as the recipe prepares it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import torch

from .errors import UserError

MOST_BATCH = 8
"""Images of a request, where the network takes several at once."""
WIDENED = 16
"""Voxels that an axis grows by to see whether any length will do: what most networks' strides divide."""
ANY = -1
LABELS = "labels.txt"
TYPES = {torch.float16: "TYPE_FP16", torch.float32: "TYPE_FP32", torch.float64: "TYPE_FP64", torch.int64: "TYPE_INT64"}


@dataclass(frozen=True)
class Served:
    """A model to be served.

    Attributes
    ----------
    name:
        What it is called in the repository.
    torchscript:
        The file's bytes.
    input_shape:
        ``[1, channels, *grid]`` that it was exported with.
    scripted:
        Whether any grid may do: a network that was traced is as it was for one.
    labels:
        The output channels' names; none where they are no classes.
    """

    name: str
    torchscript: bytes
    input_shape: list[int]
    scripted: bool
    labels: list[str]


def model_repository(served: Served, divisor: Sequence[int]) -> dict[str, bytes | str]:
    """The repository's files by name.

    Parameters
    ----------
    divisor:
        What the network's grid is a multiple of, along each axis.
    """
    files: dict[str, bytes | str] = {
        f"{served.name}/config.pbtxt": configuration(served, divisor),
        f"{served.name}/1/model.pt": served.torchscript,
    }
    if served.labels:
        files[f"{served.name}/{LABELS}"] = "".join(f"{label}\n" for label in served.labels)
    return files


def configuration(served: Served, divisor: Sequence[int]) -> str:
    """``config.pbtxt``: what the network was seen to take and to give, -1 along an axis of any length.

    Raises
    ------
    UserError
        If it does not take the input that it was exported with.
    """
    network = torch.jit.load(io.BytesIO(served.torchscript), map_location="cpu").eval()
    given = _run(network, served.input_shape)
    if given is None:
        raise UserError(f"models/model.ts: does not take an input {served.input_shape}, which it was exported with")
    axes = range(2, len(served.input_shape)) if served.scripted else ()
    takes, gives = list(served.input_shape), [list(output.shape) for output in given]
    for axis in axes:
        _widen(network, served.input_shape, axis, lcm(WIDENED, divisor[axis - 2]), takes, gives)
    batched = _takes_batches(network, served.input_shape, given)
    first = 1 if batched else 0  # of a batch's dimension Triton knows itself
    inputs = [_tensor("INPUT__0", torch.float32, takes[first:])]
    outputs = [
        _tensor(f"OUTPUT__{i}", output.dtype, dims[first:], LABELS if served.labels else None)
        for i, (output, dims) in enumerate(zip(given, gives, strict=True))
    ]
    head = [f'name: "{served.name}"', 'platform: "pytorch_libtorch"', f"max_batch_size: {MOST_BATCH if batched else 0}"]
    return "\n".join([*head, *_listed("input", inputs), *_listed("output", outputs), ""])


def _run(network: torch.nn.Module, shape: Sequence[int]) -> list[torch.Tensor] | None:
    """The network's outputs; None where it does not take such an input."""
    example = torch.randn(list(shape), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            output = network(example)
    except RuntimeError:  # whatever is raised in TorchScript
        return None
    return list(output) if isinstance(output, list | tuple) else [output]


def _widen(network, shape: Sequence[int], axis: int, step: int, takes: list[int], gives: list[list[int]]) -> None:
    """Put -1 where a longer axis is taken, and in outputs that follow it."""
    longer = [n + step * (i == axis) for i, n in enumerate(shape)]
    given = _run(network, longer)
    if given is None:
        return
    takes[axis] = ANY
    for dims, output in zip(gives, given, strict=True):
        dims[:] = [ANY if old != new else old for old, new in zip(dims, output.shape, strict=True)]


def _takes_batches(network: torch.nn.Module, shape: Sequence[int], alone: list[torch.Tensor]) -> bool:
    """Whether an image gives what it gives alone also beside another one."""
    example = torch.randn(list(shape), generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            output = network(torch.cat([example, 2 * example + 1]))
    except RuntimeError:
        return False
    both = list(output) if isinstance(output, list | tuple) else [output]
    return all(
        b.shape == (2, *a.shape[1:]) and torch.allclose(b[:1], a, rtol=1e-3, atol=1e-4)
        for a, b in zip(alone, both, strict=True)
    )


def _tensor(name: str, dtype: torch.dtype, dims: Sequence[int], labels: str | None = None) -> list[str]:
    """The lines of an input's or output's message."""
    if dtype not in TYPES:
        raise UserError(f"models/model.ts: gives {dtype}, wanted one of {', '.join(map(str, TYPES))}")
    named = [f'label_filename: "{labels}"'] if labels else []
    return [f'name: "{name}"', f"data_type: {TYPES[dtype]}", f"dims: [ {', '.join(map(str, dims))} ]", *named]


def _listed(kind: str, messages: list[list[str]]) -> list[str]:
    lines = [f"{kind} ["]
    for number, message in enumerate(messages, 1):
        lines += ["  {", *(f"    {line}" for line in message), "  }" + "," * (number < len(messages))]
    return [*lines, "]"]
