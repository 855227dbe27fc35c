"""The bundle's metrics, made by MONAI's own parser, beside those of the archive's tables."""

from __future__ import annotations

import math

import ignite.metrics.regression
import numpy
import pytest
import torch
from armarium import bundle_parts, bundle_scoring
from armarium.evaluation import Score
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator

SPACING = (1.0, 2.5, 0.8)
GRID = (7, 6, 5)


def scored(metric: dict, task: str, items: list[dict]) -> float:
    """The metric as a bundle's evaluator has it over ``items``, which are already what a network and its post-transforms give."""
    settings = {"task": task, "loss": {"name": "MSELoss", "args": {}}, "validate": {"metrics": [metric]}}
    sections = {**bundle_scoring.imports(settings), **bundle_scoring.metrics(settings)}
    made = ConfigParser(sections).get_parsed_content("key_metric")
    engine = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=items,
        network=torch.nn.Identity(),
        iteration_update=lambda engine, item: {k: [v] for k, v in item.items()},
        key_val_metric=made,
    )
    engine.run()
    return engine.state.metrics[metric["label"]]


def segmentations() -> list[dict]:
    """Three cases of three classes on voxels of three lengths; in the second one a class is on one side alone."""
    affine, rng, items = numpy.diag([*SPACING, 1]), numpy.random.default_rng(0), []
    for case in range(3):
        pred, label = (rng.integers(0, 3, GRID) for _ in range(2))
        label[label == 2] = 0 if case == 1 else 2
        both = (torch.nn.functional.one_hot(torch.from_numpy(v), 3).movedim(-1, 0).float() for v in (pred, label))
        items.append({k: MetaTensor(v, affine=affine) for k, v in zip(("pred", "label"), both, strict=True)})
    return items


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("HausdorffDistance", {"include_background": False, "percentile": 95, "reduction": "mean"}),
        ("SurfaceDistance", {"include_background": False, "symmetric": True}),
    ],
)
def test_distances_are_in_mm_and_undefined_where_a_class_is_on_one_side_alone(name, args):
    metric = {"name": name, "label": "distance", "args": args}
    score, rows = Score(metric, []), []
    for item in segmentations():
        pred, label = (item[k].as_tensor()[None] for k in ("pred", "label"))
        rows.append([v for v in score.add(pred, label, label.argmax(1), SPACING) if not math.isnan(v)])
    assert list(map(len, rows)) == [2, 1, 2]
    wanted = numpy.mean([numpy.mean(row) for row in rows])
    assert scored(metric, "segmentation", segmentations()) == pytest.approx(wanted, rel=1e-6)
    in_voxels = [{k: MetaTensor(v.as_tensor(), affine=numpy.eye(4)) for k, v in i.items()} for i in segmentations()]
    assert scored(metric, "segmentation", in_voxels) != pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("name", sorted(bundle_parts.IGNITE_REGRESSION))
def test_a_regressions_metrics_of_ignite_are_those_of_the_tables(name):
    metric, rng = {"name": name, "label": "score", "args": {}}, torch.Generator().manual_seed(0)
    target = torch.rand(9, 1, generator=rng) + 1
    pred = target + torch.rand(9, 1, generator=rng) / 4
    items = [{"pred": p, "label": t, "index": t} for p, t in zip(pred, target, strict=True)]
    score = Score(metric, [])
    for p, t in zip(pred.double(), target.double(), strict=True):
        score.add(p[None], t[None], t[None], ())
    assert hasattr(ignite.metrics.regression, name)
    assert scored(metric, "regression", items) == pytest.approx(score.of_set(), rel=1e-5)


def test_arguments_of_such_a_metric_are_kept():
    metric = {"name": "R2Score", "label": "R2", "args": {"skip_unrolling": False}}
    settings = {"task": "regression", "loss": {"name": "MSELoss", "args": {}}, "validate": {"metrics": [metric]}}
    made = bundle_scoring.metrics(settings, "validate#")
    assert made["key_metric"]["R2"].startswith("$@validate#measures#R2(skip_unrolling=False, output_transform=")
