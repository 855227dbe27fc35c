"""What ClinicaDL's classes can express, without ClinicaDL: descriptions, reasons, and the names of weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from armarium.clinicadl_metrics import metrics
from armarium.clinicadl_model import FOREIGN, LOSSES, NETWORKS, OPTIMIZERS, Inexpressible, network, supervised_model
from armarium.clinicadl_weights import to_clinicadl, to_monai
from armarium.components import build
from armarium.maps import not_rebuilt
from armarium.network import Network
from tiny import REPO, component, settings

RESNET = {
    **{"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [2, 2, 2, 2], "spatial_dims": 2},
    **{"n_input_channels": 1, "num_classes": 2, "bias_downsample": False},
}
CHAIN = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [3], "strides": [1]}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def adrenal(change=None) -> dict:
    conf = json.loads((REPO / "config/recipes/adrenal/config/config_train.json").read_text())
    if change:
        change(conf)
    return settings(conf, task="classification")


def weights_of(described: dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return Network(build("model", described)).state_dict()


def block(layer: int) -> list[str]:
    """ClinicaDL's names in a ResNet's layer of one basic block."""
    name = f"network.layer{layer}.0"
    parts = [f"{name}.conv1.weight", *(f"{name}.norm1.{n}" for n in NORM)]
    parts += [f"{name}.conv2.weight", *(f"{name}.norm2.{n}" for n in NORM)]
    return parts + ([f"{name}.downsample.0.weight", *(f"{name}.downsample.1.{n}" for n in NORM)] if layer > 1 else [])


RECORDED = {
    "ResNet": (
        RESNET,
        [
            "network.conv0.weight",
            *(f"network.norm0.{n}" for n in NORM),
            *(name for layer in (1, 2, 3, 4) for name in block(layer)),
            *("network.fc.out.weight", "network.fc.out.bias"),
        ],
    ),
    "AutoEncoder": (
        {**CHAIN, "inter_channels": [4], "inter_dilations": [2], "num_inter_units": 0},
        [
            *("network.layer0.conv.weight", "network.layer0.conv.bias", "network.layer0.adn.A.weight"),
            *("network.layer1.conv.weight", "network.layer1.conv.bias", "network.layer1.adn.A.weight"),
            *("network.layer2.conv.weight", "network.layer2.conv.bias"),
        ],
    ),
    "Classifier": (
        {"in_shape": [1, 8, 8], "classes": 2, "channels": [2, 3], "strides": [2, 1], "num_res_units": 0},
        [
            *("network.convolutions.layer0.conv.weight", "network.convolutions.layer0.conv.bias"),
            "network.convolutions.layer0.adn.A.weight",
            *("network.convolutions.layer1.conv.weight", "network.convolutions.layer1.conv.bias"),
            *("network.mlp.output.linear.weight", "network.mlp.output.linear.bias"),
        ],
    ),
}
"""ClinicaDL 2.0.0's own names, in its order."""


@pytest.mark.parametrize("name", RECORDED)
def test_weights_get_the_names_that_clinicadl_gives_them(name):
    args, wanted = RECORDED[name]
    assert list(to_clinicadl(component(name, **args), weights_of(component(name, **args)))) == wanted


@pytest.mark.parametrize(
    ("name", "args"),
    [
        *((name, args) for name, (args, _) in RECORDED.items()),
        ("DenseNet", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "block_config": [1], "init_features": 2}),
    ],
)
def test_weights_come_back_to_the_bit(name, args):
    described = component(name, **args)
    weights = weights_of(described)
    back = to_monai(described, to_clinicadl(described, weights))
    assert list(back) == list(weights) and all(torch.equal(back[k], v) for k, v in weights.items())
    assert all(v.is_contiguous() for v in back.values())


def test_a_chain_with_turned_kernels_computes_the_same():
    described = component("AutoEncoder", **CHAIN)
    wrapped = Network(build("model", described))
    weights = to_clinicadl(described, wrapped.state_dict())
    x = torch.randn(1, 1, 9, 7, generator=torch.Generator().manual_seed(0))
    first = wrapped.network.encode(x)
    bare = torch.nn.functional.conv2d(
        first, weights["network.layer1.conv.weight"], weights["network.layer1.conv.bias"], padding=1
    )
    assert torch.allclose(bare, wrapped(x), atol=1e-6)


def test_a_network_that_clinicadl_has_not_keeps_its_names():
    described = component("ResNet", **{**RESNET, "no_max_pool": True})
    weights = weights_of(described)
    assert list(to_clinicadl(described, weights)) == list(weights) == list(to_monai(described, weights))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("UNet", {}, "no class that computes the same"),
        ("ResNet", {"no_max_pool": True}, "no_max_pool is True"),
        ("ResNet", {"bias_downsample": True}, "bias_downsample is True"),
        ("ResNet", {"shortcut_type": "A"}, "shortcut_type is 'A'"),
        ("ResNet", {"widen_factor": 2.0}, "widen_factor is 2.0"),
        ("ResNet", {"act": "prelu"}, "act is 'prelu'"),
        ("ResNet", {"norm": ["group", {"num_groups": 1}]}, "arguments of its own"),
        ("ResNet", {"block": ["basic"]}, r"block is \['basic'\]"),
        ("ResNet", {"surprise": 1}, "argument surprise"),
        ("DenseNet121", {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "pretrained": True}, "pretrained"),
        ("DenseNet", {"spatial_dims": 1, "in_channels": 1, "out_channels": 2}, "spatial_dims is 1"),
        ("Classifier", {**RECORDED["Classifier"][0], "num_res_units": 2}, "num_res_units is 2"),
        ("Classifier", {**RECORDED["Classifier"][0], "last_act": "softmax"}, "last_act is 'softmax'"),
        ("Classifier", {**RECORDED["Classifier"][0], "kernel_size": 4}, "one odd number"),
        ("AutoEncoder", {**CHAIN, "strides": [2]}, r"strides is \[2\]"),
        ("AutoEncoder", {**CHAIN, "inter_channels": [2]}, "num_inter_units is 2"),
    ],
)
def test_what_computes_otherwise_is_not_described(name, change, reason):
    args = {**RESNET, **change} if name == "ResNet" else change
    with pytest.raises(Inexpressible, match=reason):
        network(component(name, **args))


def test_the_adrenal_recipe_is_rebuilt_but_for_its_schedule_and_its_data():
    described, reasons = supervised_model(adrenal())
    assert not reasons and not metrics(adrenal())[1]
    names = [described["name_"], *(described[part]["name_"] for part in ("network", "loss", "optimizer", "inferer"))]
    assert names == ["SupervisedModel", "ResNet", "CrossEntropyLoss", "Adam", "SimpleInferer"]
    lines = not_rebuilt(adrenal())
    assert len(lines) == 2 and "lr_scheduler OneCycleLR" in lines[0] and "dataset.json" in lines[1]


def test_what_the_demo_has_is_named_with_its_arguments():
    described, reasons = supervised_model(settings())
    assert described["network"]["name_"] == FOREIGN and described["network"]["name"] == "UNet"
    assert described["optimizer"] == {"name_": FOREIGN, **settings()["optimizer"]}
    assert reasons.keys() == {"network", "loss", "optimizer"}
    assert "UNet {'spatial_dims': 2" in reasons["network"]


def test_a_weighted_loss_would_weigh_one_hot_labels_otherwise():
    given = adrenal(lambda c: c["train"]["loss"]["args"].update(weight=[1.0, 2.0]))
    assert "weight is [1.0, 2.0]" in supervised_model(given)[1]["loss"]


def test_segmentation_needs_one_hot_labels():
    conf_loss = {"loss": component("MSELoss"), "model": component("AutoEncoder", **CHAIN)}
    assert "one-hot label volumes" in supervised_model(settings(**conf_loss))[1]["loss"]


def with_metrics(*names: str, outputs: int = 2) -> dict:
    def change(conf: dict) -> None:
        conf["train"]["model"]["args"]["num_classes"] = outputs
        conf["validate"]["key_metric"] = component(names[0])
        conf["validate"]["additional_metrics"] = [component(n) for n in names[1:]]

    return adrenal(change)


def test_a_softmax_that_would_come_twice_is_left_to_the_first_metric():
    described, reasons = metrics(with_metrics("ROCAUC", "Accuracy"))
    assert list(described) == ["loss", "ROCAUC", "Accuracy"] and not reasons
    transforms = [t["name_"] for t in described["Accuracy"]["postprocessing"]["transforms"]]
    assert transforms == ["Activations", "AsDiscrete", "AsDiscrete"]
    assert "second softmax" in metrics(with_metrics("Accuracy", "ROCAUC"))[1]["ROCAUC"]


def test_accuracy_of_three_classes_is_another_number_there():
    assert "one class against the rest" in metrics(with_metrics("Accuracy", outputs=3))[1]["Accuracy"]


def test_distances_and_padded_grids_are_not_claimed():
    conf = json.loads((REPO / "config/recipes/unet_small/config/config_train.json").read_text())
    described, reasons = metrics(settings(conf))
    assert "DivisiblePadd may change the grid" in reasons["MeanDice"]
    assert "in voxels" in reasons["HausdorffDistance"]
    assert described["HausdorffDistance"]["pred_key"].startswith("HausdorffDistance, which is not ClinicaDL's")


DOCUMENT = REPO / "docs/clinicadl.md"


def rows_of(heading: str) -> dict[str, str]:
    """A table of docs/clinicadl.md: first column's code names to the row."""
    section = DOCUMENT.read_text().split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return {name: line for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])}


def test_the_document_names_what_is_described():
    rows = rows_of("What it rebuilds")
    scores = {"ROCAUC", "AveragePrecision", "Accuracy", "MeanDice", "MeanIoUHandler"}
    scores |= {"MeanAbsoluteError", "MeanSquaredError"}
    assert rows.keys() == {*NETWORKS, *LOSSES, *OPTIMIZERS, "SimpleInferer", *scores}


def test_every_weakness_names_tests_that_exist():
    section = DOCUMENT.read_text().split("## Where ClinicaDL", 1)[1]
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", section)
    assert len({row for row in section.splitlines() if row.startswith("| ")}) >= 8
    for path, test in named:
        assert re.search(rf"^def {test}\(", Path(REPO, path).read_text(), re.M), f"{path}::{test}"
