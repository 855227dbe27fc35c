"""An archive's steps, in this process, where classes may occur together: from the list to scores, tables and the card."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import numpy
import pytest
from armarium import layout, maps, mmar, steps
from armarium.bundle import write_bundle_config
from armarium.model_card import write_doc
from armarium.predicting import Predictor, load_predictor
from armarium.tables import read_tsv
from armarium.zips import zip_member
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from tiny import configured

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


def made(folder: Path, recipe: dict, write, section: dict) -> str:
    """The archive as its rules make it, as far as these tests look at it."""
    (folder / "recipe/config").mkdir(parents=True)
    (folder / "recipe/config/config_train.json").write_text(json.dumps(recipe))
    write(folder / "data")
    held = configured(folder, section)
    archive, cache, (checkpoint,) = held.archive, str(folder / "cache"), held.checkpoints
    steps.check_data(archive, 1, cache)
    steps.split_data(archive)
    steps.write_datalist(archive, "0")
    steps.check_recipe(archive)
    steps.train(archive, "0", "cpu", cache)
    steps.test_split(archive, "held", "0", "cpu", cache)
    steps.write_results(archive, "held", "0", checkpoint, cache)
    steps.export_split(archive, "0", [checkpoint], cache)
    steps.publish_weights(archive, "best", cache)
    exports = layout.exports_zip(archive, "0")
    steps.extract(archive, exports, f"{checkpoint}{steps.SCRIPT}", layout.published_ts(archive), "x", cache)
    steps.evaluate_published(archive, "cpu", cache, False)
    for name in layout.BUNDLE_CONFIGS:
        write_bundle_config(archive, name)
    maps.write_metrics_json(archive)
    mmar.write_eval_metrics(archive)
    write_doc(archive, "README.md")
    return archive


def predictor(archive: str) -> Predictor:
    return load_predictor(archive, layout.published_model(archive), True, "cpu", [])


def evaluated(archive: str, name: str) -> list[dict[str, str]]:
    return read_tsv(zip_member(layout.eval_zip(archive), name).decode())


def by_class(archive: str, metric: str) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in evaluated(archive, "classes.tsv") if row["metric"] == metric}


def metrics_of(archive: str) -> dict[str, float]:
    lines = Path(layout.eval_metrics_csv(archive)).read_text().splitlines()
    return {name: float(value) for name, value in (line.split(",") for line in lines)}


def test_findings_are_learnt_and_scored_by_class(tmp_path):
    archive = made(tmp_path, findings_recipe(), write_findings, FINDINGS_SECTION)
    rows = evaluated(archive, "probabilities.tsv")
    functions = {
        "ROCAUC": lambda truth, _, probabilities: roc_auc_score(truth, probabilities),
        "AveragePrecision": lambda truth, _, probabilities: average_precision_score(truth, probabilities),
        "F1": lambda truth, decisions, _: f1_score(truth, decisions),
    }
    columns = {
        name: [[float(r[f"{what}_{name}"]) for r in rows] for what in ("label", "predicted", "probability")]
        for name in FINDINGS
    }
    for metric, function in functions.items():
        wanted = {name: function(*of_class) for name, of_class in columns.items()}
        assert {n: float(r["mean"]) for n, r in by_class(archive, metric).items()} == pytest.approx(wanted, abs=1e-6)
        assert metrics_of(archive)[metric] == pytest.approx(sum(wanted.values()) / 3, abs=1e-6)
        assert metric != "ROCAUC" or min(wanted.values()) > 0.8, wanted
    listed = json.loads((tmp_path / "data/plco.json").read_text())["test"]
    assert {r["case"]: [int(r[f"label_{n}"]) for n in FINDINGS] for r in rows} == {
        e["case"]: e["label"] for e in listed
    }
    parity = json.loads(zip_member(layout.exports_zip(archive, "0"), f"best-ROCAUC{steps.PARITY}"))
    assert parity["max_abs_difference"] <= parity["tolerance"]
    first = rows[0]
    images = [tmp_path / f"data/images/{first['case']}_{c}.nii.gz" for c in range(2)]
    predicted = predictor(archive)(images)
    assert predicted == pytest.approx({n: float(first[f"probability_{n}"]) for n in FINDINGS}, abs=1e-6)
    card = Path(layout.doc(archive, "README.md")).read_text()
    assert "classes, which may occur together: 0 effusion, 1 nodule, 2 opacity; of 52 cases" in card
    told = json.loads(Path(layout.bundle_config(archive, "metadata.json")).read_text())
    assert told["task"] == "multi-label classification: effusion, nodule, opacity"


def test_overlapping_regions_are_learnt_and_scored_by_region(tmp_path):
    archive = made(tmp_path, regions_recipe(), write_tumours, REGIONS_SECTION)
    wanted = {name: [] for name in REGIONS}
    for case in ("b10", "b11", "b12"):
        image = nibabel.load(tmp_path / f"data/images/{case}.nii.gz")
        label = numpy.asarray(nibabel.load(tmp_path / f"data/labels/{case}.nii.gz").dataobj)
        saved = nibabel.Nifti1Image.from_bytes(
            gzip.decompress(zip_member(layout.eval_zip(archive), f"predictions/{case}.nii.gz"))
        )
        values = numpy.asarray(saved.dataobj)
        assert values.shape == (*image.shape, 3) and numpy.array_equal(saved.affine, image.affine)
        assert numpy.array_equal(
            numpy.asarray(predictor(archive)(tmp_path / f"data/images/{case}.nii.gz").dataobj), values
        )
        for i, (name, inside) in enumerate(REGIONS.items()):
            truth, found = numpy.isin(label, inside), values[..., i] == 1
            dice = 2 * (truth & found).sum() / (truth.sum() + found.sum()) if truth.any() else numpy.nan
            wanted[name].append(dice)
    mmar.write_eval_dice_tables(archive)
    raw, summary = (read_tsv(Path(p).read_text(), separator=",") for p in layout.eval_dice_tables(archive))
    for name, of_class in wanted.items():
        assert numpy.nanmean(of_class) > 0.6, name
        assert [float(row[name]) for row in raw] == pytest.approx(of_class, abs=1e-6, nan_ok=True)
        assert float(by_class(archive, "MeanDice")[name]["mean"]) == pytest.approx(numpy.nanmean(of_class), abs=1e-6)
    assert {row["class"]: row["undefined"] for row in summary if row["class"] in REGIONS} == {
        "TC": "0",
        "WT": "0",
        "ET": "1",
    }
    facts = json.loads(Path(layout.dataset_json(archive)).read_text())
    assert list(facts["labels"].values()) == list(REGIONS) and facts["label_values"]["4"] == "enhancing"
