"""The MAPS face: files that ClinicaDL's strict readers take, from a small hand-made archive."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
from armarium import layout, maps
from armarium.config import archive_section, check
from armarium.configure import Globals, configure
from armarium.errors import UserError
from armarium.files import write_json
from armarium.zips import write_zip

RECIPE = Path(__file__).parents[2] / "config" / "recipes" / "unet_small"
CASES = [f"case_{i}" for i in range(6)]
METRIC_KEYS = {"name_", "pred_key", "label_key", "postprocessing"}


def change_recipe(folder: Path, change) -> Path:
    """A copy of the demo's recipe in ``folder``, after ``change`` has altered its configuration."""
    shutil.copytree(RECIPE, folder)
    path = folder / "config" / "config_train.json"
    conf = json.loads(path.read_text())
    change(conf)
    path.write_text(json.dumps(conf))
    return folder


def make_archive(folder: Path, recipe: Path = RECIPE, section: dict | None = None) -> str:
    """A configured archive with splits, a finished run of split 0 and its test, all made by hand."""
    archive = str(folder / "archive")
    given = {
        "recipe": str(recipe),
        "dataset": {"list": "d/dataset.json"},
        "splits": {"n_splits": 2},
        "test": {"groups": {"held": {"from": "test"}}},
        **(section or {}),
    }
    config = check({"archives": {"archive": copy.deepcopy(given)}}, "config", "config.yaml")
    configure(archive, archive_section(config, "archive"), Globals(cache_dir=str(folder / "cache")))
    facts = {
        "name": "Blobs",
        "licence": "CC0-1.0",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "blob"},
    }
    write_json(layout.dataset_json(archive), {**facts, "digest": "", "cases": 6})
    cases = {
        c: {
            "participant_id": f"sub-{i}",
            "session_id": "ses-M000",
            "image": [f"d/images/{c}.nii.gz"],
            "label": f"d/labels/{c}.nii.gz",
        }
        for i, c in enumerate(CASES)
    }
    splits = [{"train": CASES[:2], "validation": CASES[2:4]}, {"train": CASES[2:4], "validation": CASES[:2]}]
    write_json(layout.splits_json(archive), {"splits": splits, "groups": {"held": CASES[4:]}, "cases": cases})
    finish_run(archive, 0)
    return archive


def finish_run(archive: str, split: int) -> None:
    best = {m: {"value": 0.5 + split / 10, "epoch": 3} for m in ("loss", "MeanDice", "HausdorffDistance")}
    info = {"epochs": 4, "stopped_early": False, "best": best, "device": "cpu"}
    write_zip(layout.run_zip(archive, split), {"run.json": json.dumps(info)})
    table = f"loss\tMeanDice\tHausdorffDistance\n0.4\t{0.8 + split / 10}\tn/a\n"
    names = ("best-loss", "best-MeanDice", "final")
    cases = [(0.3, 0.7 + split / 10), (0.5, 0.9 + split / 10)]
    rows = "".join(f"sub-{i}\tses-M000\t{loss}\t{dice}\tn/a\n" for i, (loss, dice) in enumerate(cases, 4))
    details = f"participant_id\tsession_id\tloss\tMeanDice\tHausdorffDistance\n{rows}"
    members = {f"{c}/{t}.tsv": text for c in names for t, text in (("aggregated", table), ("details", details))}
    write_zip(layout.evaluation_zip(archive, "held", split), members)


@pytest.fixture
def archive(tmp_path):
    return make_archive(tmp_path)


def read(path: str):
    return json.loads(Path(path).read_text())


def test_metrics_json_names_every_table_column(archive):
    assert maps.write_metrics_json(archive) == [layout.metrics_json(archive)]
    value = read(layout.metrics_json(archive))
    assert set(value) == {"name_", "metrics", "metrics_on_cpu"}
    assert list(value["metrics"]) == ["loss", "MeanDice", "HausdorffDistance"]
    assert value["metrics"]["loss"] == {
        **{"name_": "LossMetric", "pred_key": "output", "label_key": "label"},
        "postprocessing": {"name_": "PostprocessingHandler", "transforms": []},
        "loss_name": "loss",
    }


def test_a_metric_without_a_client_class_stays_readable_and_cannot_be_mistaken(archive):
    maps.write_metrics_json(archive)
    found = read(layout.metrics_json(archive))["metrics"]["HausdorffDistance"]
    assert set(found) > METRIC_KEYS
    assert "in voxels" in found["pred_key"], "no output has that key: computing it stops with these words"


def test_callbacks_json_lists_kept_checkpoints_and_resume_states(archive):
    maps.write_callbacks_json(archive)
    callbacks = read(layout.callbacks_json(archive))["callbacks"]
    kept = [(c["metric"], c["save_last"], c["mode"]) for c in callbacks if c["name_"] == "ModelCheckpointCallback"]
    assert kept == [("loss", False, "min"), ("MeanDice", False, "max"), (None, True, None)]
    assert callbacks[-1] == {"name_": "TrainingCheckpointCallback", "every_n_epochs": 1, "enabled": True}


def test_early_stopping_keeps_its_meaning_across_clients(tmp_path):
    def stop(conf):
        handler = {
            "name": "EarlyStopHandler",
            "args": {"patience": 3, "metric": "MeanDice", "min_delta": 0.1},
        }
        conf["validate"]["handlers"].append(handler)

    archive = make_archive(tmp_path, change_recipe(tmp_path / "recipe", stop))
    maps.write_callbacks_json(archive)
    callbacks = read(layout.callbacks_json(archive))["callbacks"]
    (stopping,) = [c for c in callbacks if c["name_"] == "EarlyStoppingCallback"]
    (stopper,) = stopping["stoppers"]
    # ClinicaDL stops at the validation after ``patience`` gainless ones.
    assert (stopper["metric"], stopper["patience"], stopper["min_delta"], stopper["mode"]) == (
        "MeanDice",
        2,
        0.1,
        "max",
    )


def test_optimization_json_has_the_clients_fields(archive):
    maps.write_optimization_json(archive)
    value = read(layout.optimization_json(archive))
    assert value["num_epochs"] == 4 and value["evaluation_interval"] == 1 and value["accumulation_steps"] == 1
    assert set(value) == {
        *("num_epochs", "accumulation_steps", "evaluation_interval", "clip_grad_norm"),
        *("grad_norm_type", "clip_grad_value", "reset_model"),
    }


def test_model_json_describes_the_recipe_and_does_not_claim_a_client_class(archive):
    maps.write_model_json(archive)
    value = read(layout.model_json(archive))
    assert list(value) == ["name_", "network", "loss", "optimizer", "inferer", "label_key"]
    assert {value[part]["name_"] for part in ("network", "loss", "optimizer")} == {"NotInClinicaDL"}
    assert value["network"]["name"] == "UNet" and value["loss"]["name"] == "DiceCELoss"


def test_training_data_is_the_union_of_the_splits(archive):
    maps.write_training_data_tsv(archive)
    lines = Path(layout.training_data_tsv(archive)).read_text().splitlines()
    assert lines == ["participant_id\tsession_id", *(f"sub-{i}\tses-M000" for i in range(4))]


def test_side_data_has_the_splits_cases_and_how_they_are_loaded(archive):
    table, dataset, loader = maps.write_side_data(archive, "train", "1")
    assert Path(table).read_text().splitlines()[1:] == ["sub-2\tses-M000", "sub-3\tses-M000"]
    assert read(dataset)["datalist"] == "config/dataset_1.json" and read(dataset)["cases"] == [
        "case_2",
        "case_3",
    ]
    assert read(loader)["shuffle"] is True and read(loader)["batch_size"] == 2
    assert set(read(loader)) == {
        *("name_", "batch_size", "sampling_weights", "shuffle", "num_workers", "pin_memory"),
        *("drop_last", "prefetch_factor", "persistent_workers", "collate_fn"),
    }
    assert read(maps.write_side_data(archive, "validation", 1)[2])["shuffle"] is False


def test_group_data_of_an_unknown_group_is_refused(archive):
    assert Path(maps.write_group_data(archive, "held")[0]).read_text().count("\n") == 3
    with pytest.raises(UserError, match=r"no test group 'other'.*held"):
        maps.write_group_data(archive, "other")
    with pytest.raises(UserError, match="splits 0 to 1"):
        maps.write_side_data(archive, "train", 2)


def test_result_computational_says_how_the_split_was_computed(archive):
    (path,) = maps.write_result_computational(archive, "held", "0", "final")
    assert read(path) == {
        **{"gpu": False, "non_blocking": True, "amp": False, "channels_last": False},
        **{"seed": 0, "deterministic": True},
    }
    with pytest.raises(UserError, match="ask Snakemake for it to have the split trained"):
        maps.write_result_computational(archive, "held", "1", "final")


def test_summary_lists_what_is_done_and_no_date(archive):
    maps.write_summary_log(archive)
    text = Path(layout.summary_log(archive)).read_text()
    assert "   - 0\n      Epochs: 4\n      Best loss: 0.500000 at epoch 3" in text
    assert "   - 1\n" not in text and "   - held\n      Splits: 0" in text and "Date" not in text


def test_files_are_the_same_bytes_every_time(archive):
    writers = (
        maps.write_model_json,
        maps.write_metrics_json,
        maps.write_callbacks_json,
        maps.write_summary_log,
    )
    first = [Path(p).read_bytes() for w in writers for p in w(archive)]
    assert first == [Path(p).read_bytes() for w in writers for p in w(archive)]
