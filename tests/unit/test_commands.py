"""MMAR's commands: scripts that find their archive and the workflow, programs that ask Snakemake for files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from armarium import apps, calling, commands, home, layout
from armarium.apps import evaluate, export, train
from armarium.errors import UserError
from armarium.files import read_json, write_json, write_text
from test_maps import make_archive


@pytest.fixture
def archive(tmp_path):
    return make_archive(tmp_path)


def write_manifest(archive: str, names: list[str]) -> None:
    """A manifest that names some files."""
    files = [{"@id": name, "@type": "File", "sha256": "0" * 64, "contentSize": "1"} for name in names]
    write_json(layout.manifest(archive), {"@graph": [{"@id": "./", "@type": "Dataset"}, *files]})


# ---- commands


@pytest.mark.parametrize("name", layout.COMMANDS)
def test_a_command_is_executable_bash_that_finds_its_archive(archive, name):
    (path,) = commands.write_command(archive, name)
    assert os.access(path, os.X_OK) and Path(path).read_text().startswith("#!/usr/bin/env bash\n")
    assert subprocess.run(["bash", "-n", path]).returncode == 0


def sourced(path: str, **environment: str) -> subprocess.CompletedProcess:
    """A shell that reads set_env.sh and tells what it has set."""
    script = f'source "{path}" && echo "$MMAR_ROOT|$ARMARIUM_HOME|$PYTHONPATH"'
    given = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **environment}
    return subprocess.run(["bash", "-uc", script], env=given, capture_output=True, text=True)


def make_checkout(folder: Path) -> Path:
    """What of a checkout tells that it is one."""
    (folder / "workflow/armarium").mkdir(parents=True)
    (folder / "workflow/armarium/__init__.py").touch()
    return folder


def test_set_env_takes_the_workflow_that_is_given(archive, tmp_path):
    (path,) = commands.write_command(archive, "set_env.sh")
    given = make_checkout(tmp_path / "given")
    found = sourced(path, ARMARIUM_HOME=str(given), PYTHONPATH="/old").stdout.strip()
    assert found == f"{Path(archive).resolve()}|{given}|{given}/workflow:/old"


def test_set_env_takes_the_checkout_that_the_archive_lies_in_not_one_that_the_archive_brings(tmp_path):
    home = make_checkout(tmp_path / "home")
    archive = home / "archives/a"
    (path,) = commands.write_command(str(archive), "set_env.sh")
    make_checkout(archive)
    assert sourced(path).stdout.strip() == f"{archive}|{home}|{home}/workflow"
    link = tmp_path / "link"
    link.symlink_to(archive)
    assert sourced(f"{link}/commands/set_env.sh").stdout.startswith(f"{archive}|{home}|")


def test_set_env_without_any_workflow_says_what_to_do(archive, tmp_path):
    (path,) = commands.write_command(archive, "set_env.sh")
    done = sourced(path, ARMARIUM_HOME=str(tmp_path), PATH="/usr/bin:/bin")
    assert done.returncode and not done.stdout
    assert done.stderr.count("error:") == 1 and "set ARMARIUM_HOME" in done.stderr


def test_a_command_passes_mmar_arguments_and_additional_options(archive, tmp_path):
    for name in ("set_env.sh", "export.sh"):
        commands.write_command(archive, name)
    stand_in = tmp_path / "bin" / "python3"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\n[ "$2" = -c ] || printf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    environment = {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    command = [layout.command(archive, "export.sh"), "epochs=3"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split("\n")
    assert found[:4] == ["-u", "-P", "-m", "armarium.apps.export"]
    assert found[-3:] == ["print_conf=True", "epochs=3", ""], "additional options come last: they count"
    assert json.loads(found[found.index("--input_shape") + 1]) == [1, 1, 64, 64, 64]


def test_a_command_that_is_not_there_is_refused(archive):
    with pytest.raises(UserError, match=r"no such command.*train.sh"):
        commands.write_command(archive, "fly.sh")


# ---- programs


@pytest.fixture
def called(monkeypatch):
    """Runs a program as its command does; what Snakemake was asked for."""

    def call(program, archive: str, config: str, *arguments: str, made: dict[str, str] | None = None) -> dict:
        asked: dict = {}

        def make(directory, options, targets):
            asked.update(directory=str(directory), targets=[os.path.relpath(directory / t, archive) for t in targets])
            given = options[options.index("--config") + 1 :] if "--config" in options else []
            asked["config"] = dict(entry.split("=", 1) for entry in given)
            for name, text in (made or {}).items():
                write_text(f"{archive}/{name}", text)
            return 0

        monkeypatch.setattr(apps, "make_targets", make)
        monkeypatch.setattr(sys, "argv", ["program", "-m", archive, "-c", f"config/{config}", *arguments])
        with pytest.raises(SystemExit) as end:
            program()
        assert end.value.code == 0
        return asked

    return call


EXPORT = ("--model_path", "{}/models/model.pt", "--output_path", "{}/models/model.ts")
SCORES = ["eval/metrics.csv", "eval/val_mean_dice_raw.csv", "eval/val_mean_dice_summary.csv"]
PREDICTIONS = ["eval/evaluation.zip", "eval/case_4/case_4_seg.nii.gz", "eval/case_5/case_5_seg.nii.gz"]


def of_checkpoint(paths: list[str]) -> list[str]:
    return [p.replace("eval/", "eval/ckpt/", 1) for p in paths]


def exported(archive: str, **other: str) -> list[str]:
    """Arguments of export.sh, some of them others."""
    given = [a.format(archive) for a in EXPORT]
    for option, value in other.items():
        given[given.index(f"--{option}") + 1] = value
    return given


def test_train_asks_for_all_selected_checkpoints_and_the_published_model(called, archive):
    found = called(train.program, archive, "config_train.json", "--write_train_stats")["targets"]
    assert "training/split-1/models/best_models/best-MeanDice/model.pt" in found and len(found) == 2 * 3 + 5
    assert {"models/model.pt", "models/final_model.pt", "models/model.ts", "models/train_stats.json"} <= set(found)


def test_without_write_train_stats_none_are_asked_for(called, archive):
    assert "models/train_stats.json" not in called(train.program, archive, "config_train.json")["targets"]


def test_training_a_complete_archive_completes_it_again(called, archive):
    write_manifest(archive, [])
    assert called(train.program, archive, "config_train.json")["targets"] == ["ro-crate-metadata.json"]


def test_finetune_prepares_the_weights_that_it_is_given_to_start_from(called, archive, monkeypatch):
    prepared = []
    module = ModuleType("armarium.finetune")
    module.prepare = lambda *given: prepared.append(given)
    monkeypatch.setitem(sys.modules, "armarium.finetune", module)
    given = ("--set", "dont_load_ckpt_model=False", "MMAR_CKPT=../other/models/model.pt")
    asked = called(train.program, archive, "config_finetune.json", *given)
    assert prepared == [(archive, "../other/models/model.pt")] and not asked["config"]
    assert "models/model.pt" in asked["targets"]


@pytest.mark.parametrize(
    ("config", "variables", "targets"),
    [
        ("config_validation.json", [], SCORES),
        ("config_validation_ckpt.json", [], of_checkpoint(SCORES)),
        ("config_inference.json", [], PREDICTIONS),
        ("config_validation.json", ["output_infer_result=True"], [*SCORES, *PREDICTIONS]),
        ("config_validation.json", ["do_validation=false", "output_infer_result=true"], PREDICTIONS),
        ("config_inference.json", ["do_validation=True"], [*SCORES, *PREDICTIONS]),
        ("config_validation.json", ["dont_load_ts_model=True", "dont_load_ckpt_model=False"], of_checkpoint(SCORES)),
        (
            "config_inference.json",
            ["dont_load_ts_model=True", "dont_load_ckpt_model=False"],
            of_checkpoint(PREDICTIONS),
        ),
        ("config_validation_ckpt.json", ["dont_load_ts_model=False", "dont_load_ckpt_model=True"], SCORES),
    ],
)
def test_evaluate_asks_for_what_configuration_and_variables_say(called, archive, config, variables, targets):
    assert called(evaluate.program, archive, config, "--set", *variables)["targets"] == targets


def test_a_hand_edit_of_an_evaluation_configuration_counts(called, archive):
    path = layout.mmar_config(archive, "config_validation.json")
    write_json(path, {**read_json(path), "dont_load_ts_model": True, "dont_load_ckpt_model": False})
    assert called(evaluate.program, archive, "config_validation.json")["targets"] == of_checkpoint(SCORES)


def test_evaluation_on_several_gpus_shares_its_cases(called, archive):
    def asked(*variables):
        return called(evaluate.program, archive, "config_validation.json", "--set", *variables)["config"]

    assert asked("multi_gpu=False") == {} and asked("multi_gpu=True") == {"evaluation_processes": "2"}
    assert asked("multi_gpu=True", "processes=3") == {"evaluation_processes": "3"}


def test_training_on_several_gpus_is_kept_by_the_archive(called, archive):
    def asked(*variables):
        return called(train.program, archive, "config_train.json", "--set", *variables)["config"]

    assert asked("multi_gpu=True") == {"set": '{"multi_gpu": "True"}'}
    assert asked("multi_gpu=False") == {}, "what the archive has is no change"


def test_scores_are_copied_to_another_output_path(called, archive, tmp_path):
    made = dict.fromkeys(SCORES, "text")
    given = ("--set", f"MMAR_EVAL_OUTPUT_PATH={tmp_path}/out")
    called(evaluate.program, archive, "config_validation.json", *given, made=made)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(Path(p).name for p in SCORES)
    assert called(evaluate.program, archive, "config_validation.json", "--set", "MMAR_EVAL_OUTPUT_PATH=eval", made=made)


def test_models_are_copied_to_another_checkpoint_folder(called, archive, tmp_path):
    files = (layout.published_model, layout.published_final, layout.published_ts, layout.published_events)
    made = {path("").removeprefix("/"): "weights" for path in files}
    called(train.program, archive, "config_train.json", "--set", f"MMAR_CKPT_DIR={tmp_path}/out", made=made)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {Path(name).name for name in made}


def test_export_compares_on_the_shape_and_copies_to_another_path(called, archive, tmp_path):
    given = [*exported(archive, output_path=f"{tmp_path}/out/net.ts"), "--input_shape", "[1, 1, 32, 32, 48]"]
    asked = called(export.program, archive, "config_train.json", *given, made={"models/model.ts": "script"})
    assert asked["targets"] == ["models/model.ts", "models/parity/1x1x32x32x48.json"]
    assert (tmp_path / "out/net.ts").read_text() == "script"


def test_a_complete_archive_stays_complete(called, archive):
    write_manifest(archive, SCORES)
    assert called(evaluate.program, archive, "config_validation.json")["targets"] == SCORES
    asked = called(evaluate.program, archive, "config_validation_ckpt.json")["targets"]
    assert asked == [*of_checkpoint(SCORES), "ro-crate-metadata.json"]


@pytest.mark.parametrize(
    ("program", "config", "given", "told"),
    [
        (train, "config_validation.json", [], "wanted config_train.json or config_finetune.json"),
        (train, "config_train.json", ["dont_load_ckpt_model=False"], "commands/finetune.sh"),
        (train, "config_finetune.json", ["dont_load_ckpt_model=True"], "commands/train.sh"),
        (train, "config_train.json", ["epochs"], "wanted NAME=VALUE"),
        (train, "config_train.json", ["epoch=3"], "did you mean 'epochs'"),
        (train, "config_train.json", ["epochs=many"], "epochs"),
        (train, "config_train.json", ["cudnn_benchmark=True"], "set deterministic=False"),
        (train, "config_train.json", ["MMAR_CKPT=models/other.pt"], "this archive has models/model.pt"),
        (train, "config_train.json", ["PROCESSING_TASK=classification"], "another one is another archive"),
        (train, "config_train.json", ["DATASET_JSON=none.json"], "no such file"),
        (train, "config_train.json", ["MMAR_CKPT_DIR=elsewhere"], "outside the archive"),
        (evaluate, "config_train.json", [], "wanted config_validation.json"),
        (evaluate, "config_validation.json", ["do_validation=False"], "nothing to do"),
        (evaluate, "config_validation.json", ["dont_load_ckpt_model=False"], "wanted one of the two"),
        (evaluate, "config_validation.json", ["DATASET_JSON=config/dataset_1.json"], "never trained on"),
        (evaluate, "config_validation.json", ["MMAR_TORCHSCRIPT=/elsewhere.ts"], "published model"),
        (evaluate, "config_validation.json", ["MMAR_CKPT_DIR=/elsewhere"], "this archive has models"),
        (evaluate, "config_validation.json", ["MMAR_EVAL_OUTPUT_PATH=models"], "outside the archive"),
        (evaluate, "config_validation.json", ["epochs=9"], "commands/train.sh epochs=9"),
    ],
)  # fmt: skip
def test_what_would_break_the_archive_is_refused_with_the_reason(archive, monkeypatch, program, config, given, told):
    monkeypatch.setattr(sys, "argv", ["program", "-m", archive, "-c", f"config/{config}", "--set", *given])
    with pytest.raises(UserError, match=re.escape(told)):
        program.program()


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("-e", "wanted the archive's own config/environment.json"),
        ("-l", "wanted the archive's own resources/log.config"),
    ],
)
def test_other_files_than_the_archives_own_are_refused(called, archive, monkeypatch, option, told):
    own = ["-e", "config/environment.json", "-l", "resources/log.config"]
    called(evaluate.program, archive, "config_validation.json", *own)
    monkeypatch.setattr(sys, "argv", ["program", "-m", archive, "-c", "config/config_train.json", option, "/elsewhere"])
    with pytest.raises(UserError, match=told):
        train.program()


def test_another_configuration_than_the_archives_own_is_refused(archive, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "-m", archive, "-c", "../config_train.json"])
    with pytest.raises(UserError, match="one of the archive's own configurations: config/config_train.json"):
        train.program()


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"output_path": "{}/eval/other.ts"}, "outside the archive"),
        ({"model_path": "{}/models/final_model.pt"}, "others have their model.ts beside them"),
        ({"input_shape": "[1, 2, 64, 64, 64]"}, "such as [1, 1, 64, 64, 64]"),
        ({"input_shape": "[1, 1, 64, 64]"}, "such as [1, 1, 64, 64, 64]"),
        ({"input_shape": "[1, 1, 0, 64, 64]"}, "such as [1, 1, 64, 64, 64]"),
        ({"input_shape": "64"}, "such as [1, 1, 64, 64, 64]"),
    ],
)
def test_export_takes_the_published_model_and_a_shape_of_its_network(archive, monkeypatch, other, told):
    shape = other.pop("input_shape", "[1, 1, 64, 64, 64]")
    given = exported(archive, **{k: v.format(archive) for k, v in other.items()})
    arguments = ["program", "-m", archive, "-c", "config/config_train.json", *given, "--input_shape", shape]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(UserError, match=re.escape(told)):
        export.program()


def test_print_conf_shows_the_configuration_with_every_variable_put_in(called, archive, capsys):
    called(train.program, archive, "config_train.json", "--set", "print_conf=True", "learning_rate=0.5")
    shown = json.loads(capsys.readouterr().out)
    assert shown["train"]["optimizer"]["args"]["lr"] == 0.5 and shown["PROCESSING_TASK"] == "segmentation"
    called(evaluate.program, archive, "config_validation.json", "--set", "print_conf=True")
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"][0] == {"ts_path": "models/model.ts", "disabled": False}
    called(evaluate.program, archive, "config_validation.json", "--set", "print_conf=False")
    assert not capsys.readouterr().out


def test_the_data_folder_the_device_and_changed_variables_go_to_snakemake(called, archive, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = ["epochs=2", "epochs=3", "batch_size=2", "DATA_ROOT=here", "use_gpu=False", "cudnn_benchmark=False"]
    asked = called(train.program, archive, "config_train.json", "--set", *given)
    where = json.dumps(str(tmp_path.resolve() / "here"))
    assert asked["config"] == {"data_root": where, "device": "cpu", "set": '{"epochs": "3"}'}, "the last value counts"
    assert asked["directory"] == str(tmp_path.resolve())
    assert "device" not in called(train.program, archive, "config_train.json", "--set", "use_gpu=True")["config"]


def test_a_datalist_divides_the_cases_in_training(called, archive, tmp_path):
    listed = tmp_path / "plco.json"
    listed.write_text("{}")
    asked = called(train.program, archive, "config_train.json", "--set", f"DATASET_JSON={listed}")
    assert json.loads(asked["config"]["set"]) == {"DATASET_JSON": str(listed)}
    own = ("--set", "DATASET_JSON=config/dataset_0.json")
    assert called(train.program, archive, "config_train.json", *own)["config"] == {}


def test_the_working_directory_is_the_one_that_owns_the_archive(tmp_path):
    archive = tmp_path / "work/archives/demo"
    assert calling.working_directory(archive, tmp_path / "work") == tmp_path / "work"
    assert calling.working_directory(archive, archive) == archive.parent
    (tmp_path / "work/.snakemake").mkdir(parents=True)
    for here in (archive, tmp_path, tmp_path / "elsewhere", tmp_path / "work"):
        assert calling.working_directory(archive, here) == tmp_path / "work"


def test_the_workflow_is_found_or_the_error_says_how(monkeypatch, tmp_path):
    monkeypatch.delenv("ARMARIUM_HOME", raising=False)
    assert home.workflow_home().name == "Snakefile"
    monkeypatch.setenv("ARMARIUM_HOME", str(tmp_path))
    with pytest.raises(UserError, match="set ARMARIUM_HOME"):
        home.workflow_home()
