"""Volumes of any size are scored in little memory, with the results of the plain way."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from armarium import class_maps, large_loss
from armarium.evaluation import CaseScorer
from monai.losses import DiceCELoss, DiceLoss, FocalLoss
from test_evaluation import CHAINS, NAMES, blobs, conf_of, oblique
from tiny import REPO, case, component, settings

METRICS = [
    component(name, include_background=background, **more)
    for background in (False, True)
    for name, more in (
        ("MeanDice", {}),
        ("MeanIoUHandler", {}),
        ("HausdorffDistance", {"percentile": 95}),
        ("SurfaceDistance", {"symmetric": True}),
    )
]
for number, metric in enumerate(METRICS):
    metric["log_label"] = f"metric{number}"


class Blurred(torch.nn.Module):
    """What a network may give: ties, and classes on both sides of every border; the last class nowhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        near = torch.nn.functional.avg_pool3d(x, 3, stride=1, padding=1).round(decimals=1)
        return torch.cat([-(near**2), -((near - 1) ** 2), -((near - 2) ** 2), near - 100], 1)


RESAMPLED = [component("Spacingd", keys=["image", "label"], pixdim=[0.8, 1.1, 1.3], mode=["bilinear", "nearest"])]


@pytest.mark.parametrize("chain", [*CHAINS, "resampled"])
def test_class_by_class_and_block_by_block_gives_the_same_to_the_bit(chain, tmp_path, monkeypatch):
    monkeypatch.setattr(class_maps, "BLOCK", 500)
    truth = blobs((14, 13, 11))
    cases = [case(tmp_path, "a", [blobs(truth.shape, 1).astype(numpy.float32)], truth, oblique((0.5, 1.0, 2.0)))]
    conf = conf_of({**CHAINS, "resampled": RESAMPLED}[chain], METRICS)
    scorer = CaseScorer(
        settings(conf), str(tmp_path), str(tmp_path / "cache"), torch.device("cpu"), {**NAMES, 3: "absent"}
    )
    assert scorer.by_class_map
    found = []
    for scorer.by_class_map in (True, False):
        kept: list[numpy.ndarray] = []
        evaluation = scorer(Blurred(), cases, lambda _, prediction, kept=kept: kept.append(prediction))
        found.append((repr(evaluation.details), repr(evaluation.class_details), kept[0]))
    assert found[0][:2] == found[1][:2] and numpy.array_equal(found[0][2], found[1][2])
    assert found[0][2].dtype == numpy.uint8 and "metric7" in found[0][0]


@pytest.mark.parametrize(
    "loss",
    [
        DiceCELoss(include_background=False, to_onehot_y=True, softmax=True),
        DiceCELoss(to_onehot_y=True, softmax=True, lambda_ce=0.3, lambda_dice=2.0, weight=torch.tensor([0.2, 1, 3.0])),
        DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, weight=torch.tensor([0.2, 1, 3.0])),
        DiceLoss(to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-6),
        DiceLoss(to_onehot_y=True, softmax=True, include_background=False, jaccard=True, batch=True),
    ],
    ids=["both", "weighted", "weighted foreground", "squared", "jaccard"],
)
def test_the_loss_of_blocks_is_monais(loss, monkeypatch):
    monkeypatch.setattr(large_loss, "LARGEST", 0)
    monkeypatch.setattr(large_loss, "BLOCK", 3000)
    output = 3 * torch.randn(1, 3, 17, 15, 13, generator=torch.Generator().manual_seed(0))
    target = torch.from_numpy(blobs((17, 15, 13)))[None, None]
    wanted = float(loss(output, target))
    assert large_loss._is_sum_of_blocks(loss, output, target)
    assert large_loss.loss_on(loss, output, target) == pytest.approx(wanted, rel=2e-6)


@pytest.mark.parametrize(
    "loss",
    [
        DiceCELoss(to_onehot_y=True, softmax=True, label_smoothing=0.1),
        DiceCELoss(to_onehot_y=True, sigmoid=True),
        DiceLoss(to_onehot_y=True, softmax=True, soft_label=True),
        FocalLoss(to_onehot_y=True),
    ],
)
def test_another_loss_is_computed_by_its_class(loss, monkeypatch):
    monkeypatch.setattr(large_loss, "LARGEST", 0)
    output = torch.randn(1, 3, 8, 9, 7, generator=torch.Generator().manual_seed(0))
    target = torch.ones(1, 1, 8, 9, 7, dtype=torch.uint8)
    assert large_loss.loss_on(loss, output, target) == float(loss(output, target))


@pytest.mark.parametrize("after", ["KeepLargestConnectedComponentd", "argmax of the label"])
def test_what_needs_more_than_class_numbers_is_scored_the_plain_way(after, tmp_path):
    conf = conf_of([])
    if after == "KeepLargestConnectedComponentd":
        conf["validate"]["post_transforms"] += [component(after, keys="pred", applied_labels=[1])]
    else:
        conf["validate"]["post_transforms"][-1]["args"] = {"keys": ["pred", "label"], "argmax": True}
    scorer = CaseScorer(settings(conf), str(tmp_path), str(tmp_path / "cache"), torch.device("cpu"), NAMES)
    assert not scorer.by_class_map


# ---- memory

BYTES_A_VOXEL = 45
"""Of five classes: the output takes 20, what the sliding window counts 4, the image 4, the rest are parts and other parts' labels."""


class FiveClasses(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-(x**2), *(2 * k * x - k**2 - x**2 for k in range(1, 5))], 1)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the kernel does not tell a process's peak")
def test_a_voxel_takes_few_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(large_loss, "LARGEST", 0)
    for module in (class_maps, large_loss):
        monkeypatch.setattr(module, "BLOCK", 1 << 18)
    shape = (160, 160, 160)
    truth = numpy.zeros(shape, numpy.uint8)
    for k in range(1, 5):
        truth[20 * k : 20 * k + 30, 20:60, 30:50] = k
    window = component("SlidingWindowInferer", roi_size=[32, 32, 32], sw_batch_size=1, overlap=0.0)
    conf = conf_of([], inferer=window)
    names = dict(enumerate(["background", "a", "b", "c", "d"]))
    cases = [case(tmp_path, "a", [truth.astype(numpy.float32)], truth)]
    scorer = CaseScorer(settings(conf), str(tmp_path), str(tmp_path / "cache"), torch.device("cpu"), names)
    scorer.prepare(cases, 1)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _in_memory("VmRSS")
    evaluation = scorer(FiveClasses(), cases, lambda _, prediction: None)
    taken = (_in_memory("VmHWM") - before) / truth.size
    assert evaluation.details[0]["MeanDice"] == 1.0
    assert 20 < taken < BYTES_A_VOXEL


def _in_memory(what: str) -> int:
    """Bytes that the kernel tells of this process: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


@pytest.mark.slow
def test_512_x_512_x_800_voxels_are_scored_within_8_gb(tmp_path):
    command = [sys.executable, "-m", "benchmarks.large_volume", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO / "workflow"), str(REPO)])}
    subprocess.run([*command, "512", "512", "800"], env=environment, check=True)
    scored = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found = json.loads(scored.stdout)
    assert found["rows"][0]["MeanDice"] > 0.9
    assert found["peak"] < 8e9
