"""Which edits rerun what: content decides, and only what depends on it."""

from __future__ import annotations

import json

import nibabel
import numpy
import pytest

from .conftest import micro_config, micro_recipe

TRAINS = "train_split"


def test_a_set_variable_retrains_and_is_kept(copy):
    assert copy.planned("--config", "set={learning_rate: 0.02}")[TRAINS] == 1
    assert copy.planned() == {}, "a dry run keeps nothing"
    copy.snakemake("--config", "set={learning_rate: 0.02}", "--", "archives/micro/training/split-0/run.zip")
    effective = json.loads((copy.archive / "config/effective/train.json").read_text())
    assert effective["optimizer"]["args"]["lr"] == 0.02
    assert copy.planned("archives/micro/training/split-0/run.zip") == {}, "the archive keeps what was set"


def test_a_cosmetic_edit_of_the_recipe_plans_nothing(copy):
    path = copy.folder / "recipe/config/config_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    assert copy.planned() == {}


def test_an_edited_description_does_not_retrain(copy):
    config = micro_config()
    config["archives"]["micro"]["dataset"]["description"] = "other words"
    copy.configure(config)
    planned = copy.planned()
    assert planned and TRAINS not in planned


def test_another_selection_does_not_retrain(copy):
    config = micro_config()
    config["archives"]["micro"]["select"]["best"] = ["loss"]
    copy.configure(config)
    planned = copy.planned()
    assert planned and TRAINS not in planned


def test_an_edited_recipe_retrains(copy):
    recipe = micro_recipe()
    recipe["train"]["optimizer"]["args"]["weight_decay"] = 0.5
    (copy.folder / "recipe/config/config_train.json").write_text(json.dumps(recipe))
    assert copy.planned()[TRAINS] == 1


def test_an_edited_image_retrains_and_its_revert_trains_the_first_model_again(copy):
    path = copy.folder / "data/micro/imagesTr/case_002.nii.gz"
    original = path.read_bytes()
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(numpy.asarray(image.dataobj) + 1, image.affine, image.header), path)
    planned = copy.planned()
    assert planned[TRAINS] == 1 and planned["check_data"] == 1
    path.write_bytes(original)
    assert copy.planned() == {}


def test_a_hand_edit_of_a_listed_archive_is_refused(copy):
    path = copy.archive / "config/config_train.json"
    edited = json.loads(path.read_text())
    edited["learning_rate"] = 0.5
    path.write_text(json.dumps(edited))
    refused = copy.snakemake("-n", ok=False)
    assert refused.returncode != 0 and "edited by hand" in refused.stderr + refused.stdout
    assert json.loads(path.read_text())["learning_rate"] == 0.5, "never overwritten"


def test_moving_the_data_retrains_nothing(copy):
    (copy.folder / "data").rename(copy.folder / "moved")
    (copy.folder / "moved").joinpath("data").mkdir()
    (copy.folder / "moved/micro").rename(copy.folder / "moved/data/micro")
    config = micro_config()
    config["data_root"] = "moved"
    copy.configure(config)
    assert TRAINS not in copy.planned("archives/micro/training/split-0/run.zip")


@pytest.mark.parametrize("key", ["device", "cache_dir", "gpus"])
def test_where_and_how_jobs_run_reruns_nothing(copy, key):
    config = micro_config()
    config[key] = {"device": "cpu", "cache_dir": "other", "gpus": 1}[key]
    copy.configure(config)
    assert copy.planned() == {}


@pytest.mark.parametrize("change", [{"num_workers": 1}, {"save_interval": 3}])
def test_how_a_training_is_carried_out_does_not_retrain(copy, change):
    config = micro_config()
    config["archives"]["micro"]["set"].update(change)
    copy.configure(config)
    assert TRAINS not in copy.planned()
