"""Batches whose random transforms are done where the network is, to all cases of a batch at once.

In place of a loader that transforms case after case on the CPU: the prepared cases lie on the device, and what MONAI's
commonest random transforms do is done to the whole batch by a few calls, the numbers being drawn case by case by MONAI's own
transforms from the same seeds. Only noise is drawn otherwise: by torch, on the device. Transforms that have no batched form
here are MONAI's, one case after the other.

So a batch is a function of seed, split, epoch and cases alone, as without; its numbers are others than without in
the last bits, and in the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy
import torch
from monai.transforms import (
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    Randomizable,
    RandomizableTransform,
    RandScaleIntensityd,
    RandShiftIntensityd,
    Transform,
)
from monai.utils import fall_back_tuple
from torch.nn.functional import affine_grid, grid_sample

from .distributed import Batches
from .epochs import TrainingCases
from .errors import UserError
from .transforms import apply_to_samples, as_batch, components_at_work

KEYS = ("image", "label")
OF_FREE_MEMORY = 0.5
"""What cases may fill of a GPU's free memory; the network needs the rest."""


class Samples:
    """Some cases' tensors, each for itself or, by key, as one tensor.

    Parameters
    ----------
    parts:
        The tensors of each by key.
    states:
        What each one's numbers are drawn from.
    names:
        How an error names each.
    """

    def __init__(self, parts: list[dict], states: list[numpy.random.RandomState], names: list[str]):
        self.parts, self.states, self.names = parts, states, names
        self.whole: dict[str, torch.Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.parts[0][KEYS[0]].device

    def shape(self, key: str) -> torch.Size | None:
        """Of one sample; None where they differ."""
        if key in self.whole:
            return self.whole[key].shape[1:]
        shapes = {part[key].shape for part in self.parts}
        return shapes.pop() if len(shapes) == 1 else None

    def together(self, key: str, floating: bool = True) -> torch.Tensor:
        """``[samples, channels, *grid]``, a copy that may be changed in place and counts from then on."""
        if key not in self.whole:
            self.whole[key] = torch.stack([part[key] for part in self.parts])
        if floating and not self.whole[key].is_floating_point():
            self.whole[key] = self.whole[key].float()
        return self.whole[key]

    def one(self, i: int) -> dict:
        """The tensors of one by key."""
        return {key: self.whole[key][i] if key in self.whole else self.parts[i][key] for key in KEYS}

    def drawing(self, transform: Transform) -> Iterator[int]:
        """The number of each sample in turn, the transform being set to draw for it."""
        for i, state in enumerate(self.states):
            if isinstance(transform, Randomizable):
                transform.set_random_state(state=state)
            yield i

    def one_by_one(self, transform: Transform) -> Samples:
        """After a transform of MONAI's, which may make several of one."""
        parts, states, names = [], [], []
        for i in self.drawing(transform):
            for made in apply_to_samples([transform], self.one(i), self.names[i]):
                parts.append({key: torch.as_tensor(made[key]) for key in KEYS})
                states.append(self.states[i])
                names.append(self.names[i])
        return Samples(parts, states, names)

    def batch(self) -> list[torch.Tensor]:
        """Images and labels.

        Raises
        ------
        UserError
            If their shapes differ.
        """
        if any(self.shape(key) is None for key in KEYS):
            return as_batch([[tuple(part[key] for key in KEYS)] for part in map(self.one, range(len(self.parts)))])
        return [self.together(key, floating=False) for key in KEYS]


class DeviceBatches:
    """An epoch's batches, on the device; in place of torch's ``DataLoader``.

    Parameters
    ----------
    cases:
        The training cases, with their random transforms.
    batches:
        The cases of each step.
    device:
        Where the cases are kept; on a CPU they stay the mapped files that they are.

    Raises
    ------
    UserError
        If they do not fit there.
    """

    def __init__(self, cases: TrainingCases, batches: Batches, device: torch.device):
        self.cases, self.batches, self.device = cases, batches, device
        self.held: dict[int, dict] = {}
        if device.type == "cuda":
            self._refuse_too_many()

    def _refuse_too_many(self) -> None:
        needed = sum(self.cases.load(i)[k].nbytes for i in range(len(self.cases)) for k in KEYS)
        free, _ = torch.cuda.mem_get_info(self.device)
        if needed > OF_FREE_MEMORY * free:
            raise UserError(
                f"batched_augmentation is true: the {len(self.cases)} prepared training cases take {needed >> 20} MiB of a GPU that has "
                f"{free >> 20} MiB free, wanted at most half; set batched_augmentation: false"
            )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        for numbers in self.batches:
            states, names = zip(*map(self.cases.drawn_for, numbers), strict=True)
            samples = Samples([self._on_device(i) for i in numbers], list(states), list(names))
            yield augmented(samples, self.cases.random).batch()

    def _on_device(self, i: int) -> dict:
        if i not in self.held:
            self.held[i] = {k: self.cases.load(i)[k].to(self.device) for k in KEYS}
        return self.held[i]


def augmented(samples: Samples, transforms: Sequence[Transform]) -> Samples:
    """Samples after random transforms, each in its batched form where it has one and all samples are of one shape."""
    for transform in transforms:
        form = FORMS.get(type(transform)) if _is_plain(transform) else None
        if form and all(samples.shape(key) for key in KEYS):
            with components_at_work(f"{samples.names[0]} and others: transform {type(transform).__name__}"):
                form(transform, samples)
        else:
            samples = samples.one_by_one(transform)
    return samples


def _along(values: Sequence[float], whole: torch.Tensor) -> torch.Tensor:
    """A number for each sample, to compute with the batch."""
    numbers = torch.tensor(values, dtype=whole.dtype)
    return numbers.to(whole.device, non_blocking=True).view(-1, *[1] * (whole.ndim - 1))


# ---- batched forms


def _scaled(transform: RandScaleIntensityd, samples: Samples) -> None:
    factors = _drawn(transform, transform.scaler, samples, "factor")
    for key in transform.keys if any(factors) else ():
        whole = samples.together(key)
        whole.mul_(_along([1 + f for f in factors], whole))


def _shifted(transform: RandShiftIntensityd, samples: Samples) -> None:
    offsets = _drawn(transform, transform.shifter, samples, "_offset")
    for key in transform.keys if any(offsets) else ():
        whole = samples.together(key)
        whole.add_(_along(offsets, whole))


def _drawn(transform: RandomizableTransform, inner: RandomizableTransform, samples: Samples, name: str) -> list[float]:
    """What each sample's intensity is changed by; 0 where chance leaves it."""
    found = []
    for _ in samples.drawing(transform):
        transform.randomize(None)
        if transform._do_transform:
            inner.randomize(None)
        found.append(float(getattr(inner, name)) if transform._do_transform else 0.0)
    return found


def _noised(transform: RandGaussianNoised, samples: Samples) -> None:
    noise = transform.rand_gaussian_noise
    for i in samples.drawing(transform):
        transform.randomize(None)
        if not transform._do_transform:
            continue
        deviation = noise.R.uniform(0, noise.std) if noise.sample_std else noise.std
        seed = int(noise.R.randint(2**31 - 1))
        first = samples.together(transform.keys[0])[i]
        generator = torch.Generator(first.device).manual_seed(seed)
        drawn = torch.empty_like(first).normal_(float(noise.mean), float(deviation), generator=generator)
        for key in transform.keys:
            samples.together(key)[i].add_(drawn)


def _flipped(transform: RandFlipd, samples: Samples) -> None:
    axes = transform.flipper.spatial_axis
    for i in samples.drawing(transform):
        transform.randomize(None)
        for key in transform.keys if transform._do_transform else ():
            part = samples.together(key, floating=False)[i]
            chosen = range(part.ndim - 1) if axes is None else numpy.atleast_1d(axes)
            part.copy_(part.flip([int(a) % (part.ndim - 1) + 1 for a in chosen]))


def _resampled(transform: RandAffined, samples: Samples) -> None:
    """MONAI's affines, which go from the output's voxels to the input's, each counted from the middle."""
    inner, sizes = transform.rand_affine, samples.shape(transform.keys[0])[1:]
    wanted = fall_back_tuple(inner.spatial_size, sizes)
    matrices, resized = {}, wanted != tuple(sizes)
    for i in samples.drawing(transform):
        transform.randomize(None)
        inner.randomize()
        if transform._do_transform:
            inner.rand_affine_grid(wanted, lazy=True)
            matrices[i] = inner.rand_affine_grid.get_transformation_matrix().double()
        elif resized:
            matrices[i] = torch.eye(len(sizes) + 1, dtype=torch.float64)
        for _ in transform.keys if i in matrices else ():
            inner.randomize()  # MONAI draws once more for each key and uses it for none; what comes after draws as there
    if not matrices:
        for key in transform.keys:
            samples.together(key)
        return
    theta = _normalised(torch.stack([*matrices.values()]), sizes, wanted).float()
    grid = affine_grid(theta.to(samples.device, non_blocking=True), [len(theta), 1, *wanted], align_corners=False)
    for key, mode, padding in zip(transform.keys, transform.mode, transform.padding_mode, strict=True):
        whole = samples.together(key)
        every = len(matrices) == len(whole)
        moved = whole if every else torch.stack([whole[i] for i in matrices])
        moved = grid_sample(moved, grid, mode=str(mode), padding_mode=str(padding), align_corners=False)
        if every:
            samples.whole[key] = moved
            continue
        for i, values in zip(matrices, moved, strict=True):
            whole[i].copy_(values)


def _normalised(matrices: torch.Tensor, sizes: Sequence[int], wanted: Sequence[int]) -> torch.Tensor:
    """``[samples, axes, axes + 1]`` as torch's affine_grid takes it: of coordinates from -1 to 1, the last axis first.

    That is ``S⁻¹ A T`` with half the input's sizes on the diagonal of S and half the output's on that of T.
    """
    axes = len(sizes)
    inverse = torch.tensor([2 / max(2, n) for n in sizes], dtype=torch.float64)[:, None]
    half = torch.tensor([n / 2 for n in wanted], dtype=torch.float64)
    linear = inverse * matrices[:, :axes, :axes] * half
    return torch.cat([linear.flip(1, 2), (inverse * matrices[:, :axes, axes:]).flip(1)], 2)


def _is_plain(transform: Transform) -> bool:
    """Whether a transform is asked for nothing that its batched form does not do."""
    if not set(getattr(transform, "keys", KEYS)) <= set(KEYS):
        return False
    if isinstance(transform, RandScaleIntensityd):
        return not transform.scaler.channel_wise
    if isinstance(transform, RandShiftIntensityd):
        shifter = transform.shifter
        return not (shifter.channel_wise or shifter._shifter.safe or any(transform.factor_key))
    if isinstance(transform, RandAffined):
        asked = {*map(str, transform.mode), *map(str, transform.padding_mode)}
        return asked <= {"bilinear", "nearest", "zeros", "border", "reflection"} and not transform.lazy
    return True


FORMS: dict[type, Callable] = {
    RandAffined: _resampled,
    RandFlipd: _flipped,
    RandGaussianNoised: _noised,
    RandScaleIntensityd: _scaled,
    RandShiftIntensityd: _shifted,
}
"""The batched form of each transform that has one."""
