"""What docs/exports.md says of networks and formats: each is tried, small. All of them are slow."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from armarium import layout
from armarium.format_export import exported
from armarium.formats import REPORT
from monai.networks import nets

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/exports.md"
GRID = 32
SMALL = {
    "UNet": {"in_channels": 1, "out_channels": 2, "channels": [4, 8, 8], "strides": [2, 2], "num_res_units": 1},
    "BasicUNet": {"in_channels": 1, "out_channels": 2, "features": (4, 4, 8, 8, 8, 4)},
    "DynUNet": {
        "in_channels": 1,
        "out_channels": 2,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 8],
    },
    "SegResNet": {
        "in_channels": 1,
        "out_channels": 2,
        "init_filters": 8,
        "blocks_down": (1, 1, 1),
        "blocks_up": (1, 1),
    },
    "AttentionUnet": {"in_channels": 1, "out_channels": 2, "channels": [4, 8, 8], "strides": [2, 2]},
    "VNet": {"in_channels": 1, "out_channels": 2},
    "DenseNet": {"in_channels": 1, "out_channels": 2, "init_features": 4, "growth_rate": 4, "block_config": (1, 1)},
    "ResNet": {
        "block": "basic",
        "layers": [1, 1, 1, 1],
        "block_inplanes": [4, 4, 8, 8],
        "n_input_channels": 1,
        "num_classes": 2,
    },
    "SEResNet50": {"in_channels": 1, "num_classes": 2},
    "EfficientNetBN": {"model_name": "efficientnet-b0", "in_channels": 1, "num_classes": 2, "pretrained": False},
    "UNETR": {
        "in_channels": 1,
        "out_channels": 2,
        "img_size": GRID,
        "feature_size": 4,
        "hidden_size": 12,
        "mlp_dim": 16,
        "num_heads": 2,
    },
    "ViT": {
        "in_channels": 1,
        "img_size": GRID,
        "patch_size": 8,
        "hidden_size": 12,
        "mlp_dim": 16,
        "num_layers": 2,
        "num_heads": 2,
        "classification": True,
        "num_classes": 2,
    },
}
"""The networks of MONAI that TorchScript can express, as small as they go."""


def table() -> dict[str, list[str]]:
    """By network, what the document says of each of ``layout.FORMATS``."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", DOCUMENT.read_text(encoding="utf-8").partition("### Which")[2], re.M)
    return {name: cells.split(" | ") for name, cells in rows if name in SMALL}


def in_words(report: dict) -> str:
    """A report as the table has it."""
    if not report["exported"]:
        return "no"
    sizes = report["inputs"]["image"]["sizes"].values()
    steps = {size["step"] for size in sizes}
    assert len(steps) <= 1
    return f"any grid of step {steps.pop()}" if steps else "its own grid"


def test_the_table_has_every_network():
    assert table().keys() == SMALL.keys() and {len(row) for row in table().values()} == {len(layout.FORMATS)}


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", SMALL)
def test_a_network_is_exported_as_the_table_says(name, dims):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'armarium[onnx]'")
    if name in ("UNETR", "ViT") and find_spec("einops") is None:
        pytest.skip("einops, which MONAI's transformers need, is not installed: pip install einops")
    found = [in_words(reported(name, dims, format)) for format in layout.FORMATS]
    assert found == table()[name]


@pytest.mark.parametrize(("name", "format"), [("ResNet", "onnx"), ("DenseNet", "pt2")])
def test_so_are_small_ones_of_three_axes(name, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'armarium[onnx]'")
    assert in_words(reported(name, 3, format)) == table()[name][layout.FORMATS.index(format)]


def reported(name: str, dims: int, format: str) -> dict:
    """What the export of a network says of itself."""
    torch.manual_seed(0)
    args = {k: [v] * dims if k in ("img_size", "patch_size") else v for k, v in SMALL[name].items()}
    network = getattr(nets, name)(spatial_dims=dims, **args).eval()
    report = json.loads(exported(network, [1, 1, *[GRID] * dims], format, 1e-4, {}, [1] * dims)[REPORT])
    print(name, dims, format, report.get("method"), report.get("max_abs_difference"), report.get("reason"))
    return report
