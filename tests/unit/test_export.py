"""TorchScript of checkpoints: the same bytes in every process, and the same results as eager."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from armarium import export
from armarium.errors import UserError
from armarium.export import deterministic_bytes, export_checkpoints, network_input_shape, to_torchscript
from armarium.network import build_network
from armarium.run import INFO, member_of_checkpoint, saved
from armarium.zips import write_zip
from tiny import REPO, component, settings

EXTRA = {"metadata.json": '{"version": "1"}'}
CHECKPOINTS = ["best-loss", "best-MeanDice", "epoch-1", "final"]

OWN = """
import torch


class Own(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.layers = kind, torch.nn.ModuleList([torch.nn.Conv2d(1, 2, 1), torch.nn.Conv2d(1, 2, 3, padding=1)])

    def forward(self, x):
        {body}
"""
BODIES = {
    "differs": "return self.layers[0](x) + (1.0 if torch.jit.is_scripting() else 0.0)",
    "undefined": "return self.layers[0](x) / 0.0 * 0.0",
    "no script": "return sum(layer(x) for layer in self.layers)",
    "neither": "return [v for v in self.layers[0](x).tolist()]",
    "two outputs": "return self.layers[0](x), self.layers[1](x)",
}


def own(tmp_path, monkeypatch, name: str) -> dict:
    """The settings of a recipe with a network of the user's own."""
    module = f"armarium_net_{name.replace(' ', '_')}"
    (tmp_path / f"{module}.py").write_text(OWN.format(body=BODIES[name]))
    monkeypatch.syspath_prepend(tmp_path)
    return settings(model={"path": f"{module}.Own", "args": {"kind": name}}, allow=[f"{module}.Own"])


def a_run(folder, given: dict) -> str:
    """A run.zip of three epochs with the best after the first and second."""
    path = folder / "run.zip"
    weights = {}
    for epoch in (1, 2, 3):
        torch.manual_seed(epoch)
        weights[member_of_checkpoint(epoch)] = saved(build_network(given).state_dict())
    best = {"loss": {"value": 0.1, "epoch": 2}, "MeanDice": {"value": 0.9, "epoch": 1}}
    write_zip(path, {INFO: json.dumps({"epochs": 3, "best": best, "input_shape": [1, 16, 16]}), **weights})
    return str(path)


def exported(folder, given: dict, tolerance: float = 1e-4, checkpoints=CHECKPOINTS) -> dict[str, bytes]:
    made = export_checkpoints(given, a_run(folder, given), list(checkpoints), tolerance, EXTRA)
    members = {f"{c}{end}": data for c, part in made.items() for end, data in part.items()}
    write_zip(folder / "exports.zip", members)
    return members


ELSEWHERE = """
import sys, pathlib
sys.path[:0] = {path!r}
import test_export
given = test_export.settings(model={model!r})
test_export.exported(pathlib.Path.cwd(), given)
"""


def exported_elsewhere(folder: Path, model: dict, **environment: str) -> bytes:
    """exports.zip of a process of its own: TorchScript's names tell what a process scripted before."""
    folder.mkdir()
    path = [str(REPO / "tests/unit"), str(REPO / "workflow")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE.format(path=path, model=model)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "exports.zip").read_bytes()


def test_other_processes_write_the_same_bytes(tmp_path):
    """Another folder, hash seed, locale, home and temporary folder."""
    model = settings()["model"]
    model["args"].update(num_res_units=1, norm="batch", dropout=0.1)
    (temporary := tmp_path / "temporary files").mkdir()
    other = {"HOME": "/nonexistent", "TMPDIR": str(temporary), "LC_ALL": "C", "PYTHONHASHSEED": "1234", "USER": "other"}
    here = exported_elsewhere(tmp_path / "here", model, HOME=str(tmp_path), PYTHONHASHSEED="0")
    assert here == exported_elsewhere(tmp_path / "a folder elsewhere", model, **other)


def test_every_checkpoint_is_exported_with_its_parity(tmp_path):
    given = settings()
    members = exported(tmp_path, given)
    assert set(members) == {f"{c}{end}" for c in CHECKPOINTS for end in (".ts", ".parity.json")}
    assert members["best-MeanDice.ts"] == members["epoch-1.ts"] != members["final.ts"]
    for entry in (json.loads(members[f"{c}.parity.json"]) for c in CHECKPOINTS):
        assert entry["method"] == "script" and entry["max_abs_difference"] <= entry["tolerance"] == 1e-4
        assert entry["input_shape"] == [1, 1, 16, 16]


def test_an_export_gives_what_its_weights_give_and_carries_its_texts(tmp_path):
    given = settings()
    data = exported(tmp_path, given, checkpoints=["final"])["final.ts"]
    torch.manual_seed(3)
    network = build_network(given).network.eval()
    (tmp_path / "final.ts").write_bytes(data)
    texts = dict.fromkeys(EXTRA, "")
    script = torch.jit.load(tmp_path / "final.ts", _extra_files=texts).eval()
    x = torch.randn(2, 1, 24, 32)
    with torch.no_grad():
        assert torch.allclose(script(x), network(x), atol=1e-5)
    assert {k: v.decode() for k, v in texts.items()} == EXTRA


def test_an_export_says_nothing_of_the_machine_or_the_time(tmp_path):
    data = exported(tmp_path, settings(), checkpoints=["final"])["final.ts"]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert not [n for n in archive.namelist() if n.endswith(".debug_pkl")]
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        for info in archive.infolist():
            content = archive.read(info)
            assert not re.search(rb"/(work|home|opt|usr|tmp)/|site-packages", content), info.filename


def test_tensors_stay_aligned_for_readers_that_map_the_file():
    script, _ = to_torchscript(torch.nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 8, 8))
    data = deterministic_bytes(script, {})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            names = int.from_bytes(data[info.header_offset + 26 : info.header_offset + 28], "little")
            extra = int.from_bytes(data[info.header_offset + 28 : info.header_offset + 30], "little")
            assert (info.header_offset + 30 + names + extra) % 64 == 0, info.filename


# ---- parity and the way it was done


def test_a_network_that_differs_as_torchscript_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(UserError) as caught:
        exported(tmp_path, own(tmp_path, monkeypatch, "differs"))
    assert "epoch 2: TorchScript (script) differs from eager by 1 on input [1, 1, 16, 16]" in str(caught.value)
    assert "wanted at most 0.0001; raise export.tolerance" in str(caught.value)
    assert not (tmp_path / "exports.zip").exists()


def test_a_difference_within_the_tolerance_is_accepted_and_recorded(tmp_path, monkeypatch):
    members = exported(tmp_path, own(tmp_path, monkeypatch, "differs"), tolerance=2.0)
    assert json.loads(members["final.parity.json"])["max_abs_difference"] == pytest.approx(1.0)


def test_outputs_that_are_no_numbers_do_not_pass_as_equal(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="differs from eager by nan"):
        exported(tmp_path, own(tmp_path, monkeypatch, "undefined"))


def test_a_network_that_cannot_be_scripted_is_traced_and_it_says_so(tmp_path, monkeypatch):
    given = own(tmp_path, monkeypatch, "no script")
    members = exported(tmp_path, given)
    how = json.loads(members["final.parity.json"])
    assert how["method"].startswith("trace (script failed: ") and how["max_abs_difference"] == 0
    script = torch.jit.load(io.BytesIO(members["final.ts"]))
    assert script(torch.zeros(1, 1, 20, 20)).shape == (1, 2, 20, 20)


def test_a_network_that_can_be_neither_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"network: TorchScript by script \(.*\) and by trace failed"):
        exported(tmp_path, own(tmp_path, monkeypatch, "neither"))


def test_of_several_outputs_the_first_is_compared(tmp_path, monkeypatch):
    assert "final.ts" in exported(tmp_path, own(tmp_path, monkeypatch, "two outputs"))


def test_every_call_compares(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(export, "parity", lambda network, data, example: compared.append(example.shape) or 0.0)
    exported(tmp_path, settings())
    assert compared == [(1, 1, 16, 16)] * len(CHECKPOINTS)


@pytest.mark.parametrize(
    ("window", "shape"),
    [
        (None, [1, 2, 40, 48, 32]),
        ([16, 24, 8], [1, 2, 16, 24, 8]),
        (16, [1, 2, 16, 16, 16]),
        ([16, -1, 0], [1, 2, 16, 48, 32]),
    ],
)
def test_the_input_compared_on_is_as_large_as_the_network_meets(window, shape):
    inferer = component("SlidingWindowInferer", roi_size=window) if window else component("SimpleInferer")
    assert network_input_shape({"validate": {"inferer": inferer}}, {"input_shape": [2, 40, 48, 32]}) == shape
