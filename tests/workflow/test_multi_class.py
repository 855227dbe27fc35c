"""A segmentation of several classes that exclude each other: a softmax over background and two structures."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy
import pytest
from armarium.tables import read_tsv

from .conftest import Project, micro_config, micro_recipe

pytestmark = pytest.mark.slow
CLASSES = ("ellipsoid 1", "ellipsoid 2")


@pytest.fixture(scope="module")
def structures(tmp_path_factory) -> Project:
    """The micro archive with two ellipsoids in each image."""
    project = Project.fresh(tmp_path_factory.mktemp("structures"))
    conf = micro_recipe()
    conf["train"]["model"]["args"].update(out_channels=3, channels=[8, 16])
    (project.folder / "recipe/config/config_train.json").write_text(json.dumps(conf))
    config = micro_config()
    section = config["archives"]["micro"]
    section["dataset"]["synthesize"]["classes"] = 3
    section |= {"select": {"best": ["MeanDice"], "final": False}, "set": {"epochs": 20, "learning_rate": 0.02}}
    project.configure(config)
    project.snakemake()
    return project


def dice_by_hand(project: Project) -> dict[str, list[float]]:
    """By class the Dice of each tested case, of the saved file against the label file."""
    found = {name: [] for name in CLASSES}
    for case in json.loads((project.archive / "data/splits.json").read_text())["groups"]["holdout"]:
        saved, label = (
            numpy.asarray(nibabel.load(path).dataobj)
            for path in (
                project.archive / f"eval/{case}/{case}_seg.nii.gz",
                project.folder / f"data/micro/labelsTs/{case}.nii.gz",
            )
        )
        for k, values in enumerate(found.values(), 1):
            values.append(2 * ((saved == k) & (label == k)).sum() / ((saved == k).sum() + (label == k).sum()))
    return found


def test_it_learns_every_class(structures):
    assert {name: numpy.mean(values) > 0.6 for name, values in dice_by_hand(structures).items()} == dict.fromkeys(
        CLASSES, True
    )


def test_tables_by_class_are_those_of_the_saved_files(structures):
    wanted = dice_by_hand(structures)
    raw = read_tsv((structures.archive / "eval/val_mean_dice_raw.csv").read_text(), separator=",")
    for name in CLASSES:
        assert [float(row[name]) for row in raw] == pytest.approx(wanted[name], abs=1e-6)
    path = Path("test/group-holdout/results/split-0/best-MeanDice/metrics/classes.tsv")
    rows = {row["name"]: row for row in read_tsv((structures.archive / path).read_text())}
    assert {name: float(row["mean"]) for name, row in rows.items()} == pytest.approx(
        {name: numpy.mean(values) for name, values in wanted.items()}, abs=1e-6
    )
