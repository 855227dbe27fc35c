"""Archives of classes that may occur together: findings in an image, and BraTS's overlapping regions in a volume."""

from __future__ import annotations

import io
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy
import pytest
from armarium import Archive
from armarium.tables import read_tsv
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from tests.multi_label import (
    FINDINGS,
    FINDINGS_SECTION,
    REGIONS,
    REGIONS_SECTION,
    findings_recipe,
    regions_recipe,
    write_findings,
    write_tumours,
)

from .conftest import Project, finished_jobs, hashes
from .test_verify import bash, verified

pytestmark = pytest.mark.slow


def table(project: Project, name: str) -> list[dict[str, str]]:
    return read_tsv((project.archive / name).read_text())


def decimal(cell: str) -> float:
    return float("nan") if cell == "n/a" else float(cell)


def class_rows(project: Project, metric: str) -> dict[str, dict[str, str]]:
    """Rows of the published evaluation's classes by their names."""
    with zipfile.ZipFile(project.archive / "eval/evaluation.zip") as held:
        rows = read_tsv(io.TextIOWrapper(held.open("classes.tsv")).read())
    return {row["name"]: row for row in rows if row["metric"] == metric}


# ---- classification


def built(folder: Path, recipe: dict, write: Callable[[Path], None], name: str, section: dict) -> Project:
    project = Project.fresh(folder)
    (project.folder / "recipe/config/config_train.json").write_text(json.dumps(recipe))
    write(project.folder / "data")
    project.configure({"archives": {name: section}})
    project.archive = project.folder / "archives" / name
    project.snakemake()
    return project


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> Project:
    folder = tmp_path_factory.mktemp("findings")
    return built(folder, findings_recipe(), write_findings, "chest", FINDINGS_SECTION)


def scored(project: Project) -> dict[str, tuple[list[int], list[int], list[float]]]:
    """By finding: truth, decisions and probabilities of the tested cases."""
    rows = table(project, "eval/probabilities.tsv")
    return {
        name: (
            [int(r[f"label_{name}"]) for r in rows],
            [int(r[f"predicted_{name}"]) for r in rows],
            [float(r[f"probability_{name}"]) for r in rows],
        )
        for name in FINDINGS
    }


def test_every_tested_case_has_each_findings_label_decision_and_probability(findings):
    listed = json.loads((findings.folder / "data/plco.json").read_text())["test"]
    wanted = {e["case"]: e["label"] for e in listed}
    rows = table(findings, "eval/probabilities.tsv")
    assert {r["case"]: [int(r[f"label_{name}"]) for name in FINDINGS] for r in rows} == wanted
    for _, decisions, probabilities in scored(findings).values():
        assert decisions == [int(p >= 0.5) for p in probabilities]
    sums = [sum(float(r[f"probability_{n}"]) for n in FINDINGS) for r in rows]
    assert max(sums) > 1.2, "one finding does not take another's probability"


def test_it_finds_every_finding(findings):
    for name, (truth, _, probabilities) in scored(findings).items():
        assert roc_auc_score(truth, probabilities) > 0.8, name


def test_scores_by_class_and_their_mean_are_sklearns(findings):
    metrics = dict(line.split(",") for line in (findings.archive / "eval/metrics.csv").read_text().splitlines())
    functions = {
        "ROCAUC": lambda truth, _, probabilities: roc_auc_score(truth, probabilities),
        "AveragePrecision": lambda truth, _, probabilities: average_precision_score(truth, probabilities),
        "F1": lambda truth, decisions, _: f1_score(truth, decisions),
    }
    for metric, function in functions.items():
        wanted = {name: function(*columns) for name, columns in scored(findings).items()}
        rows = class_rows(findings, metric)
        assert list(rows) == FINDINGS
        assert {n: float(r["mean"]) for n, r in rows.items()} == pytest.approx(wanted, abs=1e-6), metric
        assert {(r["defined"], r["undefined"]) for r in rows.values()} == {("1", "0")}
        assert float(metrics[metric]) == pytest.approx(sum(wanted.values()) / 3, abs=1e-6), metric
    truth, decisions = (numpy.array([columns[k] for columns in scored(findings).values()]) for k in (0, 1))
    right = (truth == decisions).all(0)
    assert float(metrics["ExactMatch"]) == pytest.approx(right.mean(), abs=1e-6)


def test_every_finding_is_on_both_sides_in_its_share(findings):
    splits = json.loads((findings.archive / "data/splits.json").read_text())
    (split,) = splits["splits"]
    for i, name in enumerate(FINDINGS):
        share = {side: numpy.mean([splits["cases"][c]["label"][i] for c in split[side]]) for side in split}
        assert share["validation"] == pytest.approx(share["train"], abs=0.11), name


def test_the_datalist_of_a_split_has_the_lists_label(findings):
    listed = json.loads((findings.archive / "config/dataset_0.json").read_text())
    assert listed["labels"] == {str(i): name for i, name in enumerate(FINDINGS)}
    assert all(len(e["label"]) == 3 and set(e["label"]) <= {0, 1} for e in listed["training"])
    assert json.loads((findings.archive / "config/environment.json").read_text())["PROCESSING_TASK"] == "classification"


def test_a_prediction_is_the_findings_probabilities(findings):
    archive = Archive(findings.archive)
    rows = table(findings, "eval/probabilities.tsv")
    made = archive.predict([findings.folder / f"data/images/{rows[0]['case']}_{c}.nii.gz" for c in range(2)])
    assert made == pytest.approx({n: float(rows[0][f"probability_{n}"]) for n in FINDINGS}, abs=1e-6)


def test_the_model_card_counts_the_findings_and_metadata_names_them(findings):
    labels = [
        case["label"] for case in json.loads((findings.archive / "data/splits.json").read_text())["cases"].values()
    ]
    card = (findings.archive / "docs/README.md").read_text()
    assert f"of {len(labels)} cases {sum(label[0] for label in labels)} have effusion" in card
    told = json.loads((findings.archive / "configs/metadata.json").read_text())
    assert told["task"] == "multi-label classification: effusion, nodule, opacity"
    assert list(told["network_data_format"]["outputs"]["pred"]["channel_def"].values()) == FINDINGS


def test_monais_bundle_evaluates_to_the_archives_own_scores(findings, tmp_path):
    wanted = table(findings, "training/split-0/models/best_models/best-ROCAUC/validation_metrics/aggregated.tsv")[0]
    found = bundle_metrics(findings, tmp_path)
    for metric in ("ROCAUC", "AveragePrecision", "ExactMatch"):
        assert found[metric] == pytest.approx(float(wanted[metric]), abs=1e-5), metric


@contextmanager
def bundle_of(project: Project, output: Path) -> Iterator[Callable[[str], None]]:
    """What runs one of the archive's configurations by MONAI's own client; torch and MONAI are then as before."""
    from monai.bundle import run
    from monai.data import get_track_meta, set_track_meta

    meta, folder = get_track_meta(), project.archive / "configs"
    places = {"bundle_root": str(project.archive), "dataset_dir": str(project.folder), "output_dir": str(output)}
    places |= {"meta_file": str(folder / "metadata.json"), "logging_file": False}
    set_track_meta(True)
    try:
        yield lambda name: run(config_file=str(folder / name), workflow_type="inference", **places)
    finally:
        set_track_meta(meta)


def bundle_metrics(project: Project, output: Path) -> dict[str, float]:
    """What MONAI's client writes of the published split's validation cases; of a value for each class, nothing."""
    with bundle_of(project, output) as run_config:
        run_config("evaluate.json")
    lines = (re.split(r"[,\t]", line, maxsplit=1) for line in (output / "metrics.csv").read_text().splitlines())
    return {name: float(value) for name, value in lines if not value.startswith("tensor")}


def test_the_command_of_inference_brings_a_lost_table_back_and_the_archive_verifies(findings):
    before, home = hashes(findings.archive), findings.folder
    (findings.archive / "eval/probabilities.tsv").unlink()
    done = bash(f"PATH='{Path(sys.executable).parent}':$PATH archives/chest/commands/infer.sh", home, home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert finished_jobs(done.stdout + done.stderr) == {"extract_probabilities": 1}
    assert hashes(findings.archive) == before
    assert verified(home, home, "archives/chest")["ok"]


# ---- segmentation


@pytest.fixture(scope="module")
def regions(tmp_path_factory) -> Project:
    folder = tmp_path_factory.mktemp("regions")
    return built(folder, regions_recipe(), write_tumours, "brain", REGIONS_SECTION)


def volume(path: Path) -> numpy.ndarray:
    return numpy.asarray(nibabel.load(path).dataobj)


def dice_by_hand(project: Project) -> dict[str, list[float]]:
    """By region the Dice of each tested case, of the saved files against the label maps; NaN where the map has none of it."""
    found = {name: [] for name in REGIONS}
    for case in json.loads((project.archive / "data/splits.json").read_text())["groups"]["held"]:
        saved, label = volume(segmentation(project, case)), volume(project.folder / f"data/labels/{case}.nii.gz")
        for i, (name, values) in enumerate(REGIONS.items()):
            truth, made = numpy.isin(label, values), saved[..., i] == 1
            sizes = truth.sum() + made.sum()
            found[name].append(2 * (truth & made).sum() / sizes if truth.any() else numpy.nan)
    return found


def segmentation(project: Project, case: str) -> Path:
    (path,) = (project.archive / f"eval/{case}").glob("*.nii.gz")
    return path


def test_a_segmentation_has_a_channel_for_each_region_on_the_images_own_grid(regions):
    for case in ("b10", "b11", "b12"):
        made, image = (
            nibabel.load(segmentation(regions, case)),
            nibabel.load(regions.folder / f"data/images/{case}.nii.gz"),
        )
        assert made.shape == (*image.shape, 3) and made.get_data_dtype() == numpy.uint8
        assert numpy.array_equal(made.affine, image.affine)
        values = volume(segmentation(regions, case))
        assert set(numpy.unique(values)) == {0, 1}
        assert (values.sum(-1) == 3).any() or case == "b12", "regions overlap"


def test_it_learns_overlapping_regions(regions):
    for name, values in dice_by_hand(regions).items():
        assert numpy.nanmean(values) > 0.6, name


def test_dice_tables_are_those_of_the_saved_files(regions):
    wanted = dice_by_hand(regions)
    raw = read_tsv((regions.archive / "eval/val_mean_dice_raw.csv").read_text(), separator=",")
    summary = {
        r["class"]: r for r in read_tsv((regions.archive / "eval/val_mean_dice_summary.csv").read_text(), separator=",")
    }
    for name, values in wanted.items():
        assert [float(r[name]) for r in raw] == pytest.approx(values, abs=1e-6, nan_ok=True)
        assert float(summary[name]["mean"]) == pytest.approx(numpy.nanmean(values), abs=1e-6)
    assert [summary[name]["undefined"] for name in REGIONS] == ["0", "0", "1"]
    assert class_rows(regions, "MeanDice")["ET"]["undefined"] == "1"


def test_a_prediction_of_overlapping_regions_is_the_saved_one(regions):
    archive = Archive(regions.archive)
    image = regions.folder / "data/images/b11.nii.gz"
    made = archive.predict(image)
    assert numpy.array_equal(numpy.asarray(made.dataobj), volume(segmentation(regions, "b11")))
    soft = numpy.asarray(archive.predict(image, probabilities=True).dataobj)
    assert soft.shape == made.shape and numpy.array_equal(soft >= 0.5, numpy.asarray(made.dataobj) == 1)


def test_monais_bundle_segments_and_scores_regions_as_the_archive(regions, tmp_path):
    wanted = table(regions, "training/split-0/models/best_models/best-MeanDice/validation_metrics/aggregated.tsv")[0]
    assert bundle_metrics(regions, tmp_path)["MeanDice"] == pytest.approx(float(wanted["MeanDice"]), abs=1e-5)
    with bundle_of(regions, tmp_path) as run_config:
        run_config("inference.json")
    for case in ("b10", "b11", "b12"):
        (made,) = tmp_path.rglob(f"{case}_seg.nii.gz")
        assert numpy.array_equal(volume(made), volume(segmentation(regions, case)))


def test_nothing_is_left_to_do_with_overlapping_regions(regions):
    assert regions.planned() == {}
    assert verified(regions.folder, regions.folder, "archives/brain")["ok"]
