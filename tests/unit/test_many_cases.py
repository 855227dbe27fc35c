"""A dataset of many small cases is checked and split in little memory."""

from __future__ import annotations

import sys
import tracemalloc

import nibabel
import pytest
from armarium.checks import check_dataset
from armarium.dataset import read_dataset

from benchmarks.many_cases import make
from benchmarks.memory import CASES, watched

BYTES_A_CASE = 6000
"""Of Python's objects at the peak; a row of the table of cases has 18 texts."""
SPEC = {
    "list": "data/dataset.json",
    "task": "segmentation",
    "affine_tolerance": 0.001,
    "allow_empty_labels": False,
    "allow_repeated_participants": False,
    "allow_duplicates": False,
}


def test_a_case_takes_few_bytes_and_equal_axes_are_looked_at_once(tmp_path, monkeypatch):
    make(tmp_path, 400, "segmentation")
    looked_at = []
    monkeypatch.setattr(
        nibabel, "aff2axcodes", lambda affine, real=nibabel.aff2axcodes: looked_at.append(1) or real(affine)
    )
    tracemalloc.start()
    dataset = read_dataset(SPEC, str(tmp_path))
    rows = check_dataset(dataset, SPEC, str(tmp_path), 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 400 and {row["orientation"] for row in rows} == {"RAS"}
    assert len(looked_at) <= 1, "by another test, perhaps"
    assert peak / 400 < BYTES_A_CASE


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_100_000_cases_are_checked_and_split_within_2_gb(task, tmp_path):
    make(tmp_path, CASES, task)
    for step in ("check-data", "split-data"):
        _, _, peak = watched([sys.executable, "-m", "armarium", step, "archives/many"], tmp_path)
        assert 1e8 < peak < 2e9
