"""The synthetic dataset."""

from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from armarium.checks import check_dataset
from armarium.dataset import dataset_files, read_dataset
from armarium.synthesize import synthesize_dataset, synthesized_files

CHECKS = {
    "affine_tolerance": 1e-3,
    "allow_empty_labels": False,
    "allow_duplicates": False,
    "allow_repeated_participants": False,
}


def spec(**more):
    return {
        "cases": 3,
        "test_cases": 2,
        "shape": [16, 12, 10],
        "spacing": [1, 1.5, 3],
        "channels": 1,
        "classes": 3,
        "seed": 0,
        **more,
    }


def written(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"shape": [16, 16], "spacing": [1, 2], "classes": 2},
        {"channels": 2},
        {"task": "classification", "classes": 2},
        {"task": "classification", "shape": [12, 12], "spacing": [2, 2], "classes": 3, "channels": 2},
    ],
)
def test_dataset_passes_its_own_checks_and_is_the_same_every_time(tmp_path, more):
    synthesize_dataset(str(tmp_path / "a"), spec(**more))
    synthesize_dataset(str(tmp_path / "b"), spec(**more))
    files = written(tmp_path / "a")
    assert files == written(tmp_path / "b")
    assert sorted(files) == sorted(synthesized_files(spec(**more)))
    task = more.get("task", "segmentation")
    dataset_spec = {"list": "a/dataset.json", "task": task, **CHECKS}
    dataset = read_dataset(dataset_spec, str(tmp_path))
    assert {f"a/{name}" for name in files} == {"a/dataset.json", *dataset_files(dataset)}
    rows = check_dataset(dataset, dataset_spec, str(tmp_path), 1)
    assert [c.subset for c in dataset.cases] == ["training"] * 3 + ["test"] * 2
    assert rows[0]["shape"] == "x".join(map(str, spec(**more)["shape"]))
    assert rows[0]["channels"] == str(more.get("channels", 1))


def test_segmentation_labels_have_every_class_and_a_grid_of_their_own(tmp_path):
    synthesize_dataset(str(tmp_path), spec())
    image, label = (nib.load(tmp_path / f"{d}Tr/case_001.nii.gz") for d in ("images", "labels"))
    assert image.header.get_zooms() == pytest.approx((1, 1.5, 3))
    assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
    assert np.array_equal(image.affine, label.affine) and image.get_data_dtype() == np.int16
    voxels, classes = np.asarray(image.dataobj), np.asarray(label.dataobj)
    assert set(np.unique(classes)) == {0, 1, 2}
    means = [voxels[classes == k].mean() for k in range(3)]
    assert means[0] < means[1] < means[2]


def test_classification_shows_ellipsoids_only_in_positive_cases(tmp_path):
    synthesize_dataset(str(tmp_path), spec(task="classification", classes=2))
    brightest = [np.asarray(nib.load(p).dataobj).max() for p in sorted(tmp_path.glob("images*/*"))]
    classes = [c.label for c in read_dataset({"list": "dataset.json", "task": "classification"}, str(tmp_path)).cases]
    assert classes == [0, 1, 0, 1, 0]
    assert max(b for b, c in zip(brightest, classes, strict=True) if c == 0) < min(
        b for b, c in zip(brightest, classes, strict=True) if c == 1
    )


def test_the_seed_changes_every_image(tmp_path):
    for seed in (0, 1):
        synthesize_dataset(str(tmp_path / str(seed)), spec(seed=seed))
    hashes = {hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.glob("*/images*/*")}
    assert len(hashes) == 10
