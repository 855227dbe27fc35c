"""Segmentations as class numbers, and their scores class by class: a large volume takes little more memory than its output.

What a network gives for 512x512x800 voxels and five classes has 4 GB; every further copy of it, as probabilities, one-hot or
a metric's own, has as many. So it becomes class numbers a block at a time, and a metric sees one class at a time, cut to
where that class is. The results are the same to the bit: a transform of single voxels may be done in blocks, moving
whole voxels and choosing a class may change places, and a class's distances and overlap need no voxel that has it in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from monai.metrics import DiceMetric, HausdorffDistanceMetric, MeanIoU, SurfaceDistanceMetric
from monai.transforms import Activationsd, AsDiscreted
from monai.utils.enums import TraceKeys

from .transforms import GridInverter, apply_all

BLOCK = 1 << 24
"""Values of a network's output that are worked on at once: 64 MiB."""
MOVING = {
    "BorderPad",
    "CenterSpatialCrop",
    "CropForeground",
    "DivisiblePad",
    "Flip",
    "Orientation",
    "Pad",
    "ResizeWithPadOrCrop",
    "Rotate90",
    "SpatialCrop",
    "SpatialPad",
    "Transpose",
}
"""Spatial operations that move whole voxels: their inverses may be done to class numbers."""
OF_ONE_CLASS = (DiceMetric, HausdorffDistanceMetric, MeanIoU, SurfaceDistanceMetric)
"""Metrics whose value for a class depends on where that class is, and on nothing else."""


def only_chooses(post: tuple[list, list]) -> bool:
    """Whether post-transforms do nothing but make probabilities, voxel by voxel, and take the class of the largest.

    Parameters
    ----------
    post:
        Those before and after the prediction goes back to its file's grid.
    """
    before, after = post
    activates = all(type(t) is Activationsd and not any(t.other) and not t.converter.kwargs for t in before)
    return activates and len(after) == 1 and type(after[0]) is AsDiscreted and _takes_largest(after[0])


def _takes_largest(transform: AsDiscreted) -> bool:
    if "pred" not in transform.keys or transform.converter.kwargs:
        return False
    nothing_else = not any(n is not None for n in (*transform.threshold, *transform.rounding))
    argmax = dict(zip(transform.keys, transform.argmax, strict=True))
    return nothing_else and argmax["pred"] and not argmax.get("label")


def of_one_class(metric) -> bool:
    """Whether a metric can be given one class after the other."""
    plain = (("ignore_index", None), ("num_classes", None), ("per_component", False))
    return type(metric) in OF_ONE_CLASS and all(getattr(metric, name, default) == default for name, default in plain)


def class_map(
    output: torch.Tensor, before: list, invert: GridInverter, trace: list[dict], affine: torch.Tensor | None, where: str
) -> torch.Tensor:
    """Class numbers on the grid of the image's file.

    Parameters
    ----------
    output:
        ``[classes, *network grid]``; it may be overwritten.
    before:
        Transforms of single voxels, of ``pred``.
    invert, trace, affine:
        The way back, and what it takes.
    where:
        How messages call the case.

    Returns
    -------
    torch.Tensor
        uint8 ``[*file grid]``; of equal probabilities the first class.
    """
    if all(op.get(TraceKeys.CLASS_NAME) in MOVING for op in trace):
        numbers = torch.empty(output.shape[1:], dtype=torch.uint8, device=output.device)
        for part in _blocks(output):
            numbers[part] = apply_all(before, {"pred": output[:, part]}, where)["pred"].argmax(0)
        return invert(numbers[None], trace, affine)[0]
    for part in _blocks(output):
        output[:, part] = apply_all(before, {"pred": output[:, part]}, where)["pred"]
    return _largest(lambda k: invert(output[k : k + 1], trace, affine)[0], len(output))


def _largest(channel: Callable[[int], torch.Tensor], count: int) -> torch.Tensor:
    """The number of the channel with the largest value, as argmax has it: the first of equal ones, or of those undefined."""
    best = channel(0)
    numbers = torch.zeros(best.shape, dtype=torch.uint8, device=best.device)
    for k in range(1, count):
        other = channel(k)
        wins = (other > best) | (other.isnan() & ~best.isnan())
        numbers.masked_fill_(wins, k)
        best = torch.where(wins, other, best)
    return numbers


def _blocks(output: torch.Tensor) -> Iterator[slice]:
    """Parts of the first spatial axis of ``[classes, *grid]``."""
    length = output.shape[1]
    step = max(1, BLOCK * length // max(1, output.numel()))
    return (slice(start, start + step) for start in range(0, length, step))


def values_by_class(
    metric: Callable, prediction: torch.Tensor, label: torch.Tensor, classes: Sequence[int], given: dict
) -> list[float]:
    """A metric's value of each class.

    Parameters
    ----------
    metric:
        One :func:`of_one_class`.
    prediction, label:
        Class numbers ``[*grid]``.
    classes:
        The numbers of those that it scores.
    given:
        What else it takes.
    """
    # Where it leaves out the first channel, as background, it is given another one to leave out.
    channels = 1 if metric.include_background else 2
    values = []
    for k in classes:
        pair = _cut(prediction == k, label == k)
        masks = (mask.expand(1, channels, *mask.shape) for mask in pair)
        values.append(float(metric(*masks, **given).as_subclass(torch.Tensor).double().flatten()[-1]))
    return values


def _cut(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two masks, cut to where either is; to a single voxel where neither is."""
    box = []
    for axis in range(a.ndim):
        places = _along(a, axis) | _along(b, axis)
        found = places.nonzero()
        box.append(slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 1))
    return a[tuple(box)], b[tuple(box)]


def _along(mask: torch.Tensor, axis: int) -> torch.Tensor:
    others = [other for other in range(mask.ndim) if other != axis]
    return mask.any(dim=others) if others else mask
