"""The MMAR face: commands that run, reports that MONAI's readers take, a model card from facts."""

from __future__ import annotations

import csv
import json
import logging.config
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from armarium import apps, calling, layout, mmar
from armarium.apps import evaluate, export, train
from armarium.errors import UserError
from armarium.files import read_json, write_json
from armarium.zips import write_zip
from test_maps import finish_run, make_archive


@pytest.fixture
def archive(tmp_path):
    return make_archive(tmp_path)


def write_evaluation(archive: str) -> None:
    ids = "participant_id\tsession_id\t"
    rows = [(4, 1, 0.5), (4, 2, 0.7), (5, 1, "n/a"), (5, 2, 0.9)]
    lines = [f"sub-{p}\tses-M000\t{c}\torgan {c}\t{v}\n" for p, c, v in rows]
    members = {
        "aggregated.tsv": "loss\tMeanDice\tHausdorffDistance\n0.25\t0.75\tn/a\n",
        "class_details.tsv": f"{ids}class\tname\tMeanDice\n{''.join(lines)}",
    }
    write_zip(layout.eval_zip(archive), members)


def rows_of(path: str) -> list[list[str]]:
    return list(csv.reader(Path(path).open()))


# ---- commands


@pytest.mark.parametrize("name", mmar.COMMANDS)
def test_a_command_is_executable_bash_that_finds_its_archive(archive, name):
    (path,) = mmar.write_command(archive, name)
    assert os.access(path, os.X_OK) and Path(path).read_text().startswith("#!/usr/bin/env bash\n")
    assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_set_env_names_the_archive_and_the_workflow(archive):
    (path,) = mmar.write_command(archive, "set_env.sh")
    script = f'source "{path}"; echo "$MMAR_ROOT|$PYTHONPATH"'
    environment = {"PATH": os.environ["PATH"], "ARMARIUM_HOME": "/some/where", "PYTHONPATH": "/old"}
    found = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"{Path(archive).resolve()}|/some/where/workflow:/old"


def test_a_command_passes_mmar_arguments_and_additional_options(archive, tmp_path):
    for name in ("set_env.sh", "export.sh"):
        mmar.write_command(archive, name)
    stand_in = tmp_path / "bin" / "python3"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    environment = {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    command = [layout.command(archive, "export.sh"), "epochs=3"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split("\n")
    assert found[:3] == ["-u", "-m", "armarium.apps.export"] and found[-3:] == [
        "print_conf=True",
        "epochs=3",
        "",
    ]
    assert json.loads(found[found.index("--input_shape") + 1]) == [1, 1, 64, 64, 64]


def test_a_command_that_is_not_there_is_refused(archive):
    with pytest.raises(UserError, match=r"no such command.*train.sh"):
        mmar.write_command(archive, "fly.sh")


def test_log_config_is_read_by_logging(archive):
    logging.config.fileConfig(mmar.write_log_config(archive)[0], disable_existing_loggers=False)


# ---- programs


def test_train_asks_for_all_selected_checkpoints_and_the_published_model(archive):
    found = train.targets(archive, train_stats=True)
    assert layout.checkpoint_pt(layout.checkpoint_dir(archive, 1, "best-MeanDice")) in found
    assert {
        layout.published_model(archive),
        layout.published_ts(archive),
        layout.train_stats(archive),
    } <= set(found)
    assert len(found) == 2 * 3 + 5


def test_evaluate_asks_for_what_its_configuration_says(archive):
    assert evaluate.targets(archive, "config_validation.json")[0] == layout.eval_metrics_csv(archive)
    assert layout.eval_segmentation(archive, "case_5") in evaluate.targets(archive, "config_inference.json")
    tables = evaluate.targets(archive, "config_validation_ckpt.json")
    assert len(tables) == 3 * len(layout.METRIC_TABLES) and all("split-0" in t for t in tables)
    with pytest.raises(UserError, match=r"wanted config_validation.json"):
        evaluate.targets(archive, "config_train.json")


def test_export_refuses_files_that_are_no_artifact(archive):
    export.check_paths(archive, layout.published_model(archive), layout.published_ts(archive))
    with pytest.raises(UserError, match=r"--output_path: found /elsewhere.ts"):
        export.check_paths(archive, layout.published_model(archive), "/elsewhere.ts")


def test_the_working_directory_is_the_one_that_owns_the_archive(tmp_path):
    archive = tmp_path / "work" / "archives" / "demo"
    assert calling.working_directory(archive, tmp_path / "work") == tmp_path / "work"
    assert calling.working_directory(archive, archive) == archive.parent
    (tmp_path / "work" / ".snakemake").mkdir(parents=True)
    assert calling.working_directory(archive, archive) == tmp_path / "work"


def test_the_workflow_is_found_or_the_error_says_how(monkeypatch, tmp_path):
    monkeypatch.delenv("ARMARIUM_HOME", raising=False)
    assert calling.workflow_home().name == "Snakefile"
    monkeypatch.setenv("ARMARIUM_HOME", str(tmp_path))
    with pytest.raises(UserError, match="set ARMARIUM_HOME"):
        calling.workflow_home()


def test_snakemake_gets_targets_settings_and_the_data_folder(archive, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(os, "execv", lambda program, command: ran.append(command))
    monkeypatch.chdir(tmp_path)
    given = [
        "-m",
        archive,
        "-c",
        "config/config_train.json",
        "--set",
        "print_conf=False",
        "epochs=3",
        "DATA_ROOT=here",
    ]
    monkeypatch.setattr(sys, "argv", ["train", *given])
    train.program()
    (command,) = ran
    config = command[command.index("--config") + 1 : command.index("--")]
    assert config == [f"data_root={tmp_path.resolve() / 'here'}", 'set={"epochs": "3"}']
    assert command[command.index("--directory") + 1] == str(tmp_path.resolve())
    assert "archive/models/model.pt" in command[command.index("--") :]
    with pytest.raises(UserError, match="NAME=VALUE"):
        apps.changes_of(["epochs"])


# ---- eval/


def test_metrics_csv_is_rows_of_numbers(archive):
    write_evaluation(archive)
    rows = rows_of(mmar.write_eval_metrics(archive)[0])
    assert rows[:2] == [["loss", "0.25"], ["MeanDice", "0.75"]] and math.isnan(float(rows[2][1]))


def test_dice_tables_are_by_image_and_class_with_undefined_values_counted(archive):
    write_evaluation(archive)
    raw, summary = map(rows_of, mmar.write_eval_dice_tables(archive))
    assert raw[0] == ["filename", "organ 1", "organ 2", "mean"]
    assert raw[1] == ["d/images/case_4.nii.gz", "0.5", "0.7", "0.6"]
    assert raw[2] == ["d/images/case_5.nii.gz", "nan", "0.9", "0.9"]
    assert summary[0] == ["class", *mmar.SUMMARY]
    assert summary[1] == ["organ 1", "0.5", "0.5", "0.5", "0.5", "0.5", "0.0", "1", "1"]
    assert float(summary[2][4]) == pytest.approx(0.71) and summary[2][-2:] == ["2", "0"]


def test_reports_without_an_evaluation_say_what_to_do(archive):
    with pytest.raises(UserError, match="evaluate the published model first"):
        mmar.write_eval_metrics(archive)


# ---- docs


def test_the_model_card_reports_mean_and_spread_over_splits(archive):
    finish_run(archive, 1)
    text = Path(mmar.write_doc(archive, "README.md")[0]).read_text()
    assert "| MeanDice | 0.5500 ± 0.0707 | 0.8500 ± 0.0707 |" in text
    assert "| HausdorffDistance | 0.5500 ± 0.0707 | undefined |" in text
    assert "Split 1: 2 training and 2 validation cases" in text and "CC0-1.0" in text


def test_licences_are_as_stated_or_not_stated(archive):
    assert "CC0-1.0" in Path(mmar.write_licence(archive)[0]).read_text()
    facts = read_json(layout.dataset_json(archive))
    write_json(layout.dataset_json(archive), {k: v for k, v in facts.items() if k != "licence"})
    assert "not stated" in Path(mmar.write_doc(archive, "data_license.txt")[0]).read_text()
    assert "must decide" in Path(mmar.write_doc(archive, "license.txt")[0]).read_text()
