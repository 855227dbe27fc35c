"""Adding to a finished archive: only what is new runs, and what was there keeps its bytes."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import nibabel
import numpy
import pytest
from armarium.verify import verify

from .conftest import Project, WarmProject, micro_config
from .edits import DATA, changed_voxel, read_list, write_drawn_splits, write_json

OF_THE_WHOLE = (
    "config/*",
    "data/*",
    "training/data/data.tsv",
    "callbacks.json",
    "summary.log",
    "docs/*",
    "provenance/*",
    "ro-crate-metadata.json",
)
"""Files that are of all groups, checkpoints and splits, so that one more may change them."""
PUBLISHED = ("eval/evaluation.zip", "eval/metrics.csv", "eval/val_mean_dice_*.csv")
"""The published model on the cases of all groups."""


@pytest.fixture
def copy(built, tmp_path) -> Iterator[Project]:
    with WarmProject.copy_of(built, tmp_path / "project") as project:
        yield project


def digests(archive: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = (path for path in archive.rglob("*") if path.is_file())
    return {str(path.relative_to(archive)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def adding(project: Project, edit: Callable[[Project], object], *may_change: str) -> tuple[dict[str, int], set[str]]:
    """Make an addition: the jobs that ran by rule, and the new files; nothing else has changed."""
    before = digests(project.archive)
    edit(project)
    ran = project.ran()
    after = digests(project.archive)
    changed = {name for name in before if after.get(name) != before[name]}
    assert not {name for name in changed if not any(fnmatch(name, p) for p in (*OF_THE_WHOLE, *may_change))}
    return ran, {name for name in after.keys() - before.keys() if not name.startswith(("config/", "provenance/"))}


def wrong(project: Project) -> list:
    """What is planned, and what verify finds."""
    found = verify(str(project.archive), str(project.folder)).wrong
    return [*project.planned(), *((f.kind, f.path, f.note) for f in found)]


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def said(project: Project, log: str) -> str:
    """What a job's log says of what it kept."""
    [line] = re.findall(r".*\bkept\b.*", (project.folder / "logs/archives/micro" / log).read_text())
    return line


# ---- a test group

SPLITS = "archives/micro/data/splits.json"

LIGHT = {
    "check_data": 1,
    "split_data": 1,
    "check_recipe": 1,
    "write_datalist": 1,
    "write_training_data": 1,
    "write_side_data": 2,
    "write_command": 10,
    "write_bundle_config": 5,
    "write_licence": 1,
    "write_doc": 3,
    "write_summary": 1,
    "write_manifest": 1,
}
"""The indexes that name every case and group."""


def new_case(project: Project) -> None:
    """A case that no list names, in a list of its own."""
    folder = project.folder / DATA
    image = nibabel.load(folder / "imagesTs/case_010.nii.gz")
    noise = numpy.random.RandomState(0).rand(*image.shape).astype(numpy.float32)
    nibabel.save(nibabel.Nifti1Image(image.get_fdata() + noise, image.affine), folder / "imagesTs/new_1.nii.gz")
    shutil.copy(folder / "labelsTs/case_010.nii.gz", folder / "labelsTs/new_1.nii.gz")
    case = {"image": "imagesTs/new_1.nii.gz", "label": "labelsTs/new_1.nii.gz"}
    write_json(folder / "new.json", {**read_list(project), "training": [case], "test": []})


def groups(**more: dict) -> Callable[[Project], None]:
    def edit(project: Project) -> None:
        config = micro_config()
        config["archives"]["micro"]["test"]["groups"].update(more)
        project.configure(config)

    return edit


@pytest.mark.slow
def test_a_test_group_is_tested_and_no_other(copy):
    new_case(copy)
    ran, new = adding(copy, groups(fresh={"list": f"{DATA}/new.json"}), *PUBLISHED)
    published = {"evaluate_published": 1, "write_eval_metrics": 1, "write_eval_dice": 1, "extract_segmentation": 4}
    assert ran == {**LIGHT, **published, "test_split": 1, "write_results": 4, "write_group_data": 2}
    results = {name for name in new if name.startswith("test/group-fresh/results/split-0/")}
    assert len(results) == 4 * 5 and new - results == {
        "test/evaluations/fresh_split-0.zip",
        "eval/new_1/new_1_seg.nii.gz",
        *(f"test/group-fresh/{name}" for name in ("data.tsv", "dataset.json", "dataloader.json")),
    }
    assert wrong(copy) == []

    ran, new = adding(copy, groups(fresh={"list": f"{DATA}/new.json"}, same={"from": "test"}))
    assert {"test_split": 1, "write_results": 4}.items() <= ran.items(), "of the cases that are published already"
    assert not {"train_split", "export_split", "evaluate_published"} & ran.keys()

    ran, new = adding(copy, groups(fresh={"list": f"{DATA}/new.json"}))
    assert not {"train_split", "export_split", "test_split", "write_results", "evaluate_published"} & ran.keys()
    assert not new


@pytest.mark.slow
def test_a_group_that_comes_back_with_other_cases_is_tested_again(copy):
    tested = "archives/micro/test/evaluations/fresh_split-0.zip"
    new_case(copy)
    groups(fresh={"list": f"{DATA}/new.json"})(copy)
    assert copy.ran(tested)["test_split"] == 1
    copy.configure(micro_config())
    copy.ran(SPLITS)
    groups(fresh={"list": f"{DATA}/new.json"})(copy)
    changed_voxel("imagesTs/new_1.nii.gz")(copy)
    assert copy.planned(tested)["test_split"] == 1
    copy.ran(SPLITS)
    assert copy.planned(tested)["test_split"] == 1, "also where they are known again"


# ---- checkpoints


def select(**changes) -> Callable[[Project], None]:
    def edit(project: Project) -> None:
        config = micro_config()
        config["archives"]["micro"]["select"].update(changes)
        project.configure(config)

    return edit


CARD = {"write_callbacks": 1, "write_doc": 3, "write_summary": 1, "write_manifest": 1}
"""What names the selected checkpoints."""
HELD_TOGETHER = ("training/split-0/exports.zip", "test/evaluations/holdout_split-0.zip")


def of_checkpoint(*names: str) -> set[str]:
    """Files of checkpoints: folders below ``models/``."""
    tables = ("aggregated.tsv", "details.tsv", "classes.tsv", "class_details.tsv")
    models = [f"training/split-0/models/{name}" for name in names]
    results = [f"test/group-holdout/results/split-0/{name.rpartition('/')[2]}" for name in names]
    return {
        *(f"{model}/{name}" for model in models for name in ("model.pt", "model.ts")),
        *(f"{model}/validation_metrics/{table}" for model in models for table in tables),
        *(
            f"{result}/{name}"
            for result in results
            for name in ("computational.json", *(f"metrics/{t}" for t in tables))
        ),
    }


def forget(project: Project, *names: str) -> None:
    """Delete the folders of checkpoints that the configuration dropped."""
    for name in names:
        shutil.rmtree(project.archive / "training/split-0/models" / name)
        shutil.rmtree(project.archive / "test/group-holdout/results/split-0" / name.rpartition("/")[2])


@pytest.mark.slow
def test_checkpoints_are_added_and_those_that_were_there_stay(copy):
    first = digests(copy.archive)
    run = members(copy.archive / "training/split-0/run.zip")

    ran, new = adding(copy, select(best=["MeanDice"], epochs=[], final=False), *HELD_TOGETHER)
    assert ran == {**CARD, "test_split": 1, "export_split": 1} and not new
    assert said(copy, "test_split_holdout_0.log").endswith("1 checkpoints kept, 0 computed")
    assert wrong(copy) == []
    forget(copy, "best_models/best-loss", "checkpoints/epoch-2", "final")

    one = {"select_checkpoint": 1, "select_tables": 1, "write_results": 1, "extract_torchscript": 1}
    ran, new = adding(copy, select(best=["MeanDice"], epochs=[2], final=False), *HELD_TOGETHER)
    assert ran == {**CARD, **one, "test_split": 1, "export_split": 1}, "the run holds that epoch"
    assert new == of_checkpoint("checkpoints/epoch-2")
    assert said(copy, "test_split_holdout_0.log").endswith("1 checkpoints kept, 1 computed")
    assert said(copy, "export_split_0.log").endswith("1 checkpoints kept, 1 computed")

    ran, new = adding(copy, select(), *HELD_TOGETHER)
    assert ran == {**CARD, **dict.fromkeys(one, 2), "test_split": 1, "export_split": 1}
    assert new == of_checkpoint("best_models/best-loss", "final")
    now = digests(copy.archive)
    assert not [
        n for n in first if now[n] != first[n] and not fnmatch(n, "provenance/*") and n != "ro-crate-metadata.json"
    ]
    assert wrong(copy) == []

    ran, new = adding(copy, select(epochs=[2, 3]), *HELD_TOGETHER, "training/split-0/run.zip")
    assert ran == {**CARD, **one, "train_split": 1, "test_split": 1, "export_split": 1}
    assert new == of_checkpoint("checkpoints/epoch-3")
    assert said(copy, "train_split_0.log").endswith("split 0: its run is kept; training up to epoch 3 for [3]")
    extended = members(copy.archive / "training/split-0/run.zip")
    assert {n for n in extended if extended[n] != run.get(n)} == {"run.json", "checkpoints/epoch-3.pt"}
    assert wrong(copy) == []


# ---- a split


@pytest.fixture
def given(copy) -> Project:
    """An archive of one given split."""
    write_drawn_splits(copy)
    config = micro_config()
    config["archives"]["micro"]["splits"] = {"method": "file", "file": "splits.json"}
    copy.configure(config)
    copy.snakemake()
    return copy


def second_split(project: Project) -> None:
    """The first one's sides the other way round, as another one."""
    path = project.folder / "splits.json"
    first = json.loads(path.read_text())[0]
    write_json(path, [first, {"train": first["validation"], "validation": first["train"]}])


@pytest.mark.slow
def test_a_given_split_is_trained_and_no_other(given):
    ran, new = adding(given, second_split)
    rules = {"train_split", "test_split", "export_split", "copy_logs", "copy_learning_rates"}
    assert {rule: ran[rule] for rule in rules} == dict.fromkeys(rules, 1)
    rules = {"select_checkpoint", "select_tables", "extract_torchscript", "write_results"}
    assert {rule: ran[rule] for rule in rules} == dict.fromkeys(rules, 4)
    assert not {"check_data", "evaluate_published", "publish_torchscript", "publish_weights"} & ran.keys()
    assert new and all(re.search(r"split-1[/.]|config/dataset_1", name) for name in new)
    assert wrong(given) == []
