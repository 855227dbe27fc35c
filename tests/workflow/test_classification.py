"""A classification archive of three classes, from a TSV with sessions and a held-out group, of two-channel 2D images."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import nibabel
import numpy
import pytest
from armarium import Archive
from sklearn.metrics import confusion_matrix, roc_auc_score

from .bundle_client import assert_same_scores, evaluations, run_client
from .conftest import REPO, Project

CASES = 21
CLASSES = ("control", "carrier", "patient")


def classification_recipe() -> dict:
    """The adrenal recipe for small 2D images of two channels."""
    conf = json.loads((REPO / "config/recipes/adrenal/config/config_train.json").read_text())
    conf["train"]["model"]["args"].update(
        spatial_dims=2, n_input_channels=2, block_inplanes=[4, 4, 8, 8], num_classes=3
    )
    sensitivity = {"metric_name": "sensitivity", "reduction": "mean_batch"}
    conf["validate"]["additional_metrics"] += [
        {"name": "ConfusionMatrix", "log_label": "Sensitivity", "args": sensitivity}
    ]
    for key in ("train", "validate"):
        conf[key]["pre_transforms"] = [
            t for t in conf[key]["pre_transforms"] if "Resized" not in t.values() and t.get("name") != "RandAffined"
        ]
    conf["train"]["pre_transforms"] = conf["train"]["pre_transforms"][:3]
    conf.update(epochs=3, batch_size=4)
    return conf


def write_table(folder) -> None:
    """Two images a participant; carriers are brighter in the second channel, patients more so."""
    folder.mkdir(parents=True)
    rng = numpy.random.RandomState(0)
    rows = []
    for i in range(CASES):
        label = CLASSES[i % 3]
        names = [f"p{i:02d}_{c}.nii.gz" for c in ("t1", "t2")]
        for channel, name in enumerate(names):
            values = rng.normal(channel * (i % 3), 0.3, (16, 16)).astype(numpy.float32)
            nibabel.save(nibabel.Nifti1Image(values, numpy.eye(4)), folder / name)
        rows.append(
            {"participant_id": f"p{i:02d}", "session_id": "M06", "image_0": names[0], "image_1": names[1]}
            | {"label": label, "site": f"s{i % 4}"}
        )
    with open(folder / "cases.tsv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def build_classified(folder: Path) -> Project:
    project = Project.fresh(folder)
    (project.folder / "recipe/config/config_train.json").write_text(json.dumps(classification_recipe()))
    write_table(project.folder / "table")
    dataset = {"list": "table/cases.tsv", "task": "classification", "labels": dict(zip("012", CLASSES, strict=True))}
    section = {
        "recipe": "recipe",
        "dataset": {**dataset, "channels": 2},
        "splits": {"method": "holdout", "holdout": 6, "stratify_by": ["label"]},
        "test": {"groups": {"held": {"count": 6}}},
    }
    project.configure({"archives": {"tsv": section}})
    project.archive = project.folder / "archives/tsv"
    project.snakemake()
    return project


@pytest.fixture(scope="module")
def classified(tmp_path_factory) -> Project:
    return build_classified(tmp_path_factory.mktemp("classification"))


def test_every_tested_case_has_its_probabilities(classified):
    rows = list(
        csv.DictReader((classified.archive / "eval/probabilities.tsv").read_text().splitlines(), delimiter="\t")
    )
    held = json.loads((classified.archive / "data/splits.json").read_text())["groups"]["held"]
    assert sorted(r["case"] for r in rows) == sorted(held)
    for row in rows:
        values = [float(row[f"probability_{name}"]) for name in CLASSES]
        assert abs(sum(values) - 1) < 1e-5 and int(row["predicted"]) == numpy.argmax(values)


def test_ids_of_the_table_flow_into_every_table(classified):
    for name in ("training/data/data.tsv", "test/group-held/data.tsv"):
        rows = list(csv.DictReader((classified.archive / name).read_text().splitlines(), delimiter="\t"))
        assert rows and all(r["participant_id"].startswith("sub-p") and r["session_id"] == "ses-M06" for r in rows)


def test_a_metric_of_the_whole_set_is_in_the_results(classified):
    path = classified.archive / "test/group-held/results/split-0/final/metrics/aggregated.tsv"
    (row,) = csv.DictReader(path.read_text().splitlines(), delimiter="\t")
    assert 0 <= float(row["ROCAUC"]) <= 1 and 0 <= float(row["Accuracy"]) <= 1


def test_every_side_has_as_many_cases_of_each_class(classified):
    splits = json.loads((classified.archive / "data/splits.json").read_text())
    for side in (*splits["splits"][0].values(), splits["groups"]["held"]):
        counts = Counter(splits["cases"][name]["label"] for name in side)
        assert counts == {0: len(side) // 3, 1: len(side) // 3, 2: len(side) // 3}


def test_scores_by_class_and_over_classes_are_sklearns(classified):
    archive = Archive(classified.archive)
    rows = archive.open_file(archive.eval.probabilities_tsv)
    probabilities = rows[[f"probability_{name}" for name in CLASSES]].to_numpy()
    matrix = confusion_matrix(rows.label, rows.predicted, labels=[0, 1, 2])
    sensitivity = matrix.diagonal() / matrix.sum(1)
    aucs = [roc_auc_score(rows.label == k, probabilities[:, k]) for k in range(3)]
    wanted = {"ROCAUC": numpy.mean(aucs), "Sensitivity": sensitivity.mean(), "Accuracy": matrix.trace() / len(rows)}
    metrics = dict(line.split(",") for line in (classified.archive / "eval/metrics.csv").read_text().splitlines())
    assert {m: float(metrics[m]) for m in wanted} == pytest.approx(wanted, abs=1e-6)
    path = classified.archive / "test/group-held/results/split-0/best-ROCAUC/metrics/classes.tsv"
    found = {(r["metric"], r["name"]): float(r["mean"]) for r in csv.DictReader(path.open(), delimiter="\t")}
    assert [found["ROCAUC", name] for name in CLASSES] == pytest.approx(aucs, abs=1e-6)
    assert [found["Sensitivity", name] for name in CLASSES] == pytest.approx(sensitivity, abs=1e-6)


def test_nothing_is_left_to_do(classified):
    assert classified.planned() == {}


def test_a_prediction_is_the_probabilities_of_the_published_evaluation(classified):
    archive = Archive(classified.archive)
    held = archive.open_file(archive.eval.probabilities_tsv).set_index("case")
    cases = archive.open_file(archive.data.splits_json)["cases"]
    predictor = archive.predictor()
    for case, row in held.iterrows():
        made = predictor([classified.folder / image for image in cases[case]["image"]])
        assert list(made) == list(CLASSES)
        assert max(made, key=made.get) == list(made)[int(row.predicted)]
        assert list(made.values()) == pytest.approx([row[f"probability_{name}"] for name in CLASSES], abs=1e-6)


def test_monais_client_gets_the_same_probabilities_and_scores(classified, tmp_path):
    inference = {"config_file": "configs/inference.json", "output_dir": str(tmp_path / "inference")}
    calls = [{**inference, "dataset_dir": str(classified.folder)}, *evaluations(classified.folder, tmp_path)]
    run_client(classified.archive, *calls)
    assert_same_scores(classified.archive, "ROCAUC", tmp_path, without={"Sensitivity"})
    found = {Path(r[0]).name.split(".")[0]: r[1:] for r in csv.reader((tmp_path / "inference/predictions.csv").open())}
    rows = (classified.archive / "eval/probabilities.tsv").read_text().splitlines()
    columns = [f"probability_{name}" for name in CLASSES]
    wanted = {r["case"]: [r[c] for c in columns] for r in csv.DictReader(rows, delimiter="\t")}
    assert found.keys() == wanted.keys()
    for case, values in wanted.items():
        assert list(map(float, found[case])) == pytest.approx(list(map(float, values)), abs=1e-6)
