"""Regression, from the list's numbers to the bundle: what differs from segmentation and classification."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import nibabel
import numpy
import pytest
import torch
from armarium import bundle, bundle_metadata, layout
from armarium.apps import evaluate
from armarium.checks import check_dataset
from armarium.clinicadl_metrics import metrics
from armarium.components import MODULES
from armarium.dataset import read_dataset
from armarium.errors import Problems, UserError
from armarium.evaluation import CaseScorer
from armarium.files import write_json
from armarium.inspection import check_components, check_regression
from armarium.mmar_configs import derived_configs
from armarium.predictions import prediction_table
from armarium.scoring import BEST_NEAR_ZERO, SMALLER_IS_BETTER
from armarium.synthesize import synthesize_dataset
from armarium.tables import read_tsv
from monai.data import set_track_meta
from sklearn import metrics as sk
from test_bundle import publish_random_weights, run_inference, write_bundle
from test_dataset import pair, spec, write_datalist, write_table
from test_maps import RECIPE, make_archive
from test_splits import a_case, split
from tiny import case, component, settings, training_of

EXAMPLE = RECIPE.parent / "regression_small"


def recipe(*metrics: dict, **model) -> dict:
    """The example's recipe in 2D, without augmentation."""
    conf = json.loads((EXAMPLE / "config/config_train.json").read_text())
    conf["train"]["model"]["args"].update({"spatial_dims": 2, "init_features": 2, "growth_rate": 2} | model)
    conf["train"]["pre_transforms"] = conf["train"]["pre_transforms"][:2]
    conf["validate"]["pre_transforms"] = conf["validate"]["pre_transforms"][:2]
    if metrics:
        conf["validate"]["key_metric"], *conf["validate"]["additional_metrics"] = metrics
    return conf


def regression(conf: dict | None = None, **more) -> dict:
    return settings(conf or recipe(), task="regression", **more)


# ---- the list


def numbers(root: Path, *targets: str) -> str:
    """A table whose rows have these targets."""
    rows = [f"p{i} | i/p{i}.nii.gz | {target}" for i, target in enumerate(targets)]
    return write_table(root, "\n".join(["participant_id | image | target", *rows]))


def test_targets_of_a_table_are_numbers_and_there_are_no_classes(tmp_path):
    written = ["12", "-1.5", "+2e-3", ".5", "3."]
    dataset = read_dataset(spec("x.tsv", "regression"), numbers(tmp_path, *written))
    assert [c.label for c in dataset.cases] == [12.0, -1.5, 0.002, 0.5, 3.0]
    assert all(isinstance(c.label, float) for c in dataset.cases)
    assert dataset.labels == {} and dataset.header()["target"] == "target"


def test_numbers_of_a_datalist_and_the_name_of_another_key(tmp_path):
    entries = [{"image": f"{i}.nii", "label": i, "age": 30 + i, "sex": "F"} for i in range(2)]
    root = write_datalist(tmp_path, entries, test=["t.nii"])
    assert [c.label for c in read_dataset(spec(task="regression"), root).cases] == [0.0, 1.0, None]
    dataset = read_dataset(spec(task="regression", target="age"), root)
    assert [c.label for c in dataset.cases] == [30.0, 31.0, None] and dataset.facts["target"] == "age"
    assert dataset.cases[0].columns == {"sex": "F"}


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_column_of_a_table_may_have_another_name(tmp_path, task):
    root = write_table(tmp_path, "participant_id | image | target | score\na | a.nii | 7 | 1\n")
    labels = {"0": "no", "1": "yes"}
    (found,) = read_dataset(spec("x.tsv", task, target="score", labels=labels), root).cases
    assert found.label == 1 and found.columns == {"target": "7"}
    with pytest.raises(
        UserError, match="dataset.target names column 'scor', wanted one of participant_id, image, target"
    ):
        read_dataset(spec("x.tsv", task, target="scor", labels=labels), root)


def test_all_wrong_targets_are_reported_together(tmp_path):
    wrong = ["nan", "inf", "-Infinity", "tall", "1,5", "1_000", "0x1F", "1e999", "1e39", "n/a", "", "9" * 5000]
    with pytest.raises(Problems) as caught:
        read_dataset(spec("x.tsv", "regression"), numbers(tmp_path, "1", *wrong, "2"))
    problems = caught.value.problems
    assert len(problems) == len(wrong)
    for line, (value, problem) in enumerate(zip(wrong, problems, strict=True), 3):
        missing = value in ("n/a", "")
        wanted = "no label, wanted one" if missing else f"target: found '{value[:60]}"
        assert problem.startswith(f"line {line}: {wanted}") and (missing or "wanted a finite number" in problem)


@pytest.mark.parametrize("label", [True, "tall", [1, 2], {"a": 1}, 10**400])
def test_what_a_datalist_must_not_have_for_a_number(tmp_path, label):
    root = write_datalist(tmp_path, [{"image": "a.nii", "label": label}])
    with pytest.raises(
        Problems, match=r"training\[0\]: target: found .*wanted a finite number, at most 1e\+38 in size"
    ):
        read_dataset(spec(task="regression"), root)


def test_the_synthetic_target_is_the_ellipsoids_size_and_passes_the_data_check(tmp_path):
    made = {
        "cases": 6,
        "test_cases": 2,
        "shape": [20, 24],
        "spacing": [1.0, 0.8],
        "channels": 1,
        "classes": 2,
        "seed": 0,
    }
    synthesize_dataset(str(tmp_path / "a"), {**made, "task": "regression"})
    synthesize_dataset(str(tmp_path / "b"), {**made, "task": "segmentation"})
    given = {**spec("a/dataset.json", "regression"), "affine_tolerance": 1e-3, "allow_empty_labels": False}
    given |= {"allow_duplicates": False, "allow_repeated_participants": False}
    dataset = read_dataset(given, str(tmp_path))
    rows = check_dataset(dataset, given, str(tmp_path), 1)
    assert [float(r["label"]) for r in rows] == [c.label for c in dataset.cases] and len(rows) == 8
    for found in dataset.cases:
        mask = nibabel.load(str(tmp_path / found.images[0].replace("a/images", "b/labels"))).get_fdata()
        size = mask.sum() * 0.8 / 100
        assert found.label == pytest.approx(size, rel=0.06) and size > 0.1


# ---- splits


def measured(values: list[float], repeat: int = 1):
    return [a_case(f"c{i:03d}", f"p{i // repeat}", label=float(v)) for i, v in enumerate(values)]


@pytest.mark.parametrize("column", ["target", "label"])
@pytest.mark.parametrize("seed", range(4))
def test_every_quantile_of_the_target_is_divided_evenly(column, seed):
    cases = measured(sorted(numpy.random.RandomState(seed).lognormal(size=50)))
    for method, share in (("kfold", 10), ("holdout", 10)):
        for sides in split(cases, method=method, holdout=share, stratify_by=[column], seed=seed)["splits"]:
            held = [int(name[1:]) // 10 for name in sides["validation"]]
            assert [held.count(k) for k in range(5)] == [2] * 5


def test_equal_targets_are_of_one_quantile_and_small_sets_have_fewer():
    zeros = measured([0.0] * 30 + list(range(1, 21)))
    for sides in split(zeros, stratify_by=["target"])["splits"]:
        assert sum(int(name[1:]) < 30 for name in sides["validation"]) == 6
    for sides in split(measured(range(10)), stratify_by=["target"])["splits"]:
        assert sorted(int(name[1:]) // 5 for name in sides["validation"]) == [0, 1]


def test_a_target_of_too_few_cases_is_not_stratified_by():
    wanted = "'target' is a number and is stratified by its quantiles: found 9 groups of cases, wanted at least 10"
    with pytest.raises(UserError, match=wanted):
        split(measured(range(9)), stratify_by=["target"])
    with pytest.raises(UserError, match="found 8 groups of cases, wanted at least 10"):
        split(measured(range(16), repeat=2), stratify_by=["target"])


def test_other_numbers_are_no_strata_without_bins():
    cases = [a_case(f"c{i}", label=float(i), age=f"{20 + i * 1.5}") for i in range(20)]
    with pytest.raises(UserError, match=r"found strata with fewer than 5 groups.*dataset.columns bins numbers"):
        split(cases, stratify_by=["age"])


# ---- the recipe


def test_every_metric_of_ignite_for_regression_has_a_mode_and_a_place_in_the_bundle():
    from ignite.metrics import regression as module

    names = {n for n, v in vars(module).items() if isinstance(v, type) and v.__module__.startswith(module.__name__)}
    larger = {"R2Score", "PearsonCorrelation", "SpearmanRankCorrelation", "KendallRankCorrelation"}
    assert names == larger | (SMALLER_IS_BETTER & names) | BEST_NEAR_ZERO
    assert names == bundle.parts.IGNITE_REGRESSION and MODULES["metric"][-1] == module.__name__


def test_a_signed_error_needs_a_mode():
    found = settings(recipe())["validate"]["metrics"]
    assert [(m["label"], m["mode"]) for m in found] == [
        ("MeanAbsoluteError", "min"),
        ("MeanSquaredError", "min"),
        ("RootMeanSquaredError", "min"),
        ("R2", "max"),
    ]
    signed = component("MeanError")
    with pytest.raises(UserError, match="metric MeanError: its best value is 0"):
        settings(recipe(signed))
    assert settings(recipe({**signed, "mode": "max"}))["validate"]["metrics"][0]["mode"] == "max"


def checked(given: dict, input_shape: list[int]) -> None:
    """As the step check-recipe does."""
    check_regression(given, check_components(given, {}), input_shape)


WRONG_NETWORKS = [
    component(
        "DenseNet", spatial_dims=2, in_channels=1, out_channels=2, init_features=2, growth_rate=2, block_config=[1]
    ),
    component("Regressor", in_shape=[1, 16, 16], out_shape=[3], channels=[2], strides=[2]),
    component("UNet", spatial_dims=2, in_channels=1, out_channels=1, channels=[2, 4], strides=[2]),
]


@pytest.mark.parametrize("model", WRONG_NETWORKS, ids=lambda m: m["name"])
def test_a_network_of_other_than_one_output_is_refused_before_training(model):
    conf = recipe()
    conf["train"]["model"] = model
    given = regression(conf)
    shape = [1, 1, *bundle_metadata.spatial_shape(given)]
    with pytest.raises(
        UserError, match=r"train.model: gives \[1, .*\] for 1 image, wanted \[1, 1\]: one number a case"
    ):
        checked(given, shape)


def test_a_network_of_one_output_passes_whatever_grid_it_takes():
    checked(regression(), [1, 1, 64, 64])
    conf = recipe()
    args = {"in_shape": [1, 20, 24], "out_shape": [1], "channels": [2, 4], "strides": [2, 2]}
    conf["train"]["model"] = component("Regressor", **args)
    assert bundle_metadata.spatial_shape(regression(conf)) == [20, 24]
    checked(regression(conf), [1, 1, 20, 24])
    checked(regression(conf), [1, 1, 64, 64])  # left to training


@pytest.mark.parametrize("name", ["ROCAUC", "ConfusionMatrix", "Accuracy", "MeanDice"])
def test_a_metric_of_classes_is_refused_before_training(name):
    with pytest.raises(UserError, match=f"metric {name}(: is of classes|, on one number a case)"):
        checked(regression(recipe(component(name))), [1, 1, 64, 64])


@pytest.mark.parametrize(
    "loss", [component("CrossEntropyLoss"), component("DiceLoss"), component("MSELoss", reduction="none")]
)
def test_a_loss_that_is_none_of_numbers_is_refused_before_training(loss):
    conf = recipe()
    conf["train"]["loss"] = loss
    with pytest.raises(UserError, match="train.loss"):
        checked(regression(conf), [1, 1, 64, 64])


# ---- training and scores


def images(root: Path, targets: list[float], noise: float = 0.5) -> list[dict]:
    """Cases whose mean intensity is nearly the target."""
    rng = numpy.random.RandomState(0)
    return [
        case(root, f"c{i}", [(y + noise * rng.randn() + rng.randn(8, 8)).astype(numpy.float32)], float(y))
        for i, y in enumerate(targets)
    ]


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3))[:, None]


def scored(root: Path, cases: list[dict], conf: dict, network: torch.nn.Module):
    scorer = CaseScorer(regression(conf), str(root), str(root / "cache"), torch.device("cpu"), {})
    kept = {}
    return scorer(network, cases, lambda c, p: kept.__setitem__(c["case"], p)), kept


ERRORS = [component(n) for n in ("MeanAbsoluteError", "MeanSquaredError", "RootMeanSquaredError", "R2Score")]
OTHERS = [component("MaximumAbsoluteError"), component("PearsonCorrelation"), component("MedianAbsoluteError")]


@pytest.mark.parametrize("offset", [0.0, 10_000.0])
def test_scores_are_sklearns(tmp_path, offset):
    """Also where the spread is small beside the numbers: single precision's sums would give no R² there."""
    targets = [offset + y for y in (0.5, 3, -1, 2, 2, 7)]
    cases = images(tmp_path, targets)
    evaluation, kept = scored(tmp_path, cases, recipe(*ERRORS, *OTHERS), Mean())
    found = [float(kept[c["case"]][0]) for c in cases]
    wanted = {
        "MeanAbsoluteError": sk.mean_absolute_error(targets, found),
        "MeanSquaredError": sk.mean_squared_error(targets, found),
        "RootMeanSquaredError": sk.root_mean_squared_error(targets, found),
        "R2Score": sk.r2_score(targets, found),
        "MaximumAbsoluteError": sk.max_error(targets, found),
        "PearsonCorrelation": numpy.corrcoef(targets, found)[0, 1],
        "MedianAbsoluteError": sk.median_absolute_error(targets, found),
    }
    aggregated = evaluation.aggregated()
    assert {k: aggregated[k] for k in wanted} == pytest.approx(wanted, rel=1e-6)
    assert [d["MeanSquaredError"] for d in evaluation.details] == pytest.approx(
        [(a - b) ** 2 for a, b in zip(targets, found, strict=True)]
    )
    assert all(math.isnan(d["R2Score"]) for d in evaluation.details)
    assert evaluation.class_details == [] and evaluation.classes() == []
    table = read_tsv(prediction_table([(c, kept[c["case"]]) for c in cases]))
    assert [(float(r["target"]), float(r["prediction"])) for r in table] == list(zip(targets, found, strict=True))
    assert torch.get_default_dtype() == torch.float32


def test_one_case_has_errors_but_no_r2(tmp_path):
    evaluation, _ = scored(tmp_path, images(tmp_path, [2.0]), recipe(*ERRORS), Mean())
    aggregated = evaluation.aggregated()
    assert math.isnan(aggregated["R2Score"]) and aggregated["MeanAbsoluteError"] > 0


@pytest.mark.parametrize("loss", ["MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss"])
def test_losses_compare_each_case_with_its_own_target(tmp_path, loss):
    conf = recipe()
    conf["train"]["loss"] = component(loss)
    cases = images(tmp_path, [1, 2, 3, 4])
    training = training_of((tmp_path, cases, cases[:2]), tmp_path / "a", regression(conf, epochs=1))
    _, targets = next(iter(training.loader))
    assert targets.shape == (4, 1) and targets.dtype == torch.float32
    output = targets + 0.25  # against [4] instead of [4, 1] it would be broadcast, and larger
    assert float(training._loss_of(output, targets)) == pytest.approx(
        float(getattr(torch.nn, loss)()(torch.tensor(0.25), torch.tensor(0.0)))
    )
    assert training.run().epoch == 1


def test_outputs_of_another_shape_end_training_and_scoring(tmp_path):
    cases = images(tmp_path, [1, 2, 3, 4])
    training = training_of((tmp_path, cases, cases), tmp_path / "a", regression(recipe(out_channels=2)))
    with pytest.raises(UserError, match=r"train.model: gives \[4, 2\] for 4 images, wanted \[4, 1\]"):
        training.run()
    with pytest.raises(UserError, match=r"train.model: gives \[1\] for 1 image, wanted \[1, 1\]"):
        scored(tmp_path, cases, recipe(), torch.nn.Sequential(Mean(), torch.nn.Flatten(0)))


# ---- what the clients read


@pytest.fixture
def fresh_monai():
    """As in a process of its own: training and scoring switch MONAI's metadata off."""
    set_track_meta(True)


def test_metrics_that_clinicadl_has_are_its_classes_and_others_stand_ins():
    described, reasons = metrics(regression(recipe(*ERRORS)))
    assert [f["name_"] for f in list(described.values())[1:3]] == ["MAEMetric", "MSEMetric"]
    assert reasons.keys() == {"RootMeanSquaredError", "R2Score"} and "cases' roots" in reasons["RootMeanSquaredError"]
    assert described["R2Score"]["pred_key"].startswith("R2Score, which is not ClinicaDL's to compute")


def make_regression(folder: Path, *metrics: dict) -> str:
    shutil.copytree(EXAMPLE, folder / "recipe")
    conf = json.loads((folder / "recipe/config/config_train.json").read_text())
    conf["train"]["model"]["args"].update(init_features=2, growth_rate=2, block_config=[1, 1])
    if metrics:
        conf["validate"]["key_metric"], *conf["validate"]["additional_metrics"] = metrics
    (folder / "recipe/config/config_train.json").write_text(json.dumps(conf | {"epochs": 2, "batch_size": 2}))
    best = {"best": ["loss"]}
    section = {"dataset": {"list": "d/dataset.json", "task": "regression"}, "select": best}
    archive = make_archive(folder, folder / "recipe", section)
    facts = {"name": "Sizes", "modality": {"0": "MRI"}, "labels": {}, "target": "volume"}
    write_json(layout.dataset_json(archive), {**facts, "digest": "", "cases": 6})
    write_bundle(archive)
    items = []
    for i, y in enumerate((0.5, 1.5, 2.5)):
        path = folder / f"d/images/case_{i}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = numpy.random.default_rng(i).normal(y * 100, 10, (16, 16, 16)).astype("float32")
        nibabel.save(nibabel.Nifti1Image(voxels, numpy.eye(4)), path)
        items.append({"image": f"d/images/case_{i}.nii.gz", "label": y})
    write_json(layout.datalist(archive, 0), dict.fromkeys(("training", "validation", "test"), items))
    return archive


def test_the_bundle_describes_one_number_and_writes_it_per_image(tmp_path, fresh_monai):
    archive = make_regression(tmp_path)
    pred = bundle.metadata(archive)["network_data_format"]["outputs"]["pred"]
    assert (pred["num_channels"], pred["spatial_shape"], pred["channel_def"]) == (1, [], {"0": "volume"})
    network = publish_random_weights(archive)
    run_inference(archive, tmp_path, tmp_path / "out")
    rows = list(csv.reader((tmp_path / "out/predictions.csv").open()))
    image = torch.from_numpy(nibabel.load(tmp_path / "d/images/case_1.nii.gz").get_fdata(dtype=numpy.float32))
    with torch.no_grad():
        wanted = float(network(((image - 100) / 100).clip(0, 1)[None, None]))
    assert [len(r) for r in rows] == [2, 2, 2] and float(rows[1][1]) == pytest.approx(wanted, rel=1e-4)


def test_the_bundle_trains_and_scores_as_the_archive_does(tmp_path, fresh_monai):
    from monai.bundle import run

    archive = make_regression(tmp_path)
    network = publish_random_weights(archive)
    places = {"bundle_root": archive, "dataset_dir": str(tmp_path)}
    places |= {"meta_file": layout.bundle_config(archive, "metadata.json"), "logging_file": False}
    config = layout.bundle_config(archive, "evaluate.json")
    run(config_file=config, workflow_type="inference", output_dir=str(tmp_path / "eval"), **places)
    found = dict(csv.reader((tmp_path / "eval/metrics.csv").open()))
    cases = [
        (nibabel.load(tmp_path / f"d/images/case_{i}.nii.gz").get_fdata(dtype=numpy.float32), y)
        for i, y in enumerate((0.5, 1.5, 2.5))
    ]
    with torch.no_grad():
        given = [float(network(torch.from_numpy(((x - 100) / 100).clip(0, 1))[None, None])) for x, _ in cases]
    targets = [y for _, y in cases]
    assert float(found["MeanAbsoluteError"]) == pytest.approx(sk.mean_absolute_error(targets, given), rel=1e-4)
    assert float(found["RootMeanSquaredError"]) == pytest.approx(sk.root_mean_squared_error(targets, given), rel=1e-4)
    trained = layout.bundle_config(archive, "train.json")
    run(config_file=trained, workflow_type="train", output_dir=str(tmp_path / "trained"), **places)
    assert list((tmp_path / "trained").glob("model_key_metric=-*.pt")), "the smallest error is the best"


def test_a_bundle_has_every_metric_and_ignites_by_the_class_itself(tmp_path):
    archive = make_regression(
        tmp_path, component("R2Score"), component("MeanAbsoluteError"), component("MaximumAbsoluteError")
    )
    config = bundle.evaluate_config(archive)
    assert config["key_metric"]["R2Score"].startswith("$@measures#R2Score(")
    assert list(config["additional_metrics"]) == ["loss", "MeanAbsoluteError", "MaximumAbsoluteError"]
    assert "metric_cmp_fn" not in bundle.train_config(archive)["validate"]["evaluator"]


def test_commands_and_mmar_configurations_ask_for_a_table(tmp_path):
    archive = make_regression(tmp_path)
    assert evaluate.targets(archive, "", scores=False, predictions=True) == [layout.eval_predictions(archive)]
    assert evaluate.targets(archive, "", scores=True, predictions=False) == [layout.eval_metrics_csv(archive)]
    environment = json.loads(Path(layout.environment_json(archive)).read_text())
    assert environment["PROCESSING_TASK"] == "regression"
    (saver,) = derived_configs(recipe(), "regression")["config_inference.json"]["handlers"]
    assert saver["name"] == "ClassificationSaver"


def test_a_pair_of_image_and_label_files_is_no_regression(tmp_path):
    with pytest.raises(Problems, match="target: found './labelsTr/a.nii.gz', wanted a finite number"):
        read_dataset(spec(task="regression"), write_datalist(tmp_path, [pair("a")]))
