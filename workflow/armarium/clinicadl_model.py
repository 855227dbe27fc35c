"""What of a recipe's model ClinicaDL 2.0.0 has classes for: the parts of model.json. No torch.

ClinicaDL's networks are forks of MONAI's, so a name says little: a part is described by a class of ClinicaDL's only where
that class computes the same (tests/clinicadl compares every one with the real ClinicaDL). ClinicaDL refuses unknown and
missing keys; hence each description has all the fields of its class, in the order ClinicaDL writes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .dataset import CLASSIFICATION, SEGMENTATION
from .multi_label import is_multi_label

PARTS = ("network", "loss", "optimizer", "inferer")
FOREIGN = "NotInClinicaDL"
"""What stands for the class of a part that ClinicaDL has none for: it then says which part it cannot read."""


class Inexpressible(Exception):
    """ClinicaDL has no class that computes what a part does; the message says why."""


# ---- arguments


_REQUIRED = object()


def _arguments(given: dict, **defaults: Any) -> dict:
    """A component's arguments, completed with what its class takes for those that are left out."""
    if unknown := sorted(given.keys() - defaults.keys()):
        raise Inexpressible(f"argument {unknown[0]} is not one that ClinicaDL has")
    found = {**defaults, **given}
    if missing := [k for k, v in found.items() if v is _REQUIRED]:
        raise Inexpressible(f"argument {missing[0]} is not given")
    return found


def _only(found: dict, **possible: Any) -> None:
    for name, value in possible.items():
        if found[name] != value or isinstance(found[name], bool) != isinstance(value, bool):
            raise Inexpressible(f"{name} is {found[name]!r}; ClinicaDL has it only with {value!r}")


def _name_of_layer(value: Any) -> str:
    """``"relu"`` of ``"RELU"`` or ``["relu", {"inplace": True}]``; in place or not is the same result."""
    name, args = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value, {})
    if not isinstance(name, str) or not isinstance(args, dict) or args.keys() - {"inplace"}:
        raise Inexpressible(f"layer {value!r} has arguments of its own")
    return name.lower()


def _one_of(value: Any, where: str, *possible: str) -> str:
    name = _name_of_layer(value)
    if name not in possible:
        raise Inexpressible(f"{where} is {value!r}; ClinicaDL has {' or '.join(possible)}")
    return name


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _counts(value: Any, where: str, length: int | None = None) -> list[int]:
    if not isinstance(value, (list, tuple)) or not all(map(_is_count, value)) or length not in (None, len(value)):
        raise Inexpressible(f"{where} is {value!r}; wanted {length or 'a list of'} whole numbers above 0")
    return list(value)


def _each_axis(value: Any, where: str, axes: int) -> list[int]:
    return _counts([value] * axes if isinstance(value, int) else value, where, axes)


def _volume(axes: Any) -> int:
    if axes not in (2, 3):
        raise Inexpressible(f"spatial_dims is {axes!r}; ClinicaDL has it for 2 and 3")
    return axes


# ---- networks


_RELU = ["relu", {"inplace": True}]
_BLOCKS = {"basic": 1, "bottleneck": 4}
"""How many times as many features a ResNet block gives as its inner convolutions have."""
_ACTIVATIONS = ("prelu", "relu", "leakyrelu", "elu", "selu", "tanh", "sigmoid")
_NORMS = ("instance", "batch")


def _resnet(given: dict) -> dict:
    found = _arguments(
        given,
        **{"block": _REQUIRED, "layers": _REQUIRED, "block_inplanes": _REQUIRED, "spatial_dims": 3},
        **{"n_input_channels": 3, "conv1_t_size": 7, "conv1_t_stride": 1, "no_max_pool": False, "shortcut_type": "B"},
        **{"widen_factor": 1.0, "num_classes": 400, "feed_forward": True, "bias_downsample": True},
        **{"act": "relu", "norm": "batch"},
    )
    _only(found, no_max_pool=False, shortcut_type="B", widen_factor=1.0, feed_forward=True, bias_downsample=False)
    _one_of(found["act"], "act", "relu")
    _one_of(found["norm"], "norm", "batch")
    if not isinstance(found["block"], str) or found["block"] not in _BLOCKS:
        raise Inexpressible(f"block is {found['block']!r}; ClinicaDL has basic and bottleneck")
    axes, widening = _volume(found["spatial_dims"]), _BLOCKS[found["block"]]
    return {
        "name_": "ResNet",
        "spatial_dims": axes,
        "in_channels": found["n_input_channels"],
        "num_outputs": found["num_classes"],
        "block_type": found["block"],
        "n_res_blocks": _counts(found["layers"], "layers", 4),
        "n_features": [n * widening for n in _counts(found["block_inplanes"], "block_inplanes", 4)],
        "init_conv_size": _each_axis(found["conv1_t_size"], "conv1_t_size", axes),
        "init_conv_stride": _each_axis(found["conv1_t_stride"], "conv1_t_stride", axes),
        "bottleneck_reduction": widening,
        "act": _RELU,
        "output_act": None,
    }


_DENSE_BLOCKS = {
    "DenseNet": [6, 12, 24, 16],
    "DenseNet121": [6, 12, 24, 16],
    "DenseNet169": [6, 12, 32, 32],
    "DenseNet201": [6, 12, 48, 32],
}


def _densenet(name: str) -> Callable[[dict], dict]:
    def described(given: dict) -> dict:
        loading = {} if name == "DenseNet" else {"pretrained": False, "progress": True}
        found = _arguments(
            given,
            **{"spatial_dims": _REQUIRED, "in_channels": _REQUIRED, "out_channels": _REQUIRED, "init_features": 64},
            **{"growth_rate": 32, "block_config": _DENSE_BLOCKS[name], "bn_size": 4, "act": "relu", "norm": "batch"},
            **{"dropout_prob": 0.0, **loading},
        )
        _only(found, **({"pretrained": False} if loading else {}))
        _one_of(found["act"], "act", "relu")
        _one_of(found["norm"], "norm", "batch")
        return {
            "name_": "DenseNet",
            "dropout": found["dropout_prob"] or None,
            "spatial_dims": _volume(found["spatial_dims"]),
            "in_channels": found["in_channels"],
            "num_outputs": found["out_channels"],
            "n_dense_layers": _counts(found["block_config"], "block_config"),
            "init_features": found["init_features"],
            "growth_rate": found["growth_rate"],
            "bottleneck_factor": found["bn_size"],
            "act": _RELU,
            "output_act": None,
        }

    return described


def _convolutions(layers: list[dict], axes: int, found: dict) -> dict:
    """ClinicaDL's ``ConvEncoderOptions``: a chain of convolutions without pooling, the last one bare."""
    spread = {k: [[layer[k]] * axes for layer in layers] for k in ("kernel_size", "stride", "padding", "dilation")}
    return {
        "dropout": found["dropout"],
        "channels": [layer["channels"] for layer in layers],
        **spread,
        "norm": _one_of(found["norm"], "norm", *_NORMS),
        "adn_ordering": "NDA",
        "pooling": None,
        "pooling_indices": [],
        "act": _one_of(found["act"], "act", *_ACTIVATIONS),
        "output_act": None,
        "bias": found["bias"],
    }


def _layer(channels: int, kernel: Any, stride: int = 1, dilation: int = 1) -> dict:
    if not _is_count(kernel) or not kernel % 2:
        raise Inexpressible(f"kernel size is {kernel!r}; ClinicaDL pads by a fixed width, so wanted one odd number")
    padding = (kernel - 1) // 2 * dilation
    return {
        "channels": channels,
        "kernel_size": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }


_CHAIN = {"kernel_size": 3, "act": "prelu", "norm": "instance", "dropout": None, "bias": True}


def _cnn(outputs: str) -> Callable[[dict], dict]:
    """MONAI's Classifier (its ``outputs`` are ``classes``) and Regressor (``out_shape``)."""

    def described(given: dict) -> dict:
        needed = {"in_shape": _REQUIRED, outputs: _REQUIRED, "channels": _REQUIRED, "strides": _REQUIRED}
        last = {"last_act": None} if outputs == "classes" else {}
        found = _arguments(given, **needed, **_CHAIN, num_res_units=2, **last)
        _only(found, num_res_units=0, **last)
        shape = _counts(found["in_shape"], "in_shape")
        axes = _volume(len(shape) - 1)
        channels = _counts(found["channels"], "channels")
        strides = _counts(found["strides"], "strides", len(channels))
        count = found[outputs] if outputs == "classes" else _counts(found[outputs], outputs, 1)[0]
        layers = [_layer(c, found["kernel_size"], s) for c, s in zip(channels, strides, strict=True)]
        dense = {"dropout": None, "hidden_dims": [], "act": "prelu", "output_act": None, "norm": "batch", "bias": True}
        return {
            "name_": "CNN",
            "in_shape": shape,
            "num_outputs": count,
            "conv_args": _convolutions(layers, axes, found),
            "mlp_args": {**dense, "adn_ordering": "NDA"},
        }

    return described


def _autoencoder(given: dict) -> dict:
    """MONAI's AutoEncoder where nothing is strided: a chain of convolutions, the last ones written transposed."""
    found = _arguments(
        given,
        **{"spatial_dims": _REQUIRED, "in_channels": _REQUIRED, "out_channels": _REQUIRED, "channels": _REQUIRED},
        **{"strides": _REQUIRED, **_CHAIN, "up_kernel_size": 3, "num_res_units": 0, "inter_channels": None},
        **{"inter_dilations": None, "num_inter_units": 2, "padding": None},
    )
    _only(found, num_res_units=0, padding=None)
    channels, between = _counts(found["channels"], "channels"), _counts(found["inter_channels"] or [], "inter_channels")
    _only(found, strides=[1] * len(channels))
    if between:
        _only(found, num_inter_units=0)
    dilations = _counts(found["inter_dilations"] or [1] * len(between), "inter_dilations", len(between))
    layers = [_layer(c, found["kernel_size"]) for c in channels]
    layers += [_layer(c, found["kernel_size"], dilation=d) for c, d in zip(between, dilations, strict=True)]
    layers += [_layer(c, found["up_kernel_size"]) for c in [*channels[-2::-1], found["out_channels"]]]
    axes = _volume(found["spatial_dims"])
    options = _convolutions(layers, axes, found)
    return {"name_": "ConvEncoder", "spatial_dims": axes, **options, "in_channels": found["in_channels"]}


NETWORKS: dict[str, Callable[[dict], dict]] = {
    "ResNet": _resnet,
    **{name: _densenet(name) for name in _DENSE_BLOCKS},
    "Classifier": _cnn("classes"),
    "Regressor": _cnn("out_shape"),
    "AutoEncoder": _autoencoder,
}
"""MONAI's networks that one of ClinicaDL's computes, for some of their arguments."""


# ---- losses, optimizers, inferer


LOSSES = {
    "CrossEntropyLoss": {"weight": None, "ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0},
    "MSELoss": {"reduction": "mean"},
    "L1Loss": {"reduction": "mean"},
    "SmoothL1Loss": {"reduction": "mean", "beta": 1.0},
}
_FREE = {"label_smoothing", "beta"}
"""Arguments of a loss that may have any value: class weights would weigh one-hot labels otherwise than class numbers."""

_SWITCHES = {"foreach": None, "maximize": False, "differentiable": False}
OPTIMIZERS = {
    "Adam": {
        **{"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False},
        **{**_SWITCHES, "capturable": False, "fused": None},
    },
    "SGD": {
        **{"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
        **{**_SWITCHES, "fused": None},
    },
    "RMSprop": {
        **{"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
        **{**_SWITCHES, "capturable": False},
    },
    "Adagrad": {
        **{"lr": 1e-2, "lr_decay": 0.0, "weight_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10},
        **{**_SWITCHES, "fused": None},
    },
    "Adadelta": {
        **{"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0.0},
        **{**_SWITCHES, "capturable": False},
    },
}
"""torch's, with their defaults; ClinicaDL builds the same class with the same arguments."""

SIMPLE_INFERER = {
    "name_": "SimpleInferer",
    "postprocessing": {"name_": "PostprocessingHandler", "transforms": []},
    "postprocessing_on_cpu": False,
    "output_name": "output",
    "output_type": "tensor",
}


def _loss(settings: dict) -> dict:
    if is_multi_label(settings):
        raise Inexpressible("classes that may occur together are not compared with ClinicaDL's")
    name, given = _named(settings["loss"], LOSSES)
    found = _arguments(given, **LOSSES[name])
    _only(found, **{k: v for k, v in LOSSES[name].items() if k not in _FREE})
    # Label volumes are whole numbers here, of which torch takes no cross entropy.
    of_classes, task = name == "CrossEntropyLoss", settings["task"]
    if of_classes != (task == CLASSIFICATION):
        raise Inexpressible(f"for a {task}, the two need other labels")
    sections = (settings, settings["validate"])
    if task == SEGMENTATION and not all(_is_one_hot(section["pre_transforms"]) for section in sections):
        raise Inexpressible("ClinicaDL needs one-hot label volumes: AsDiscreted of the label with to_onehot")
    return {"name_": name, **found}


def _is_one_hot(transforms: list[dict]) -> bool:
    return any(
        t.get("name") == "AsDiscreted" and t["args"].get("keys") in ("label", ["label"]) and t["args"].get("to_onehot")
        for t in transforms
    )


def _optimizer(settings: dict) -> dict:
    name, given = _named(settings["optimizer"], OPTIMIZERS)
    if texts := [k for k, v in given.items() if isinstance(v, str)]:
        raise Inexpressible(f"{texts[0]} is known only when training starts")
    return {"name_": name, "freeze": None, **_arguments(given, **OPTIMIZERS[name])}


def _inferer(settings: dict) -> dict:
    _named(settings["validate"]["inferer"], ("SimpleInferer",))
    return SIMPLE_INFERER


def network(component: dict) -> dict:
    """ClinicaDL's description of a network that a recipe names.

    Raises
    ------
    Inexpressible
        If none of ClinicaDL's networks computes the same.
    """
    name, given = _named(component, NETWORKS)
    return NETWORKS[name](given)


def _named(component: dict, known: Any) -> tuple[str, dict]:
    name = component.get("name")
    if not isinstance(name, str) or name not in known:
        raise Inexpressible("ClinicaDL has no class that computes the same")
    return name, component["args"]


_DESCRIBED = {
    "network": lambda settings: network(settings["model"]),
    "loss": _loss,
    "optimizer": _optimizer,
    "inferer": _inferer,
}
_SOURCE = {
    "network": lambda settings: settings["model"],
    "loss": lambda settings: settings["loss"],
    "optimizer": lambda settings: settings["optimizer"],
    "inferer": lambda settings: settings["validate"]["inferer"],
}


def supervised_model(settings: dict) -> tuple[dict, dict[str, str]]:
    """``model.json`` as ClinicaDL's ``SupervisedModel`` reads it, and why it cannot read some parts.

    A part without a class of ClinicaDL's is there as the recipe has it, under :data:`FOREIGN`.

    Parameters
    ----------
    settings:
        The effective training configuration.

    Returns
    -------
    dict
        The description.
    dict
        Reasons by part; empty where ClinicaDL rebuilds the whole model.
    """
    parts, reasons = {}, {}
    for part in PARTS:
        try:
            parts[part] = _DESCRIBED[part](settings)
        except Inexpressible as reason:
            component = _SOURCE[part](settings)
            parts[part] = {"name_": FOREIGN, **component}
            reasons[part] = f"{component.get('name') or component['path']} {component['args']}: {reason}"
    return {"name_": "SupervisedModel", **parts, "label_key": "label"}, reasons
