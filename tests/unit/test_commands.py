"""MMAR's commands: scripts that find their archive and the workflow, programs that ask Snakemake for files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from armarium import apps, calling, commands, layout
from armarium.apps import evaluate, export, train
from armarium.errors import UserError
from test_maps import make_archive


@pytest.fixture
def archive(tmp_path):
    return make_archive(tmp_path)


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
