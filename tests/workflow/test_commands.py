"""MMAR's commands on a real archive, run as a user types them."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy
import pytest
from armarium.clone import clone
from armarium.hashing import sha256
from armarium.verify import verify

from .conftest import REPO, Project, hashes

TOLERANCE = 1e-5
"""Largest difference between the TorchScript's and the checkpoint's metrics."""


@pytest.fixture(scope="module")
def used(built, tmp_path_factory) -> Project:
    """A copy of the archive in which the checkpoint was evaluated and the export compared, by commands."""
    project = Project.copy_of(built, tmp_path_factory.mktemp("used") / "project")
    link = project.folder.parent / "link"
    link.symlink_to(project.archive)
    told = [
        command(project, "archives/micro", "validate_ckpt.sh", "output_infer_result=True", "print_conf=False"),
        command(project, link, "export.sh"),
    ]
    project.told = told
    return project


def command(project: Project, archive: Path | str, name: str, *variables: str) -> str:
    """Run a command from a folder that has nothing to do with the archive; what it says."""
    elsewhere = project.folder.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    script = [str(project.folder / archive / "commands" / name), *variables, "--cores", "1"]
    done = subprocess.run(
        script, cwd=elsewhere, env={**project.environment, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert not list(elsewhere.iterdir()), "it works in the folder that built the archive"
    return done.stdout + done.stderr


def numbers(path: Path) -> dict[str, float]:
    return {row[0]: float(row[1]) for row in csv.reader(path.open())}


def test_torchscript_and_checkpoint_agree(used):
    script, checkpoint = used.archive / "eval", used.archive / "eval/ckpt"
    ours, theirs = (numbers(folder / "metrics.csv") for folder in (script, checkpoint))
    assert set(ours) == {"loss", "MeanDice"} and ours == pytest.approx(theirs, abs=TOLERANCE)
    segments = sorted(p.relative_to(script) for p in script.glob("case_*/*_seg.nii.gz"))
    assert segments == sorted(p.relative_to(checkpoint) for p in checkpoint.glob("case_*/*_seg.nii.gz"))
    for name in segments:
        a, b = (numpy.asarray(nibabel.load(folder / name).dataobj) for folder in (script, checkpoint))
        assert (a != b).mean() <= 1e-3


def test_both_are_scored_on_the_test_cases(used):
    for path in (used.archive / "eval/evaluation.zip", used.archive / "eval/ckpt/evaluation.zip"):
        with zipfile.ZipFile(path) as held:
            cases = [n for n in held.namelist() if n.startswith("predictions/")]
        assert sorted(cases) == [f"predictions/case_{n:03d}.nii.gz" for n in (9, 10, 11)]


def test_export_compares_on_the_shape_that_it_is_given(used):
    found = json.loads((used.archive / "models/parity/1x1x64x64.json").read_text())
    assert found["input_shape"] == [1, 1, 64, 64] and found["output_shape"] == [1, 2, 64, 64]
    assert 0 <= found["max_abs_difference"] <= found["tolerance"]


def test_what_commands_made_is_of_the_archive_and_nothing_is_left_to_do(used):
    graph = json.loads((used.archive / "ro-crate-metadata.json").read_text())["@graph"]
    named = {entity["@id"] for entity in graph}
    assert {"eval/ckpt/metrics.csv", "eval/ckpt/evaluation.zip", "models/parity/1x1x64x64.json"} <= named
    assert used.planned() == {}
    found = verify(str(used.archive), str(used.folder)).wrong
    assert not [(f.kind, f.path, f.note) for f in found]


def test_a_command_whose_files_are_there_makes_nothing(used):
    before = hashes(used.archive)
    assert "Nothing to be done" in command(used, "archives/micro", "validate_ckpt.sh", "print_conf=False")
    assert hashes(used.archive) == before


@pytest.mark.parametrize(
    ("lost", "rules"),
    [
        pytest.param("eval/ckpt/evaluation.zip", {"evaluate_checkpoint": 1}, marks=pytest.mark.slow),
        ("eval/ckpt/metrics.csv", {"write_eval_metrics": 1}),
        pytest.param("models/parity/1x1x64x64.json", {"compare_shape": 1}, marks=pytest.mark.slow),
    ],
)
def test_a_lost_file_of_theirs_comes_back_with_its_bytes(used, lost, rules):
    before = hashes(used.archive)
    (used.archive / lost).unlink()
    assert used.ran() == {**rules, "write_manifest": 1}
    assert hashes(used.archive) == before and used.planned() == {}


def test_an_edit_of_how_is_logged_changes_that_and_the_manifest_and_nothing_else(copy):
    path = copy.archive / "resources/log.config"
    path.write_text(path.read_text().replace("level=INFO", "level=DEBUG").replace("%(asctime)s", "logged:"))
    found = verify(str(copy.archive), str(copy.folder))
    assert [(f.kind, f.path) for f in found.wrong] == [("own", "resources/log.config")]
    (copy.archive / "LICENSE").unlink()
    copy.snakemake("archives/micro/LICENSE")
    log = (copy.folder / "logs/archives/micro/write_licence.log").read_text()
    assert log.startswith("logged: DEBUG write_licence: begins\n")
    assert copy.ran() == {"write_manifest": 1}
    assert entities(copy.archive)["resources/log.config"]["sha256"] == sha256(path)
    assert not verify(str(copy.archive), str(copy.folder)).wrong
    assert copy.planned() == {}


def test_a_hostile_log_config_stops_a_step_with_one_message(copy):
    path = copy.archive / "resources/log.config"
    path.write_text(path.read_text().replace("args=(sys.stderr,)", "args=(open('ran', 'w'),)"))
    (copy.archive / "LICENSE").unlink()
    done = copy.snakemake("archives/micro/LICENSE", ok=False)
    assert done.returncode and "nothing in this file is run" in done.stderr and "Traceback" not in done.stderr
    assert not (copy.folder / "ran").exists()


# ---- training by several processes


def steps_of(run: Path) -> dict[int, list[float]]:
    """By epoch, the loss of each step."""
    with zipfile.ZipFile(run) as members:
        rows = csv.DictReader(members.read("logs/training_loss.tsv").decode().splitlines(), delimiter="\t")
        found: dict[int, list[float]] = {}
        for row in rows:
            found.setdefault(int(row["epoch"]), []).append(float(row["loss"]))
    return found


def entities(archive: Path) -> dict[str, dict]:
    return {e["@id"]: e for e in json.loads((archive / "ro-crate-metadata.json").read_text())["@graph"]}


def require_two_processes(project: Project, archive: Path) -> None:
    """An archive whose split two processes trained on the CPU is complete, says so, and nothing is wrong with it."""
    record = json.loads((archive / "provenance/train_split-0.json").read_text())
    assert (record["resources"]["processes"], record["resources"]["device"]) == (2, "cpu")
    assert entities(archive)["#usage/train_split-0/processes"]["value"] == 2
    run = archive / "training/split-0/run.zip"
    with zipfile.ZipFile(run) as members:
        info = json.loads(members.read("run.json"))
    assert (info["processes"], info["train"]) == (2, 5)
    assert project.planned(f"archives/{archive.name}/ro-crate-metadata.json") == {}
    assert not verify(str(archive), str(project.folder)).wrong


@pytest.mark.slow
def test_train_multi_gpu_trains_an_archive_anew_with_every_case_once_an_epoch(copy):
    alone = steps_of(copy.archive / "training/split-0/run.zip")
    assert {len(steps) for steps in alone.values()} == {3}, "5 cases, by 2"
    command(copy, "archives/micro", "train_multi_gpu.sh", "print_conf=False", "use_gpu=False")
    run = copy.archive / "training/split-0/run.zip"
    several = steps_of(run)
    assert {len(steps) for steps in several.values()} == {2}, "5 cases, by 2 in each of two processes"
    require_two_processes(copy, copy.archive)
    record = entities(copy.archive)["training/split-0/run.zip"]
    assert record["sha256"] == sha256(run)
    # One process whose batch is the two's together has the same losses: each case was counted once in each epoch.
    changes = json.dumps({"multi_gpu": False, "batch_size": 4})
    copy.snakemake("--config", f"set={changes}", "--", "archives/micro/training/split-0/run.zip")
    whole = steps_of(run)
    assert whole.keys() == several.keys() == alone.keys()
    for epoch, steps in whole.items():
        assert several[epoch] == pytest.approx(steps, abs=1e-5)


@pytest.mark.slow
def test_finetune_trains_a_clone_from_its_parent_and_says_so_with_several_processes_too(copy, monkeypatch):
    monkeypatch.chdir(copy.folder)
    before = hashes(copy.archive)
    clone("archives/micro", "archives/tuned", {"learning_rate": "0.001", "epochs": "2"})
    tuned = copy.folder / "archives/tuned"
    weights = "MMAR_CKPT=../micro/models/model.pt"
    told = command(copy, tuned, "finetune.sh", weights, "print_conf=False", "multi_gpu=True", "use_gpu=False")
    assert "Error" not in told
    require_two_processes(copy, tuned)
    parent = json.loads((tuned / "resources/parent/parent.json").read_text())
    assert (parent["mode"], parent["name"], parent["file"]) == ("transfer", "micro", "models/model.pt")
    found, identity = entities(tuned), entities(copy.archive)["./"]["identifier"]
    assert found["#parent"]["identifier"] == parent["identifier"] == identity
    assert found["resources/parent/model.pt"]["sha256"] == sha256(copy.archive / "models/model.pt")
    layers = tuned / "training/split-0/starting_weights.tsv"
    rows = list(csv.DictReader(layers.open(), delimiter="\t"))
    assert len(rows) == 8 and {row["what"] for row in rows} == {"taken"}
    assert "Started from: models/model.pt of micro" in (tuned / "docs/README.md").read_text()
    assert "layers: 8 taken" in (tuned / "training/split-0/summary.log").read_text()
    assert {len(steps) for steps in steps_of(tuned / "training/split-0/run.zip").values()} == {2}
    assert hashes(copy.archive) == before, "the parent is not overwritten"
    several = layers.read_bytes()
    command(copy, tuned, "finetune.sh", weights, "print_conf=False", "multi_gpu=False", "use_gpu=False")
    assert {len(steps) for steps in steps_of(tuned / "training/split-0/run.zip").values()} == {3}
    assert layers.read_bytes() == several and copy.planned("archives/tuned/ro-crate-metadata.json") == {}


# ---- how long infer.sh takes


def timing(project: Project, *options: str, **environment: str) -> subprocess.CompletedProcess:
    """benchmarks/inference.py, of one round."""
    script = [sys.executable, "-m", "benchmarks.inference", str(project.archive), "--rounds", "1", *options]
    paths = {"PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "workflow")])}
    environment = {**project.environment, **paths, **environment}
    return subprocess.run(script, cwd=project.folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_infer_is_timed_beside_a_plain_script_and_the_archive_stays_as_it_was(copy):
    before = hashes(copy.archive)
    done = timing(copy)
    assert done.returncode == 0, done.stderr[-3000:]
    one, own = done.stdout.split("### ")[1:]
    rows = [re.findall(r"^\| (\S.*?) +\| +([\d.]+) ", table, re.M) for table in (one, own)]
    assert [name for name, _ in rows[0]] == ["infer.sh", "infer.sh, volumes prepared before", "plain MONAI"]
    assert [name for name, _ in rows[1]] == ["infer.sh", "infer.sh, nothing to do", "plain MONAI"]
    assert all(float(speed) > 0 for table in rows for _, speed in table)
    assert hashes(copy.archive) == before and copy.planned() == {}


@pytest.mark.slow
def test_an_infer_that_fails_is_told_with_what_it_says_and_its_files_are_put_back(copy):
    done = timing(copy, ARMARIUM_HOME=str(copy.folder / "nowhere"))
    assert done.returncode == 1 and "infer.sh ended with" in done.stderr and "set ARMARIUM_HOME" in done.stderr
    before = hashes(copy.archive / "eval")
    fails_once_deleted = (
        '#!/bin/sh\ncd "$(dirname "$0")/.." && [ -e eval/evaluation.zip ] || { echo no disk >&2; exit 3; }\n'
    )
    (copy.archive / "commands/infer.sh").write_text(fails_once_deleted)
    done = timing(copy)
    assert done.returncode == 1 and "infer.sh ended with 3; it said:\nno disk" in done.stderr
    assert "Traceback" not in done.stderr and hashes(copy.archive / "eval") == before
