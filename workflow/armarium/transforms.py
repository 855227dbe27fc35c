"""Chains of transforms: the deterministic prefix, the random rest, and the way back to a file's own grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import torch
from monai.data import MetaTensor, set_track_meta
from monai.transforms import Compose, Randomizable
from monai.transforms.inverse import InvertibleTransform
from monai.utils.enums import TraceKeys
from torch.utils.data import default_collate

from .components import build
from .errors import UserError
from .faults import in_words

ID = str(TraceKeys.ID.value)


def build_transforms(components: list[dict], allow: Iterable[str] = ()) -> list:
    """The transforms of a section, in order."""
    return [build("transform", c, allow) for c in components]


def split_at_first_random(transforms: list) -> tuple[list, list]:
    """The deterministic prefix, done once for a dataset, and the rest, done anew every epoch."""
    for i, transform in enumerate(transforms):
        if isinstance(transform, Randomizable):
            return transforms[:i], transforms[i:]
    return transforms, []


def _plain(value: Any) -> Any:
    """Trace records with nothing in them but what ``torch.load(weights_only=True)`` takes."""
    if isinstance(value, torch.Tensor):
        return value.as_tensor() if isinstance(value, MetaTensor) else value
    if isinstance(value, dict):
        plain = {str(k): _plain(v) for k, v in value.items()}
        # A record names the transform object that left it, unknown to any other process; some hold further records.
        return {**plain, ID: str(TraceKeys.NONE.value)} if ID in plain else plain
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v) for v in value) if type(value) in (list, tuple) else [_plain(v) for v in value]
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "tolist"):
        return torch.as_tensor(value) if getattr(value, "ndim", 0) else value.item()
    if hasattr(value, "value"):
        return value.value
    return str(value)


def trace_of(image: MetaTensor) -> list[dict]:
    """The spatial operations done to an image, free of references to this process."""
    return [_plain(op) for op in image.applied_operations]


class GridInverter:
    """Takes a network's output back to the grid of the file that the image came from.

    Parameters
    ----------
    transforms:
        The deterministic pre-transforms; the spatial ones among them are undone.
    """

    def __init__(self, transforms: list):
        invertible = [copy(t) for t in transforms if isinstance(t, InvertibleTransform)]
        for transform in invertible:
            transform.allow_missing_keys = True  # only the image's key is inverted
        self.compose = Compose(invertible)

    def __call__(self, output: torch.Tensor, trace: list[dict], affine: torch.Tensor) -> torch.Tensor:
        """Invert one output.

        Parameters
        ----------
        output:
            ``[channels, *network grid]``.
        trace:
            What was done to the image, from :func:`trace_of`.
        affine:
            4x4, of the network grid, millimetres.

        Returns
        -------
        torch.Tensor
            ``[channels, *file grid]``.
        """
        if not trace:
            return output
        set_track_meta(True)
        try:
            # The transforms pop what they undo, so each inversion gets records of its own.
            traced = MetaTensor(output, affine=affine, applied_operations=deepcopy(trace))
            inverted = self.compose.inverse({"image": traced})["image"]
        finally:
            set_track_meta(False)
        return inverted.as_tensor()


@contextmanager
def components_at_work(where: str) -> Iterator[None]:
    """Whatever the recipe's components raise, told as the user's to mend; ``where`` says on what."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        words = in_words(error)
        raise UserError(f"{where}: {words}" if words else f"{where} failed: {type(error).__name__}: {error}") from error


def as_batch(items: list[list[tuple[torch.Tensor, ...]]]) -> list[torch.Tensor]:
    """The samples of some cases, of equal shapes, as one batch.

    Raises
    ------
    UserError
        If their shapes differ, which only the recipe can mend.
    """
    samples = [sample for of_case in items for sample in of_case]
    for tensors in zip(*samples, strict=True):
        shapes = sorted({tuple(t.shape) for t in tensors})
        if len(shapes) > 1:
            raise UserError(
                f"cases of one batch have the shapes {', '.join(map(str, map(list, shapes)))}; "
                "pad or crop them to one size in pre_transforms, or set batch_size to 1"
            )
    return default_collate(samples)


def apply_all(transforms: list, item: dict, where: str) -> dict:
    """Apply transforms in order; an error names the transform and the case."""
    items = apply_to_samples(transforms, item, where)
    if len(items) != 1:
        raise UserError(
            f"{where}: the transforms give {len(items)} samples of one case; only a random transform of training may"
        )
    return items[0]


def apply_to_samples(transforms: list, item: dict, where: str) -> list[dict]:
    """The same where a transform may give several samples of a case, as croppers with ``num_samples`` do: all of them."""
    items = [item]
    for transform in transforms:
        with components_at_work(f"{where}: transform {type(transform).__name__}"):
            made = [transform(one) for one in items]
        items = [sample for one in made for sample in (one if isinstance(one, list) else [one])]
    return items
