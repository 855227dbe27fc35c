"""Random transforms of a whole batch: what MONAI's do to each case, whoever else is in the batch, however often it is interrupted."""

from __future__ import annotations

import numpy
import pytest
import torch
from armarium.batched import Samples, augmented
from armarium.transforms import apply_to_samples, build_transforms
from test_training import differing, finished, kill
from tiny import component, recipe, settings, squares, training_of

BOTH = ["image", "label"]
SHAPE = (7, 9, 8)
AFFINE = {"rotate_range": 0.4, "scale_range": 0.2, "translate_range": 2.0, "shear_range": 0.1, "padding_mode": "border"}


def tensors(number: int, shape=SHAPE) -> dict:
    drawn = torch.Generator().manual_seed(number)
    image = torch.rand(1, *shape, generator=drawn)
    image = (image + image.roll(1, -1) + image.roll(1, -2)) / 3
    return {"image": image, "label": (image > 0.5).to(torch.uint8)}


def samples(numbers, shapes=None) -> Samples:
    shapes = shapes or [SHAPE] * len(numbers)
    parts = [tensors(n, s) for n, s in zip(numbers, shapes, strict=True)]
    return Samples(parts, [numpy.random.RandomState(n) for n in numbers], [f"case {n}" for n in numbers])


def by_monai(number: int, components: list[dict], shape=SHAPE) -> dict:
    """A case after MONAI's own transforms, as the loader does it."""
    transforms, state = build_transforms(components), numpy.random.RandomState(number)
    for transform in transforms:
        transform.set_random_state(state=state)
    (made,) = apply_to_samples(transforms, tensors(number, shape), "case")
    return made


CHAINS = {
    "scale": [component("RandScaleIntensityd", keys="image", factors=0.3, prob=0.6)],
    "shift": [component("RandShiftIntensityd", keys="image", offsets=0.3, prob=0.6)],
    "flip": [component("RandFlipd", keys=BOTH, spatial_axis=a, prob=0.5) for a in (0, 1, None)],
    "affine": [component("RandAffined", keys=BOTH, mode=["bilinear", "nearest"], prob=0.6, **AFFINE)],
    "affine to another size": [
        component("RandAffined", keys=BOTH, mode=["bilinear", "nearest"], prob=0.5, spatial_size=[5, 11, 8], **AFFINE)
    ],
    "one that has no batched form": [component("RandAdjustContrastd", keys="image", prob=1.0)],
    "channel by channel": [component("RandScaleIntensityd", keys="image", factors=0.3, prob=1.0, channel_wise=True)],
}
CHAINS["all"] = [
    component("RandSpatialCropd", keys=BOTH, roi_size=[6, 6, 6], random_size=False),
    *(c for name in ("scale", "affine", "flip", "one that has no batched form", "shift") for c in CHAINS[name]),
]


@pytest.mark.parametrize("chain", CHAINS)
def test_each_case_becomes_what_monai_makes_of_it(chain):
    numbers = list(range(8))
    shapes = [(7 + n % 3, 9, 8) for n in numbers] if chain == "all" else [SHAPE] * len(numbers)
    images, labels = augmented(samples(numbers, shapes), build_transforms(CHAINS[chain])).batch()
    for i, number in enumerate(numbers):
        wanted = by_monai(number, CHAINS[chain], shapes[i])
        torch.testing.assert_close(images[i], wanted["image"], atol=1e-4, rtol=1e-4)
        other = labels[i].float() != wanted["label"].float()
        assert other.float().mean() < (0.02 if "RandAffined" in str(CHAINS[chain]) else 1e-9), (
            "but where voxels are equally near"
        )


def test_without_three_axes_too():
    numbers = [0, 1, 2]
    images, _ = augmented(samples(numbers, [(9, 8)] * 3), build_transforms(CHAINS["affine"])).batch()
    for i in numbers:
        wanted = by_monai(i, CHAINS["affine"], (9, 8))["image"]
        torch.testing.assert_close(images[i], wanted, atol=1e-4, rtol=1e-4)


def test_noise_has_the_spread_asked_for_and_is_the_cases_own():
    noise = build_transforms([component("RandGaussianNoised", keys="image", prob=0.5, std=0.2, sample_std=False)])
    numbers, shape = list(range(20)), (20, 20, 20)

    def noise_of(chosen):
        images, _ = augmented(samples(chosen, [shape] * len(chosen)), noise).batch()
        return images - torch.stack([tensors(n, shape)["image"] for n in chosen])

    found = noise_of(numbers)
    spread = found.flatten(1).std(1)
    noised = spread > 0
    assert 4 <= int(noised.sum()) <= 16 and (spread[noised] - 0.2).abs().max() < 0.01
    assert found[noised].flatten(1).mean(1).abs().max() < 0.01
    assert len({f.sum().item() for f in found[noised]}) == int(noised.sum()), "each another one"
    assert torch.equal(noise_of([3, 7, 1])[1], found[7]), "whoever else is in the batch"


def test_cases_that_are_kept_are_not_changed():
    given = samples([0, 1])
    before = [{k: t.clone() for k, t in part.items()} for part in given.parts]
    parts = list(given.parts)
    augmented(given, build_transforms([c for chain in CHAINS.values() for c in chain]))
    assert all(torch.equal(a[k], b[k]) for a, b in zip(parts, before, strict=True) for k in BOTH)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return root, squares(root, 5), squares(root, 1, prefix="v")


def augmenting(**more) -> dict:
    conf = recipe()
    random = [component("RandGaussianNoised", keys="image", prob=0.5), *CHAINS["scale"], *CHAINS["flip"][:1]]
    conf["train"]["pre_transforms"] = [t for t in conf["train"]["pre_transforms"] if not t["name"].startswith("Rand")]
    conf["train"]["pre_transforms"] += random
    return settings(conf, epochs=2, batched_augmentation=True, **more)


def test_a_training_goes_on_to_the_same_bytes_with_batches_made_at_once(data, tmp_path, monkeypatch):
    whole = finished(training_of(data, tmp_path / "a", augmenting()))
    kill(training_of(data, tmp_path / "b", augmenting()), monkeypatch, 1)
    assert differing(finished(training_of(data, tmp_path / "b", augmenting(num_workers=2))), whole) == []
    assert "batched_augmentation true" in whole["summary.log"].decode()


def test_a_gpu_that_cannot_hold_the_cases_is_told_so(data, tmp_path, monkeypatch):
    from armarium.batched import DeviceBatches
    from armarium.errors import UserError

    training = training_of(data, tmp_path, augmenting())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10**9))
    with pytest.raises(UserError, match=r"5 prepared training cases take .* set batched_augmentation: false"):
        DeviceBatches(training.cases, training.batches, torch.device("cuda"))
