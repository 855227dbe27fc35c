"""The names that ClinicaDL's networks give to weights, and back.

ClinicaDL's networks compute what MONAI's do under other names. Where :mod:`armarium.clinicadl_model` has a network's
description, run.zip and the checkpoints cut from it have ClinicaDL's names, so that ``Trainer.from_maps`` loads them;
the MMAR's and the bundle's files have MONAI's. torch's tensors are handled, torch is not imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .clinicadl_model import Inexpressible, network

PREFIX = "network."
_NUMBER = "(\\d+)"

_FIXED = {
    "ResNet": [("conv1.", "conv0."), ("bn1.", "norm0."), ("layer#.#.bn#.", "layer#.#.norm#."), ("fc.", "fc.out.")],
    "DenseNet": [("class_layers.", "fc.")],
    "CNN": [("net.layer_#.", "convolutions.layer#."), ("final.1.", "mlp.output.linear.")],
}
"""MONAI's beginning of a name and ClinicaDL's, by ClinicaDL's class; ``#`` is a number that stays."""


def _chain_names(args: Mapping[str, Any]) -> tuple[list[tuple[str, str]], range]:
    """Of an AutoEncoder without strides, and which of ClinicaDL's layers MONAI has as transposed convolutions."""
    down, between = len(args["channels"]), len(args.get("inter_channels") or [])
    layers = [f"encode.encode_{i}." for i in range(down)] + [f"intermediate.inter_{i}." for i in range(between)]
    layers += [f"decode.decode_{i}.conv." for i in range(down)]
    return [(name, f"layer{i}.") for i, name in enumerate(layers)], range(down + between, len(layers))


def _names(component: dict) -> tuple[list[tuple[str, str]], set[str]] | None:
    """Beginnings of names, and the names (ClinicaDL's) of the kernels that are turned."""
    try:
        kind = network(component)["name_"]
    except Inexpressible:
        return None
    if kind in _FIXED:
        return _FIXED[kind], set()
    pairs, transposed = _chain_names(component["args"])
    return pairs, {f"{PREFIX}layer{i}.conv.weight" for i in transposed}


def to_clinicadl(component: dict, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under ClinicaDL's names, where it has the network; else as they are.

    Parameters
    ----------
    component:
        The recipe's network.
    weights:
        Tensors by MONAI's names with ``network.`` before them.
    """
    if (names := _names(component)) is None:
        return dict(weights)
    pairs, turned = names
    renamed = {_renamed(k, pairs): v for k, v in weights.items()}
    return {k: _turned(v) if k in turned else v for k, v in renamed.items()}


def to_monai(component: dict, weights: Mapping[str, Any]) -> dict[str, Any]:
    """The way back from :func:`to_clinicadl`, exact to the bit."""
    turned = turned_kernels(component)
    return {monai_name(component, k): _turned(v) if k in turned else v for k, v in weights.items()}


def turned_kernels(component: dict) -> set[str]:
    """The names (ClinicaDL's) of the tensors that are not MONAI's but for their name."""
    return set() if (names := _names(component)) is None else names[1]


def monai_name(component: dict, name: str) -> str:
    """MONAI's name of a tensor that has ClinicaDL's."""
    if (names := _names(component)) is None:
        return name
    return _renamed(name, [(clinicadl, monai) for monai, clinicadl in names[0]])


def _renamed(key: str, pairs: Iterable[tuple[str, str]]) -> str:
    for before, after in pairs:
        pattern = re.escape(f"{PREFIX}{before}").replace("\\#", _NUMBER)
        if found := re.match(pattern, key):
            numbers = iter(found.groups())
            return PREFIX + "".join(next(numbers) if c == "#" else c for c in after) + key[found.end() :]
    return key


def _turned(kernel: Any) -> Any:
    """A transposed convolution's kernel ``[in, out, *size]`` as the plain one's that does the same, and back.

    With stride 1 and "same" padding a transposed convolution is the convolution with the kernel mirrored in space.
    """
    if kernel.ndim < 3:
        return kernel
    return kernel.transpose(0, 1).flip(*range(2, kernel.ndim)).contiguous()
