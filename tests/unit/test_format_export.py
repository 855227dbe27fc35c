"""ONNX and torch.export: what eager gives, on other batches and grids too, the same bytes in every process; or a reason."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile

import numpy
import pytest
import torch
from armarium import formats, layout
from armarium.errors import UserError
from armarium.format_export import WAYS, Inputs, exported, in_a_line, size_step
from armarium.formats import REPORT, require_packages
from armarium.network import build_network
from tiny import REPO, settings

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'armarium[onnx]'")
EXTRA = {"metadata.json": '{"version": "1"}', "inference.json": "{}"}
SHAPE = [1, 1, 16, 16]
FORMATS = pytest.mark.parametrize("format", layout.FORMATS)


def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(settings()).network.eval()


def made(network: torch.nn.Module, format: str, shape=SHAPE, divisor=(2, 2), tolerance: float = 1e-4) -> tuple:
    """The file, or None, and the report."""
    part = exported(network.eval(), list(shape), format, tolerance, EXTRA, divisor)
    assert set(part) <= {REPORT, f"model.{format}"}
    return part.get(f"model.{format}"), json.loads(part[REPORT])


def runner(data: bytes, format: str):
    """What a user who has only the file gets of an image."""
    if format == "onnx":
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return lambda image: session.run(None, {"image": image.numpy()})[0]
    program = torch.export.load(io.BytesIO(data)).module()
    return lambda image: program(image).detach().numpy()


class Own(torch.nn.Module):
    """A network of a user's own, by what it does."""

    def __init__(self, does):
        super().__init__()
        self.layer, self.does = torch.nn.Conv2d(1, 2, 3, padding=1), does

    def forward(self, x):
        return self.does(self.layer, x)


def padded(layer, x):
    """As BasicUNet: what padding there is, is decided by each image's size."""
    half = torch.nn.functional.max_pool2d(layer(x), 2)
    up = torch.nn.functional.interpolate(half, scale_factor=2)
    if up.shape[-1] != x.shape[-1] or up.shape[-2] != x.shape[-2]:
        up = torch.nn.functional.pad(up, [0, x.shape[-1] - up.shape[-1], 0, x.shape[-2] - up.shape[-2]])
    return torch.cat([layer(x), up], 1)


@FORMATS
def test_a_file_gives_what_eager_gives_on_any_batch_and_grid_that_its_report_allows(format):
    network = unet()
    data, report = made(network, format)
    image = report["inputs"]["image"]
    assert report["exported"] and image["shape"] == ["batch", 1, "x", "y"]
    assert image["sizes"] == {"x": {"size": 16, "step": 2}, "y": {"size": 16, "step": 2}}
    assert [c["input_shape"] for c in report["compared"]] == [SHAPE, [3, 1, 18, 18]]
    assert report["max_abs_difference"] <= report["tolerance"] == 1e-4
    run = runner(data, format)
    for shape in (SHAPE, [2, 1, 34, 20]):
        x = torch.randn(shape)
        numpy.testing.assert_allclose(run(x), network(x).detach().numpy(), atol=1e-5)


def test_an_onnx_file_names_its_axes_and_carries_its_texts_and_nothing_of_this_machine():
    onnx = pytest.importorskip("onnx")
    data, report = made(unet(), "onnx")
    model = onnx.load_from_string(data)
    assert {p.key: p.value for p in model.metadata_props} == EXTRA
    for value in (*model.graph.input, *model.graph.output):
        named = [d.dim_param for d in value.type.tensor_type.shape.dim]
        assert named[0] == "batch" and value.name in ("image", "pred")
    assert report["opset"]["ai.onnx"] == model.opset_import[0].version
    assert str(REPO).encode() not in data and b"site-packages" not in data


def test_a_pt2_file_carries_its_texts_and_nothing_of_this_machine():
    data, _ = made(unet(), "pt2")
    texts = dict.fromkeys(EXTRA, "")
    torch.export.load(io.BytesIO(data), extra_files=texts)
    assert texts == EXTRA
    with zipfile.ZipFile(io.BytesIO(data)) as members:
        assert all(m.compress_type == zipfile.ZIP_STORED for m in members.infolist())
        content = b"".join(members.read(name) for name in members.namelist())
    assert str(REPO).encode() not in content and b"site-packages" not in content


@FORMATS
def test_a_network_that_takes_one_size_keeps_that_and_any_batch(format):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 2))
    data, report = made(network, format)
    assert report["inputs"]["image"] == {"shape": ["batch", 1, 16, 16], "dtype": "float32", "sizes": {}}
    x = torch.randn(5, 1, 16, 16)
    numpy.testing.assert_allclose(runner(data, format)(x), network(x).detach().numpy(), atol=1e-5)


def test_a_network_of_patches_is_not_taken_for_one_of_any_size():
    """A voxel more is no patch more."""

    class Patches(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Conv2d(1, 2, 8, stride=8)
            self.positions = torch.nn.Parameter(torch.zeros(1, 2, 2, 2))

        def forward(self, x):
            return (self.embed(x) + self.positions).flatten(2).mean(2)

    assert size_step(Patches(), SHAPE, [1, 1]) == []
    assert size_step(torch.nn.Conv2d(1, 1, 3, padding=1), SHAPE, [1, 1]) == [1, 1]


@FORMATS
def test_where_the_format_fixes_what_eager_decides_by_size_the_report_has_a_wider_step(format):
    data, report = made(Own(padded), format, divisor=(1, 1))
    assert report["inputs"]["image"]["sizes"]["x"] == {"size": 16, "step": 2}
    assert runner(data, format)(torch.randn(2, 1, 20, 24)).shape == (2, 4, 20, 24)


def test_only_the_first_of_several_outputs_is_exported():
    network = Own(lambda layer, x: (layer(x), [x]))
    data, report = made(network, "onnx")
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == report["outputs"] == ["pred"]


# ---- what cannot be


CANNOT = {
    "values decide": lambda layer, x: layer(x) if float(x.sum()) == 0.0 else layer(x) + float(x.mean()),
    "undefined": lambda layer, x: layer(x) / 0.0 * 0.0,
}


@FORMATS
@pytest.mark.parametrize("what", CANNOT)
def test_what_a_format_cannot_express_is_said_in_one_line_without_folders_of_this_machine(what, format):
    data, report = made(Own(CANNOT[what]), format)
    assert data is None and report["exported"] is False and report["format"] == format
    assert report["reason"] and "\n" not in report["reason"] and not re.search(r"/\w+/\w+", report["reason"])


def test_a_difference_beyond_tolerance_is_a_reason(monkeypatch):
    monkeypatch.setitem(WAYS, "onnx", dict(list(WAYS["onnx"].items())[:1]))
    _, report = made(unet(), "onnx", tolerance=1e-12)
    assert re.search(r"differs from eager by \S+ on input \[1, 1, 16, 16\].*raise export.tolerance", report["reason"])


def test_a_machine_without_memory_is_no_reason():
    def starved(layer, x):
        if torch.jit.is_tracing():
            raise MemoryError
        return layer(x)

    with pytest.raises(MemoryError):
        made(Own(starved), "onnx")


def test_an_error_is_told_by_its_first_line():
    error = ValueError("\n  no kernel in /home/me/venv/lib/torch/x.py:3\nfor this")
    assert in_a_line(error) == "ValueError: no kernel in x.py:3"


def test_steps_double_up_to_the_widest():
    steps = [taken.step for taken in Inputs([1, 1, 8, 8], [4, 12]).coarser()]
    assert steps == [[4, 12], [8, 24], [16, 48]]
    assert [taken.step for taken in Inputs([1, 1, 8, 8], []).coarser()] == [[]]


# ---- the same bytes


ELSEWHERE = """
import sys, pathlib
sys.path[:0] = {path!r}
import test_format_export as t
for name in t.layout.FORMATS:
    pathlib.Path(f"model.{{name}}").write_bytes(t.made(t.unet(), name)[0])
"""


def test_other_processes_write_the_same_bytes(tmp_path):
    """Another folder, hash seed, locale, home and temporary folder."""
    there, temporary = tmp_path / "a folder elsewhere", tmp_path / "temporary files"
    for folder in (there, temporary):
        folder.mkdir()
    path = [str(REPO / "tests/unit"), str(REPO / "workflow")]
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "TMPDIR": str(temporary), "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ELSEWHERE.format(path=path)],
        cwd=there,
        env={**bare, "PYTHONHASHSEED": "1234", "USER": "other"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in layout.FORMATS:
        assert (there / f"model.{name}").read_bytes() == made(unet(), name)[0], name


# ---- what must be installed


def test_a_missing_package_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else object())
    require_packages(["pt2"], "archives/a: export.formats")
    with pytest.raises(UserError, match=r"archives/a: export.formats: .*onnx needs onnxscript.*pip install onnxscript"):
        require_packages(["pt2", "onnx"], "archives/a: export.formats")
