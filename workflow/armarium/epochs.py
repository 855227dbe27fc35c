"""The training cases of an epoch: their order and augmentation, functions of seed, split and epoch alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy
import torch
from monai.transforms import Randomizable
from torch.utils.data import Dataset, Sampler

from .cache import PreparedCases
from .transforms import apply_to_samples

CACHED_HANDLES = 8192
"""Prepared cases held open at once; each is a mapped file."""


def seed_from(*parts: int | str) -> int:
    """A seed in [0, 2^32) that differs with every part, the same on every machine."""
    digest = hashlib.sha256(":".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:4], "little")


class TrainingCases(Dataset):
    """Training cases with this epoch's augmentation.

    Parameters
    ----------
    cases:
        As :class:`~armarium.cache.PreparedCases` takes them.
    prepared:
        Does the deterministic transforms.
    random:
        The transforms from the first random one on.
    seed:
        Parts that the augmentation is seeded from, before the epoch and the case's number.
    """

    def __init__(self, cases: Sequence[dict], prepared: PreparedCases, random: list, seed: tuple):
        self.cases, self.random, self.seed, self.epoch = cases, random, seed, 0
        self.load = lru_cache(CACHED_HANDLES)(lambda i: prepared.sample(cases[i]))

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, i: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        item = {k: self.load(i)[k] for k in ("image", "label")}
        state, name = self.drawn_for(i)
        for transform in self.random:
            if isinstance(transform, Randomizable):
                transform.set_random_state(state=state)
        samples = apply_to_samples(self.random, item, name)
        return [tuple(torch.as_tensor(sample[k]) for k in ("image", "label")) for sample in samples]

    def drawn_for(self, i: int) -> tuple[numpy.random.RandomState, str]:
        """What a case's augmentation is drawn from in this epoch, and how an error names the case."""
        state = numpy.random.RandomState(seed_from(*self.seed, self.epoch, "case", i))
        return state, f"case {self.cases[i]['case']}"


class EpochOrder(Sampler):
    """The order of an epoch: another one each epoch, the same whenever that epoch is trained."""

    def __init__(self, dataset: TrainingCases):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self):
        generator = torch.Generator().manual_seed(seed_from(*self.dataset.seed, self.dataset.epoch, "order"))
        return iter(torch.randperm(len(self.dataset), generator=generator).tolist())
