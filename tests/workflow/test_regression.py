"""A regression archive of synthesized 2D images, with splits stratified by the target."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from armarium.tables import read_tsv
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score, root_mean_squared_error

from .bundle_client import assert_same_scores, evaluations, run_client
from .conftest import REPO, Project, finished_jobs, hashes
from .test_verify import bash, verified

pytestmark = pytest.mark.slow

METRICS = {
    "MeanAbsoluteError": mean_absolute_error,
    "MeanSquaredError": mean_squared_error,
    "RootMeanSquaredError": root_mean_squared_error,
    "R2": r2_score,
}


def regression_recipe() -> dict:
    """The example's recipe, in 2D."""
    conf = json.loads((REPO / "config/recipes/regression_small/config/config_train.json").read_text())
    conf["train"]["model"]["args"]["spatial_dims"] = 2
    conf["train"]["pre_transforms"] = conf["train"]["pre_transforms"][:-1]
    conf["epochs"] = 14
    return conf


def build_regressed(folder: Path) -> Project:
    """The example's archive of small 2D images, without a second split."""
    project = Project.fresh(folder)
    (project.folder / "recipe/config/config_train.json").write_text(json.dumps(regression_recipe()))
    section = yaml.safe_load((REPO / "config/regression.yaml").read_text())["archives"]["regression"]
    section["recipe"] = "recipe"
    section["dataset"]["synthesize"].update(shape=[20, 24], spacing=[1.0, 0.8])
    section["splits"] = {"method": "holdout", "holdout": 6, "stratify_by": ["target"]}
    section["select"] = {"best": ["MeanAbsoluteError"], "final": False}
    project.configure({"archives": {"regression": section}})
    project.archive = project.folder / "archives/regression"
    project.snakemake()
    return project


@pytest.fixture(scope="module")
def regressed(tmp_path_factory) -> Project:
    return build_regressed(tmp_path_factory.mktemp("regression"))


def table(project: Project, name: str) -> list[dict[str, str]]:
    return read_tsv((project.archive / name).read_text())


def targets_and_predictions(project: Project) -> tuple[list[float], list[float]]:
    rows = table(project, "eval/predictions.tsv")
    return [float(r["target"]) for r in rows], [float(r["prediction"]) for r in rows]


def test_every_tested_case_has_its_target_and_prediction(regressed):
    rows = table(regressed, "eval/predictions.tsv")
    listed = json.loads((regressed.folder / "data/regression/dataset.json").read_text())["test"]
    wanted = {Path(e["image"]).name.removesuffix(".nii.gz"): e["label"] for e in listed}
    assert list(rows[0]) == ["participant_id", "session_id", "case", "target", "prediction"]
    assert {r["case"]: float(r["target"]) for r in rows} == wanted
    checked = {r["case"]: r["label"] for r in table(regressed, "data/cases.tsv")}
    assert {case: float(checked[case]) for case in wanted} == wanted


def test_scores_are_sklearns_of_the_predictions(regressed):
    found = dict(line.split(",") for line in (regressed.archive / "eval/metrics.csv").read_text().splitlines())
    folder = "test/group-holdout/results/split-0/best-MeanAbsoluteError/metrics"
    (row,) = table(regressed, f"{folder}/aggregated.tsv")
    for name, function in METRICS.items():
        wanted = function(*targets_and_predictions(regressed))
        assert float(found[name]) == pytest.approx(wanted, rel=1e-9), name
        # Of the checkpoint, not its TorchScript.
        assert float(row[name]) == pytest.approx(wanted, rel=1e-4), name
    assert list(row) == ["loss", *METRICS]


def test_details_have_each_cases_errors_and_the_class_tables_no_rows(regressed):
    folder = "test/group-holdout/results/split-0/best-MeanAbsoluteError/metrics"
    errors = [abs(t - p) for t, p in zip(*targets_and_predictions(regressed), strict=True)]
    rows = table(regressed, f"{folder}/details.tsv")
    assert [float(r["MeanAbsoluteError"]) for r in rows] == pytest.approx(errors, rel=1e-4)
    assert [float(r["MeanSquaredError"]) for r in rows] == pytest.approx([e**2 for e in errors], rel=1e-4)
    assert {r["R2"] for r in rows} == {"n/a"}
    for name in ("classes.tsv", "class_details.tsv"):
        assert len((regressed.archive / folder / name).read_text().splitlines()) == 1


def test_it_learns_more_than_the_mean(regressed):
    assert r2_score(*targets_and_predictions(regressed)) > 0.3


def test_every_quantile_of_the_target_is_on_both_sides(regressed):
    splits = json.loads((regressed.archive / "data/splits.json").read_text())
    targets = {name: case["label"] for name, case in splits["cases"].items()}
    (split,) = splits["splits"]
    ordered = sorted(targets[name] for side in split.values() for name in side)
    fifths = [ordered[k * len(ordered) // 5] for k in range(5)] + [ordered[-1] + 1]
    for low, high in pairwise(fifths):
        held = [name for name in split["validation"] if low <= targets[name] < high]
        assert 1 <= len(held) <= 2


def test_the_model_card_names_the_target_and_its_spread(regressed):
    card = (regressed.archive / "docs/README.md").read_text()
    assert "target: target, of the training and validation cases " in card and "standard deviation" in card
    assert "Errors are in the target's units" in card and "classes" not in card.partition("## Results")[0]


def test_the_command_of_inference_brings_a_lost_table_back_and_nothing_is_left_to_do(regressed):
    before, home = hashes(regressed.archive), regressed.folder
    (regressed.archive / "eval/predictions.tsv").unlink()
    done = bash(f"PATH='{Path(sys.executable).parent}':$PATH archives/regression/commands/infer.sh", home, home)
    ran = finished_jobs(done.stdout + done.stderr)
    assert done.returncode == 0 and ran == {"extract_predictions": 1}, done.stdout + done.stderr
    assert hashes(regressed.archive) == before
    assert verified(home, home, "archives/regression")["ok"]
    assert bash("armarium status archives/regression", home, home).stdout.startswith("archives/regression: complete, ")


def test_monais_client_gets_the_same_numbers_and_scores(regressed, tmp_path):
    inference = {"config_file": "configs/inference.json", "output_dir": str(tmp_path / "inference")}
    calls = [{**inference, "dataset_dir": str(regressed.folder)}, *evaluations(regressed.folder, tmp_path)]
    run_client(regressed.archive, *calls)
    assert_same_scores(regressed.archive, "MeanAbsoluteError", tmp_path)
    lines = (tmp_path / "inference/predictions.csv").read_text().splitlines()
    found = {Path(line.split(",")[0]).name.removesuffix(".nii.gz"): float(line.split(",")[1]) for line in lines}
    wanted = {row["case"]: float(row["prediction"]) for row in table(regressed, "eval/predictions.tsv")}
    assert found == pytest.approx(wanted, abs=1e-6)
