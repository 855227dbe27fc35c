"""What the data was is told with nothing but the configuration left."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from armarium import layout
from armarium.calling import _with_config
from armarium.data_record import check_same_data, record_of
from armarium.dataset import dataset_files, read_dataset
from armarium.errors import Problems, UserError
from armarium.files import write_json
from armarium.hashing import HashIndex, sha256
from armarium.synthesize import synthesize_dataset

SPEC = {"list": "set/dataset.json", "task": "segmentation"}
MADE = {"cases": 4, "test_cases": 1, "shape": [6, 6], "spacing": [1.0, 1.0], "channels": 1, "classes": 2, "seed": 0}


@pytest.fixture
def recorded(tmp_path):
    """The data root and an archive of which the record of that data is left; check() compares."""
    root, archive = tmp_path / "root", str(tmp_path / "archive")
    synthesize_dataset(str(root / "set"), MADE)
    dataset = read_dataset(SPEC, str(root))
    write_json(layout.data_record(archive), record_of(dataset, {f: sha256(root / f) for f in dataset_files(dataset)}))

    def check(spec: dict = SPEC, groups: dict | None = None) -> None:
        check_same_data(archive, spec, groups or {}, str(root), HashIndex(tmp_path / "hashes.sqlite"))

    return root, archive, check


def test_the_same_data_passes_also_where_it_was_moved_and_its_list_written_anew(recorded):
    root, _, check = recorded
    check()
    listed = json.loads((root / "set/dataset.json").read_text())
    listed["training"].reverse()
    (root / "set/dataset.json").write_text(json.dumps(listed))
    check(groups={"given": {"given": True}})


def test_every_difference_is_told(recorded):
    root, _, check = recorded
    shutil.copy(root / "set/imagesTr/case_001.nii.gz", root / "set/imagesTr/case_002.nii.gz")
    (root / "set/labelsTr/case_003.nii.gz").unlink()
    listed = json.loads((root / "set/dataset.json").read_text())
    (root / "set/dataset.json").write_text(json.dumps({**listed, "training": listed["training"][:3]}))
    with pytest.raises(Problems) as error:
        check()
    assert error.value.problems == [
        "list: says something else",
        "set/imagesTr/case_002.nii.gz: changed",
        "set/labelsTr/case_003.nii.gz: missing",
    ]
    assert "delete" in str(error.value) and "config/data.json" in str(error.value)


def test_a_missing_list_is_told_with_what_to_do(recorded):
    root, archive, check = recorded
    shutil.rmtree(root)
    with pytest.raises(UserError, match=r"set/dataset\.json: file not found.*--data-root DIR\)$"):
        check()
    with pytest.raises(UserError, match=r"made again by: armarium synthesize .*set/dataset\.json '\{.*\"task\""):
        check({**SPEC, "synthesize": MADE})
    Path(layout.cases_tsv(archive)).parent.mkdir(parents=True)
    Path(layout.cases_tsv(archive)).touch()
    check()  # the data was checked; what is made from it may all be there


def test_without_a_record_data_is_taken_as_it_is(recorded):
    root, archive, check = recorded
    Path(layout.data_record(archive)).unlink()
    (root / "set/labelsTr/case_003.nii.gz").unlink()
    check()


@pytest.mark.parametrize("text", ["[]", '{"lists": {}}', '{"lists": {}, "files": {"a": 1}}'])
def test_a_damaged_record_is_named(recorded, text):
    _, archive, check = recorded
    Path(layout.data_record(archive)).write_text(text)
    with pytest.raises(UserError, match=r"config/data\.json: not as the data check writes it"):
        check()


def test_no_file_is_looked_at_that_the_list_does_not_name(recorded):
    """A stranger's record may name any file of this machine."""
    root, archive, check = recorded
    record = json.loads(Path(layout.data_record(archive)).read_text())
    os.mkfifo(root.parent / "secret")  # opened, it would never end
    record["files"]["../secret"] = "0" * 64
    write_json(layout.data_record(archive), record)
    check()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["-n"], ["-n", "--config", "a=1"]),
        (["--config", "b=2", "-n"], ["--config", "a=1", "b=2", "-n"]),
        (["-C", "b=2"], ["-C", "a=1", "b=2"]),
        (["--config=b=2"], ["--config", "a=1", "b=2"]),
    ],
)
def test_an_entry_joins_those_that_are_given(given, wanted):
    assert _with_config(given, "a=1") == wanted
