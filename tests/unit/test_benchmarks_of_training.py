"""What `make bench` compares trainings by: that everyone trains the same, and what is said where there is no GPU."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

import pytest
from armarium.components import build

from benchmarks import gpu, training

RECIPE = json.loads((training.RECIPE / "config_train.json").read_text())
TASK = {"threads": 1, "model": RECIPE["train"]["model"], "loss": RECIPE["train"]["loss"], "batch_size": 2}


def test_everyone_trains_the_same_network_loss_and_batch(monkeypatch):
    monkeypatch.setenv("CLINICADL_PYTHON", "clinicadl")
    monkeypatch.setenv("NNUNET_PYTHON", "nnunet")
    found = training.contenders(TASK, RECIPE, threads=1)
    assert len(found) == 9 and next(iter(found)) == "bare loop"
    for _, task, _ in found.values():
        assert {k: task[k] for k in TASK} == TASK
        if settings := task.get("settings"):
            assert {k: settings[k] for k in TASK} == {**TASK, "loss": settings["loss"], "model": settings["model"]}
            assert settings["model"]["args"] == TASK["model"]["args"] and settings["epochs"] == 1000


@pytest.mark.parametrize("network", gpu.NETWORKS, ids=["small", "large"])
def test_what_is_asked_for_on_a_gpu_is_a_recipe(network):
    recipe = json.loads(json.dumps(RECIPE))
    recipe["train"]["model"] = network.model
    found = gpu.contenders(network, TASK, recipe)
    asked = {option for _, task, _ in found.values() for option in task.get("settings", {})}
    assert {"batched_augmentation", "channels_last", "compile"} <= asked
    build("model", network.model, [])  # its arguments are a network's


def test_where_there_is_no_gpu_it_is_said(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="\n"))
    gpu.measure(rounds=1)
    told = capsys.readouterr()
    assert "skipped, torch sees no CUDA device" in told.err and not told.out


def test_ratios_are_of_the_same_round_to_the_first_and_of_ours_to_a_peer():
    found = [
        training.Contender(name, None, seconds, cpu, peak)
        for name, seconds, cpu, peak in [
            ("bare loop", [1.0, 2.0, 4.0], [1, 1, 1], 100),
            ("Armarium: none", [1.0, 1.0, 5.0], [1, 1, 1], 110),
            ("plain MONAI: none", [2.0, 2.0, 5.0], [2, 2, 2], 130),
        ]
    ]
    _, ours, peer = training.table(found, samples=10)
    to_bare = ["5.00", "0.800 (0.500 to 1.000)", "0.500 (0.500 to 0.500)"]
    assert peer == ["plain MONAI: none", *to_bare, "2.000 (1.000 to 2.000)", "130 (1.30)"]
    assert ours[4] == ""
