"""Every part that an archive describes by a class of ClinicaDL's computes the same there."""

from __future__ import annotations

import pytest
import torch
from armarium.clinicadl_model import LOSSES, NETWORKS, OPTIMIZERS, network, supervised_model
from armarium.clinicadl_weights import to_clinicadl
from armarium.components import build
from armarium.network import Network

from .conftest import component

SMALL = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_RESNET = {"layers": [1, 2, 1, 1], "block_inplanes": [2, 4, 4, 8], "num_classes": 3, "bias_downsample": False}
_DENSE = {**SMALL, "init_features": 4, "growth_rate": 2, "block_config": [2, 2]}
_CLASSIFIER = {"in_shape": [1, 16, 12, 16], "channels": [3, 4], "strides": [2, 1], "num_res_units": 0}
_CHAIN = {**SMALL, "channels": [3, 4], "strides": [1, 1]}

EQUAL: dict[str, list[dict]] = {
    "ResNet": [
        {**_RESNET, "block": "basic", "n_input_channels": 1},
        {**_RESNET, "block": "bottleneck", "n_input_channels": 2, "conv1_t_size": [3, 5, 3], "conv1_t_stride": 2},
        {**_RESNET, "block": "basic", "n_input_channels": 1, "spatial_dims": 2, "act": "RELU", "norm": "batch"},
    ],
    "DenseNet": [_DENSE, {**_DENSE, "spatial_dims": 2, "bn_size": 2, "act": ["relu", {"inplace": True}]}],
    "DenseNet121": [{**SMALL, "spatial_dims": 2, "init_features": 4, "growth_rate": 1}],
    "DenseNet169": [{**SMALL, "spatial_dims": 2, "init_features": 4, "growth_rate": 1, "pretrained": False}],
    "DenseNet201": [{**SMALL, "spatial_dims": 2, "init_features": 4, "growth_rate": 1}],
    "Classifier": [
        {**_CLASSIFIER, "classes": 2},
        {**_CLASSIFIER, "classes": 3, "kernel_size": 5, "act": "relu", "norm": "batch", "bias": False},
    ],
    "Regressor": [{**_CLASSIFIER, "out_shape": [4], "in_shape": [2, 16, 12], "act": "LEAKYRELU"}],
    "AutoEncoder": [
        _CHAIN,
        {**_CHAIN, "inter_channels": [4, 5], "inter_dilations": [2, 3], "num_inter_units": 0, "up_kernel_size": 5},
        {**_CHAIN, "spatial_dims": 2, "norm": "batch", "act": "elu", "bias": False, "channels": [3], "strides": [1]},
    ],
}
"""Arguments for which MONAI's network and ClinicaDL's are compared; the rest of what is described is between these."""


def comparison(name: str, args: dict) -> dict:
    """A network of MONAI's with random weights and statistics, what it gives, and its description for ClinicaDL."""
    torch.manual_seed(0)
    described = component(name, **args)
    wrapped = Network(build("model", described)).double()  # else rounding, in another order, hides what is unequal
    with torch.no_grad():
        for value in wrapped.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5) if value.ndim == 1 else value.normal_(0, 0.3)
    axes = args.get("spatial_dims", len(args.get("in_shape", [0] * 4)) - 1)
    channels = args.get("in_channels", args.get("n_input_channels", args.get("in_shape", [1])[0]))
    grid = args["in_shape"][1:] if "in_shape" in args else [32, 36, 34][:axes]
    given = torch.randn(2, channels, *grid, dtype=torch.float64)
    weights = {k: v.clone() for k, v in wrapped.state_dict().items()}  # training mode changes statistics
    with torch.no_grad():
        outputs = {"eval": wrapped.eval()(given).clone(), "train": wrapped.train()(given).clone()}
    return {
        "config": network(described),
        "weights": to_clinicadl(described, weights),
        "input": given,
        **outputs,
    }


def test_every_network_that_is_described_is_compared():
    assert EQUAL.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", EQUAL)
def test_a_network_gives_the_same_outputs_with_the_renamed_weights(client, tmp_path, name):
    cases = [comparison(name, args) for args in EQUAL[name]]
    torch.save(cases, tmp_path / "cases.pt")
    for case, found in zip(cases, client.ask("compare_networks", cases=tmp_path / "cases.pt"), strict=True):
        scale = max(1.0, float(case["eval"].abs().max()), float(case["train"].abs().max()))
        assert found["keys"] == [], case["config"]
        assert max(found["eval"], found["train"]) <= 1e-10 * scale, (case["config"], found, scale)


LOSS_ARGS = {
    "CrossEntropyLoss": {"label_smoothing": 0.1},
    "SmoothL1Loss": {"beta": 0.3},
}


def settings_for(task: str, loss: dict, optimizer: dict) -> dict:
    one_hot = [component("AsDiscreted", keys="label", to_onehot=2)]
    section = {"pre_transforms": one_hot, "inferer": component("SimpleInferer"), "metrics": [], "post_transforms": []}
    return {
        **{"task": task, "loss": loss, "optimizer": optimizer, "pre_transforms": one_hot, "validate": section},
        "model": component("DenseNet", **_DENSE),
    }


def test_a_loss_gives_the_same_value_with_one_hot_labels(client, tmp_path):
    generator = torch.Generator().manual_seed(0)
    output, volume = (torch.randn(shape, generator=generator) for shape in ((5, 2), (3, 2, 4, 4, 4)))
    classes, mask = torch.tensor([0, 1, 1, 0, 1]), (torch.rand(3, 4, 4, 4, generator=generator) > 0.5).long()
    by_class, by_voxel = (torch.nn.functional.one_hot(x, 2).float() for x in (classes, mask))
    by_voxel = by_voxel.movedim(-1, 1).contiguous()
    numbers = torch.randn(5, 1, generator=generator)
    tasks = {
        "classification": (output, classes, by_class),
        "segmentation": (volume, by_voxel.byte(), by_voxel),
        "regression": (output[:, :1], numbers, numbers),
    }
    cases = []
    for name in LOSSES:
        for args in ({}, LOSS_ARGS.get(name, {})):
            for task, (given, ours, one_hot) in tasks.items():
                loss = component(name, **args)
                described, reasons = supervised_model(settings_for(task, loss, component("Adam")))
                assert ("loss" in reasons) == ((name == "CrossEntropyLoss") != (task == "classification"))
                if reasons:
                    continue
                value = build("loss", loss)(given, ours)
                cases.append({"config": described["loss"], "output": given, "label": one_hot, "value": value})
    torch.save(cases, tmp_path / "cases.pt")
    assert client.ask("compare_losses", cases=tmp_path / "cases.pt") == pytest.approx([0] * len(cases), abs=1e-6)


OPTIMIZER_ARGS = {"Adam": {"betas": [0.8, 0.99]}, "SGD": {"momentum": 0.9, "nesterov": True}, "Adagrad": {"lr": 0.5}}


def test_an_optimizer_is_built_with_the_same_arguments(client):
    components = [component(n, **a) for n in OPTIMIZERS for a in ({}, OPTIMIZER_ARGS.get(n, {"weight_decay": 0.1}))]
    described = [
        supervised_model(settings_for("classification", component("CrossEntropyLoss"), c))[0] for c in components
    ]
    built = client.ask("optimizer_groups", configs=[d["optimizer"] for d in described])
    for given, group in zip(components, built, strict=True):
        ours = build("optimizer", given, (), torch.nn.Linear(1, 1).parameters())
        plain = {k: v for k, v in ours.param_groups[0].items() if k != "params"}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
        assert group == {"class": given["name"], **plain}
