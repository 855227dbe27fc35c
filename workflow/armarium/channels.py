"""Classes that may overlap: a channel for each, of a label and of a prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, MapTransform
from monai.transforms.inverse import InvertibleTransform

from .errors import UserError
from .transforms import apply_all

HALF = 0.5
"""The probability from which a class is there, where the recipe does not say (AsDiscreted with ``threshold``)."""


class LabelChannels:
    """Makes a label file's channels: as the file has them, or by the recipe's transforms of the label alone.

    Of those, such as ConvertToMultiChannelBasedOnBratsClassesd, the ones that read a file or move voxels are left out:
    scores are taken on the file's own grid.

    Parameters
    ----------
    transforms:
        The deterministic pre-transforms.
    names:
        Of the classes, by number.
    """

    def __init__(self, transforms: list, names: dict[int, str]):
        self.transforms, self.names = [t for t in transforms if _makes_channels(t)], names

    def __call__(self, label: torch.Tensor, grid: Sequence[int], where: str) -> torch.Tensor:
        """uint8 ``[classes, *file grid]``.

        Parameters
        ----------
        label:
            As the file has it: ``[*grid]`` with class values, or ``[*grid, classes]``, with axes of length 1 between or not.
        grid:
            Of the image's file, with or without its axes of length 1.
        where:
            How messages call the case.

        Raises
        ------
        UserError
            If there is not a channel for each class.
        """
        by_channel = _long(label.shape[:-1]) == _long(grid) and label.shape[-1] == len(self.names)
        channels = label.movedim(-1, 0) if by_channel and _long(label.shape) != _long(grid) else label[None]
        channels = apply_all(self.transforms, {"label": channels}, where)["label"].as_subclass(torch.Tensor)
        if channels.shape[0] != len(self.names):
            raise UserError(
                f"{where}: its label has {channels.shape[0]} channel{'s' if channels.shape[0] > 1 else ''}, wanted one for each of the {len(self.names)} classes "
                f"{', '.join(self.names.values())}; give label files one, or put a transform of the label that makes them into pre_transforms"
            )
        return channels.to(torch.uint8)


def _makes_channels(transform) -> bool:
    if not isinstance(transform, MapTransform) or set(transform.keys) != {"label"}:
        return False
    return not isinstance(transform, InvertibleTransform | LoadImaged | EnsureChannelFirstd | Compose)


def _long(shape: Sequence[int]) -> list[int]:
    return [n for n in shape if n > 1]


def decided(probabilities: torch.Tensor) -> torch.Tensor:
    """1 for each class that is there, else 0, from probabilities or from what a threshold already decided."""
    return (probabilities >= HALF).to(torch.float32)


def channels_last(channels: torch.Tensor) -> numpy.ndarray:
    """uint8 ``[*grid, classes]`` from 0 and 1 ``[classes, *grid]``."""
    return channels.to(torch.uint8).movedim(0, -1).cpu().numpy()
