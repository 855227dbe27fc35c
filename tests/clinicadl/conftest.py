"""The real ClinicaDL, in the Python that CLINICADL_PYTHON names (``make test-clinicadl`` makes one), and archives for it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy
import pytest
from armarium import steps
from armarium.cache import PreparedCases
from armarium.split_files import read_splits

from tests.workflow.conftest import REPO, Project

PACKAGE = "clinicadl 2.0.0"


class Client:
    """ClinicaDL's process; ``client.ask("opens", archive=…)`` calls a function of client.py there."""

    def __init__(self, process: subprocess.Popen):
        self.process = process

    def ask(self, do: str, **arguments: Any) -> Any:
        print(json.dumps({"do": do, "with": arguments}, default=str), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, "ClinicaDL's process has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    python = os.environ.get("CLINICADL_PYTHON")
    if not python:
        pytest.skip(f"CLINICADL_PYTHON names no Python that has {PACKAGE}; make test-clinicadl makes one")
    command = [python, "-W", "ignore", str(Path(__file__).with_name("client.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Client(process)
        process.stdin.close()


# ---- archives


def recipe_of(name: str) -> dict:
    return json.loads((REPO / f"config/recipes/{name}/config/config_train.json").read_text())


def component(name: str, **args: Any) -> dict:
    return {"name": name, "args": args}


def classification_recipe() -> dict:
    """The adrenal recipe, quick: small images, and no transform that takes long."""
    conf = recipe_of("adrenal")
    transforms = [t for t in conf["train"]["pre_transforms"] if t["name"] != "RandAffined"]
    for transform in transforms:
        if transform["name"] == "Resized":
            transform["args"]["spatial_size"] = [16, 16, 16]
    conf["train"]["pre_transforms"] = transforms
    conf.update(epochs=2, batch_size=4)
    return conf


def segmentation_recipe() -> dict:
    """The demo's recipe with parts that ClinicaDL has classes for: a network of dilated convolutions, one-hot labels."""
    conf = recipe_of("unet_small")
    conf["train"]["model"] = component(
        "AutoEncoder",
        **{"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [6], "strides": [1]},
        **{"inter_channels": [6, 6], "inter_dilations": [2, 4], "num_inter_units": 0},
    )
    conf["train"]["loss"] = component("MSELoss")
    conf["train"]["optimizer"] = component("Adam", lr="{learning_rate}")
    kept = {"LoadImaged", "EnsureChannelFirstd", "NormalizeIntensityd"}
    one_hot = component("AsDiscreted", keys="label", to_onehot=2)
    for section, name in (("train", "name"), ("validate", "ref")):
        transforms = [t for t in conf[section]["pre_transforms"] if t.get(name) in kept]
        conf[section]["pre_transforms"] = [*transforms, one_hot]
    conf["validate"]["additional_metrics"] = [component("MeanIoUHandler", include_background=False)]
    conf.update(epochs=3)
    return conf


def foreign_recipe() -> dict:
    """The classification recipe as it was with a network and an optimizer that ClinicaDL has no class for."""
    conf = classification_recipe()
    conf["train"]["model"]["args"].update(conv1_t_stride=2, no_max_pool=True)
    conf["train"]["optimizer"] = component("AdamW", lr=0.003)
    return conf


def regression_recipe() -> dict:
    """The regression's recipe, quick, with an optimizer that ClinicaDL has a class for."""
    conf = recipe_of("regression_small")
    conf["train"]["optimizer"] = component("Adam", lr="{learning_rate}")
    conf.update(epochs=2)
    return conf


def write_volumes(folder: Path, count: int = 18, shape: tuple[int, ...] = (18, 16, 20)) -> None:
    """Cases of two classes; class 1 is brighter in the middle."""
    folder.mkdir(parents=True)
    rng, rows = numpy.random.RandomState(0), []
    for i in range(count):
        values = rng.normal(0, 0.5, shape).astype(numpy.float32)
        values[5:12, 5:12, 5:12] += i % 2
        nibabel.save(nibabel.Nifti1Image(values, numpy.eye(4)), folder / f"p{i:02d}.nii.gz")
        label = ("control", "patient")[i % 2]
        rows.append({"participant_id": f"p{i:02d}", "session_id": "M00", "image_0": f"p{i:02d}.nii.gz", "label": label})
    write_tsv(folder / "cases.tsv", rows)


def write_tsv(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def read_tsv(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))


CLASSIFICATION = {
    "dataset": {"list": "table/cases.tsv", "task": "classification", "labels": {"0": "control", "1": "patient"}},
    "splits": {"method": "kfold", "n_splits": 2, "stratify_by": ["label"]},
    "test": {"groups": {"held": {"count": 6}}},
    "select": {"best": ["loss", "ROCAUC"]},
}
SEGMENTATION = {
    "dataset": {
        "list": "data/volumes/dataset.json",
        "synthesize": {"cases": 8, "test_cases": 3, "shape": [12, 14, 10], "spacing": [1.0, 0.8, 1.2]},
    },
    "splits": {"method": "holdout", "holdout": 3},
    "test": {"groups": {"held": {"from": "test"}}},
    "select": {"best": ["loss", "MeanDice"]},
}

REGRESSION = {
    "dataset": {
        "list": "data/numbers/dataset.json",
        "task": "regression",
        "synthesize": {"cases": 8, "test_cases": 3, "shape": [16, 16, 16]},
    },
    "splits": {"method": "holdout", "holdout": 3},
    "test": {"groups": {"held": {"from": "test"}}},
    "select": {"best": ["loss", "MeanAbsoluteError"]},
}


def build(folder: Path, recipe: dict, section: dict) -> Project:
    project = Project.fresh(folder)
    (folder / "recipe/config/config_train.json").write_text(json.dumps(recipe))
    write_volumes(folder / "table")
    project.configure({"archives": {"archive": {"recipe": "recipe", **section}}})
    project.archive = folder / "archives/archive"
    project.snakemake()
    return project


@pytest.fixture(scope="session")
def classified(client, tmp_path_factory) -> Project:
    return build(tmp_path_factory.mktemp("classified"), classification_recipe(), CLASSIFICATION)


@pytest.fixture(scope="session")
def segmented(client, tmp_path_factory) -> Project:
    return build(tmp_path_factory.mktemp("segmented"), segmentation_recipe(), SEGMENTATION)


@pytest.fixture(scope="session")
def regressed(client, tmp_path_factory) -> Project:
    return build(tmp_path_factory.mktemp("regressed"), regression_recipe(), REGRESSION)


@pytest.fixture(scope="session")
def foreign(client, tmp_path_factory) -> Project:
    section = {**CLASSIFICATION, "splits": {"method": "holdout", "holdout": 4}}
    return build(tmp_path_factory.mktemp("foreign"), foreign_recipe(), section)


# ---- the same cases, as ClinicaDL's dataset


def write_bids(project: Project, folder: Path, names: list[str]) -> Path:
    """Prepared cases of an archive as a BIDS folder: what the network meets, and the label that goes with it."""
    here = Path.cwd()
    os.chdir(project.folder)
    try:
        archive = str(project.archive.relative_to(project.folder))
        settings, cases = steps.recipe_of(archive), steps.cases_of(archive, names)
        prepared = PreparedCases(
            settings["validate"]["pre_transforms"], steps.data_root_of(archive), ".cache", settings["allow"]
        )
        items = [(case, prepared.get(case)) for case in cases]
    finally:
        os.chdir(here)
    return write_bids_of(folder, items, settings["task"])


def write_bids_of(folder: Path, items: list[tuple[dict, dict]], task: str) -> Path:
    folder.mkdir(parents=True)
    described = {"Name": "prepared", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    (folder / "dataset_description.json").write_text(json.dumps(described))
    rows = []
    for case, item in items:
        participant, session = case["participant_id"], case["session_id"]
        files = {"T1w": item["image"], **({"mask": item["label"]} if task == "segmentation" else {})}
        for suffix, tensor in files.items():
            path = folder / participant / session / "anat" / f"{participant}_{session}_{suffix}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_channels_last(path, numpy.asarray(tensor))
        label = {} if task == "segmentation" else {"label": case["label"]}
        rows.append({"participant_id": participant, "session_id": session, **label})
    write_tsv(folder / "cases.tsv", rows)
    return folder


def save_channels_last(path: Path, channels_first: numpy.ndarray) -> None:
    values = numpy.moveaxis(channels_first.astype(numpy.float32), 0, -1)
    nibabel.save(nibabel.Nifti1Image(values[..., 0] if values.shape[-1] == 1 else values, numpy.eye(4)), path)


def group_of(project: Project, group: str) -> list[str]:
    return read_splits(str(project.archive / "data/splits.json"))["groups"][group]


@pytest.fixture
def copied(tmp_path):
    """Copies of archives, for ClinicaDL to write into."""

    def copy(project: Project) -> Path:
        return Path(shutil.copytree(project.archive, tmp_path / "archive"))

    return copy
