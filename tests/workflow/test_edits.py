"""Which edits rerun what: docs/reruns.md says it, and these tests hold Snakemake to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..reruns import Row, table
from .conftest import Project, WarmProject, hashes, job_counts, micro_config, zip_hashes
from .edits import EDITS, GIVEN_EDITS, Edit, changed_voxel, prepare_given
from .mirror import mirror
from .tree_edits import BIDS_EDITS, CAPS_EDITS

WORKERS = 2
RUN, MODEL = "archives/micro/training/split-0/run.zip", "archives/micro/models/model.pt"
LATER = {"split_data": {"extract_segmentation"}}
"""Rules that Snakemake plans only when it knows what another one gave: the cases of splits."""


# ---- the table


def test_every_row_of_the_table_is_an_edit_and_every_edit_a_row():
    edits = [name for found in (EDITS, GIVEN_EDITS, BIDS_EDITS, CAPS_EDITS) for name in found]
    assert len({*edits}) == len(edits) and table().keys() == {*edits}


def test_every_edit_reruns_exactly_what_the_table_says(built, tmp_path, figures):
    assert_reruns(built, EDITS, tmp_path)
    figures.add("edits that rerun exactly what the table says", len(EDITS))


@pytest.mark.slow
def test_every_edit_of_an_archive_of_given_splits_reruns_exactly_what_the_table_says(tmp_path, figures):
    project = Project.fresh(tmp_path / "given")
    project.snakemake("data/micro/dataset.json")
    prepare_given(project)
    project.snakemake()
    assert_reruns(project, GIVEN_EDITS, tmp_path)
    figures.add("edits that rerun exactly what the table says", len(GIVEN_EDITS))


def assert_reruns(project: Project, edits: dict[str, Edit], folder: Path) -> None:
    """Make each edit of ``edits`` in a copy of a built project and compare what is planned with the table."""
    rows = [row for name, row in table().items() if name in edits]
    shares = [rows[k::WORKERS] for k in range(WORKERS)]
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(lambda k: differences(project, edits, shares[k], folder / f"worker-{k}"), range(WORKERS))
    assert not (wrong := "\n".join(text for texts in found for text in texts)), wrong


def differences(project: Project, edits: dict[str, Edit], rows: Sequence[Row], folder: Path) -> list[str]:
    """In words, what is planned otherwise than the table says."""
    found = []
    with WarmProject.copy_of(project, folder) as copy:
        for row in rows:
            edits[row.edit](copy)
            done = copy.snakemake("-n", ok=False)
            text = done.stdout + done.stderr
            found += difference(row, None if done.returncode else set(job_counts(text)), text)
            mirror(project.folder, folder)
    return found


def difference(row: Row, planned: set[str] | None, text: str) -> list[str]:
    if planned is None or row.rules is None:
        refused = planned is None and row.rules is None and "armarium: " in text and "Traceback" not in text
        return [] if refused else [f"{row.edit}: planned {planned}, wanted {row.rules}: {text[-1000:]}"]
    wanted = row.rules.difference(*(later for rule, later in LATER.items() if rule in row.rules))
    more, less = sorted(planned - wanted), sorted(wanted - planned)
    assert row.trains == ("train_split" in row.rules), row.edit
    return [f"{row.edit}: planned too {more}, did not plan {less}"] if more or less else []


# ---- for real


@pytest.mark.slow
def test_what_is_edited_built_and_reverted_is_the_first_model_again(copy):
    first = {**zip_hashes(copy.folder / RUN), **hashes(copy.folder / MODEL)}

    def made(*args: str) -> dict[str, str]:
        assert copy.ran(*args, "--", RUN, MODEL)["train_split"] == 1
        assert copy.planned(RUN, MODEL) == {}
        return {**zip_hashes(copy.folder / RUN), **hashes(copy.folder / MODEL)}

    assert copy.planned("--config", "set={learning_rate: 0.02}")["train_split"] == 1
    assert copy.planned() == {}, "a dry run keeps nothing"
    edited = made("--config", "set={learning_rate: 0.02}")
    effective = json.loads((copy.archive / "config/effective/train.json").read_text())
    assert effective["optimizer"]["args"]["lr"] == 0.02
    image = copy.folder / "data/micro/imagesTr/case_002.nii.gz"
    original = image.read_bytes()
    changed_voxel("imagesTr/case_002.nii.gz", old=True)(copy)
    both = made("--config", "set={learning_rate: 0.01}")
    image.write_bytes(original)
    assert len({tuple(sorted(of.items())) for of in (first, edited, both)}) == 3
    assert made() == first


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "an image of a training case",
        "an image or a label file of a test case",
        "archives.NAME.select.best",
        "archives.NAME.splits.seed",
        "archives.NAME.export.tolerance",
        "train.optimizer",
    ],
)
def test_what_runs_is_what_the_table_says_and_its_revert_gives_the_first_archive_again(copy, built, name):
    first = promised(copy)
    EDITS[name](copy)
    assert copy.ran().keys() == table()[name].rules
    assert copy.planned() == {}
    for part in ("config", "recipe", "data"):
        mirror(built.folder / part, copy.folder / part)
    assert copy.ran().keys() >= table()[name].rules
    assert promised(copy) == first
    assert copy.planned() == {}


def promised(project: Project) -> dict[str, str]:
    """SHA-256 of what is promised to be equal; the note of data files that ever changed is not."""
    found = {**hashes(project.archive), **zip_hashes(project.folder / RUN)}
    del found["config/effective/files.json"]
    return found


def test_a_hand_edit_of_a_listed_archive_is_refused(copy):
    path = copy.archive / "config/config_train.json"
    edited = json.loads(path.read_text())
    edited["learning_rate"] = 0.5
    path.write_text(json.dumps(edited))
    refused = copy.snakemake("-n", ok=False)
    assert refused.returncode != 0 and "edited by hand" in refused.stderr + refused.stdout
    assert json.loads(path.read_text())["learning_rate"] == 0.5, "never overwritten"


def test_a_dataset_that_is_to_be_another_one_is_made_again_without_snakemakes_records(copy):
    config = micro_config()
    config["archives"]["micro"]["dataset"]["synthesize"]["seed"] = 1
    copy.configure(config)
    (copy.folder / ".snakemake").rename(copy.folder / "gone")
    assert copy.planned()["synthesize_micro"] == 1
    copy.configure(micro_config())
    assert copy.planned() == {}
