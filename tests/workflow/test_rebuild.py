"""Whatever is lost is rebuilt by name, with the fewest steps, to the same bytes."""

from __future__ import annotations

import os
import random
import shutil

import pytest

from .conftest import hashes, zip_hashes

LOST = {
    "models/model.ts": {"publish_torchscript": 1},
    "models/model.pt": {"publish_weights": 1},
    "training/split-0/models/best_models/best-MeanDice/model.pt": {"select_checkpoint": 1},
    "training/split-0/models/checkpoints/epoch-2/model.ts": {"extract_torchscript": 1},
    "training/split-0/models/final/validation_metrics/details.tsv": {"select_tables": 1},
    "training/split-0/validation_metrics/classes.tsv": {"copy_logs": 1},
    "test/group-holdout/results/split-0/final/metrics/aggregated.tsv": {"write_results": 1},
    "training/split-0/exports.zip": {"export_split": 1},
    "data/cases.tsv": {"check_data": 1},
    "data/splits.json": {"split_data": 1},
    "config/dataset_0.json": {"write_datalist": 1},
    "model.json": {"write_model": 1},
    "eval/metrics.csv": {"write_eval_metrics": 1},
    "summary.log": {"write_summary": 1},
}
"""Lost this -> runs these."""


@pytest.mark.parametrize("name", LOST)
def test_a_lost_file_comes_back_with_the_fewest_steps(built, name):
    path = built.archive / name
    before = path.read_bytes()
    path.unlink()
    assert built.ran(str(path.relative_to(built.folder))) == LOST[name]
    assert path.read_bytes() == before


def test_many_lost_files_never_retrain(copy):
    before = hashes(copy.archive)
    lost = [*random.Random(0).sample(sorted(before), 12), "data/splits.json", "data/cases.tsv", "model.json"]
    for name in lost:
        if not name.startswith("config/") or name.startswith("config/dataset_"):
            (copy.archive / name).unlink(missing_ok=True)
    ran = copy.ran()
    assert "train_split" not in ran
    assert hashes(copy.archive) == before


def test_a_lost_run_is_trained_again_to_the_same_bytes(copy):
    path = copy.archive / "training/split-0/run.zip"
    before = zip_hashes(path)
    path.unlink()
    assert copy.ran("archives/micro/training/split-0/run.zip") == {"train_split": 1}
    assert zip_hashes(path) == before


def test_nothing_to_do_after_a_build(built):
    assert built.planned() == {}


@pytest.mark.parametrize("how", ["touched", "moved", "copied without snakemake's records"])
def test_nothing_to_do_when_only_times_or_places_changed(copy, tmp_path, how):
    paths = [p for p in copy.archive.rglob("*") if p.is_file()]
    random.Random(1).shuffle(paths)
    if how == "touched":
        for i, path in enumerate(paths):
            os.utime(path, (1_700_000_000 + i, 1_700_000_000 + i))
        assert copy.planned() == {}
        return
    if how == "moved":
        copy.archive.rename(copy.folder / "elsewhere")
    else:
        shutil.copytree(copy.archive, copy.folder / "elsewhere", copy_function=shutil.copyfile)
        shutil.rmtree(copy.folder / ".snakemake")
    assert copy.planned("elsewhere/ro-crate-metadata.json") == {}
