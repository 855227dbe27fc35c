"""The ensemble is the mean of what the recipe makes of its members' outputs, in the form of an output."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from armarium import ensemble, further_exports
from armarium.ensemble import SAYS, averaged, export_ensemble
from armarium.errors import UserError
from armarium.formats import REPORT
from armarium.network import build_network
from armarium.run import INFO, member_of_checkpoint, saved
from armarium.split_files import cases_unseen
from armarium.zips import write_zip
from tiny import REPO, component, recipe, settings

EXTRA = {"metadata.json": '{"version": "1"}'}
CHECKPOINT = "best-MeanDice"
ACTIVATIONS = {"softmax": lambda x: x.softmax(1), "sigmoid": torch.sigmoid, "outputs": lambda x: x}


def activated(kind: str) -> dict:
    """The settings of a recipe whose post-transforms apply ``kind``."""
    conf = recipe()
    post = [t for t in conf["validate"]["post_transforms"] if t["name"] != "Activationsd"]
    applied = [] if kind == "outputs" else [component("Activationsd", keys=["pred"], **{kind: True})]
    conf["validate"]["post_transforms"] = [*applied, *post]
    return settings(conf)


def runs_of(folder, given: dict, count: int = 3) -> dict[int, str]:
    """Run.zips of two epochs, of other weights each."""
    found = {}
    for split in range(count):
        members = {}
        for epoch in (1, 2):
            torch.manual_seed(10 * split + epoch)
            members[member_of_checkpoint(epoch)] = saved(build_network(given).state_dict())
        best = {"loss": {"value": 0.1, "epoch": 2}, "MeanDice": {"value": 0.9, "epoch": 1 + split % 2}}
        digests = {str(e): f"weights {split} {e}" for e in (1, 2)}
        info = {"epochs": 2, "best": best, "input_shape": [1, 16, 16], "checkpoints": digests}
        folder.joinpath(f"split-{split}").mkdir(parents=True)
        found[split] = str(folder / f"split-{split}/run.zip")
        write_zip(found[split], {INFO: json.dumps(info), **members})
    return found


def members(given: dict, count: int = 3) -> list[torch.nn.Module]:
    found = []
    for split in range(count):
        torch.manual_seed(10 * split + 1 + split % 2)
        found.append(build_network(given).network.eval())
    return found


def exported(folder, given: dict) -> tuple[bytes, dict]:
    part = export_ensemble(given, runs_of(folder, given), CHECKPOINT, 1e-4, EXTRA)
    return part["ensemble.ts"], json.loads(part[REPORT])


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_what_the_recipe_makes_of_its_output_is_the_mean_of_what_it_makes_of_the_members(kind, tmp_path):
    given, activate = activated(kind), ACTIVATIONS[kind]
    data, report = exported(tmp_path, given)
    texts = {SAYS: "", "metadata.json": ""}
    loaded = torch.jit.load(io.BytesIO(data), _extra_files=texts).eval()
    x = 3 * torch.randn(2, 1, 24, 32)
    with torch.no_grad():
        mean = torch.stack([activate(network(x)) for network in members(given)]).mean(0)
        torch.testing.assert_close(activate(loaded(x)), mean, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(activate(members(given)[0](x)), mean, atol=1e-3)
    says = json.loads(texts[SAYS])
    assert says["mean_of"] == report["mean_of"] == kind and says["output"]
    assert [(m["split"], m["epoch"], m["sha256"]) for m in says["members"]] == [
        (0, 1, "weights 0 1"),
        (1, 2, "weights 1 2"),
        (2, 1, "weights 2 1"),
    ]
    assert texts["metadata.json"].decode() == EXTRA["metadata.json"]
    assert report["max_abs_difference"] <= report["tolerance"] and report["method"] == "script"


def test_probabilities_near_zero_and_one_stay_numbers():
    class Certain(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, x):
            return torch.cat([x * self.value, -x * self.value], 1)

    x = torch.ones(1, 1, 2, 2)
    for kind in ("softmax", "sigmoid"):
        make, activate, _ = ensemble.MEANS[kind]
        probability = activate(make([Certain(1e4), Certain(-1e4)])(x))
        torch.testing.assert_close(probability, torch.full((1, 2, 2, 2), 0.5))


def test_a_regression_averages_numbers_whatever_its_transforms_say():
    assert averaged({**activated("softmax"), "task": "regression"}) == "outputs"


def test_members_of_several_outputs_give_the_mean_of_the_first(tmp_path, monkeypatch):
    (tmp_path / "armarium_pair.py").write_text(
        "import torch\n\nclass Pair(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a = torch.nn.Conv2d(1, 2, 1)\n\n    def forward(self, x):\n        return self.a(x), x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    given = {
        **activated("outputs"),
        "model": {"path": "armarium_pair.Pair", "args": {}},
        "allow": ["armarium_pair.Pair"],
    }
    data, _ = exported(tmp_path, given)
    x = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        mean = torch.stack([network(x)[0] for network in members(given)]).mean(0)
        torch.testing.assert_close(torch.jit.load(io.BytesIO(data))(x), mean)


def test_a_difference_beyond_tolerance_is_refused(tmp_path):
    given = activated("softmax")
    with pytest.raises(
        UserError, match=r"split-0/run.zip.*differs from the mean of the models.*raise export.tolerance"
    ):
        export_ensemble(given, runs_of(tmp_path, given), CHECKPOINT, -1.0, EXTRA)


ELSEWHERE = """
import sys, pathlib
sys.path[:0] = {path!r}
import test_ensemble as t
pathlib.Path("ensemble.ts").write_bytes(t.exported(pathlib.Path.cwd(), t.activated("softmax"))[0])
"""


def exported_elsewhere(folder: Path, seed: str) -> bytes:
    """By a process of its own, as each step is: torch numbers the classes that one process scripts."""
    folder.mkdir()
    path = [str(REPO / "tests/unit"), str(REPO / "workflow")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE.format(path=path)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "ensemble.ts").read_bytes()


def test_other_processes_write_the_same_bytes(tmp_path):
    assert exported_elsewhere(tmp_path / "here", "0") == exported_elsewhere(tmp_path / "there", "1234")


# ---- whom it is scored on


def test_nobody_whom_any_split_saw_is_scored():
    people = {"a": "p1", "b": "p2", "c": "p3", "d": "p4", "again": "p1", "own": "p5"}
    splits = {
        "splits": [{"train": ["a"], "validation": ["b"]}, {"train": ["b"], "validation": ["c"]}],
        "groups": {"held": ["d", "c"], "more": ["again", "d"], "test_0": ["own"]},
        "own_groups": {"test_0": 0},
        "cases": {name: {"participant_id": person} for name, person in people.items()},
    }
    assert cases_unseen(splits) == ["d"], "c is validated on, again is a person who trains, own is one split's alone"


# ---- it is code


def test_an_ensemble_that_is_not_what_the_weights_give_is_not_run_unless_it_is_trusted(tmp_path):
    path, cache = tmp_path / "ensemble.ts", str(tmp_path / "cache")
    path.write_bytes(b"of a stranger")
    with pytest.raises(UserError, match=r"ensemble.ts: TorchScript is code.*not what is exported here"):
        further_exports.bytes_to_run(str(path), cache, False, lambda: b"what the weights give")
    assert further_exports.bytes_to_run(str(path), cache, True, lambda: b"") == b"of a stranger"
    path.write_bytes(b"what the weights give")
    for again in (b"what the weights give", b"never asked again"):
        assert further_exports.bytes_to_run(str(path), cache, False, lambda again=again: again)
