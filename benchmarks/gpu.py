"""Training on a GPU: a small network and one that fills it, as a recipe stands and with what it may ask for.

Where torch sees no CUDA nothing is measured, and that is said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .measuring import show
from .training import COLUMNS, RECIPE, compared, peers, prepared, settings_of, table, transforms_of

AT_ONCE = {"batched_augmentation": True}
GRAPHS = {**AT_ONCE, "cuda_graphs": True}
BY_WORKERS = {"num_workers": max(1, min(8, (os.cpu_count() or 2) - 1))}


@dataclass(frozen=True)
class Network:
    """What is trained: the network's arguments, patch and volume in voxels, cases of an epoch, and ours by name."""

    name: str
    model: dict
    patch: list[int]
    shape: list[int]
    cases: int
    amp: bool
    ours: dict[str, tuple[str, dict]]


def unet(channels: list[int], units: int) -> dict:
    """A MONAI UNet that halves its grid at each level."""
    given = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "norm": "instance", "num_res_units": units}
    return {"name": "UNet", "args": {**given, "channels": channels, "strides": [2] * (len(channels) - 1)}}


OURS = {
    "as it stands": ("own", {}),
    "loader processes": ("own", BY_WORKERS),
    "loader processes, affine": ("affine", BY_WORKERS),
    "batched augmentation": ("own", AT_ONCE),
    "batched augmentation, affine": ("affine", AT_ONCE),
}
NETWORKS = [
    Network(
        "a small network (the hippocampus recipe's)",
        unet([16, 32, 64, 128], 1),
        [40, 56, 40],
        [36, 50, 36],
        200,
        False,
        {
            "no augmentation": ("none", AT_ONCE),
            **OURS,
            "no augmentation, CUDA graphs": ("none", GRAPHS),
            "batched augmentation, CUDA graphs": ("own", GRAPHS),
            "batched augmentation, CUDA graphs, channels last": ("own", {**GRAPHS, "channels_last": True}),
            "batched augmentation, CUDA graphs, compiled": ("own", {**GRAPHS, "compile": True}),
        },
    ),
    Network(
        "a network that fills a GPU (UNet of 32 to 320 channels, patches of 128³, mixed precision)",
        unet([32, 64, 128, 256, 320], 2),
        [128, 128, 128],
        [136, 136, 136],
        24,
        True,
        {
            "no augmentation": ("none", {}),
            **OURS,
            "batched augmentation, channels last": ("own", {**AT_ONCE, "channels_last": True}),
            "batched augmentation, compiled": ("own", {**AT_ONCE, "compile": True}),
        },
    ),
]


def contenders(network: Network, task: dict, recipe: dict) -> dict[str, tuple[str, dict, str]]:
    """Module, task and interpreter of each by name."""
    found = {"bare loop": ("bare", task, sys.executable)}
    for name, (augmentation, variables) in network.ours.items():
        transforms = transforms_of(recipe, augmentation, network.patch)
        given = {"amp": network.amp, "deterministic": False, **variables}
        found[f"Armarium: {name}"] = (
            "armarium_trainer",
            {**task, "settings": settings_of(recipe, transforms, task["threads"], **given)},
            sys.executable,
        )
    for augmentation in ("none", "own", "affine"):
        given = {**task, "pre_transforms": transforms_of(recipe, augmentation, network.patch)}
        found[f"plain MONAI: {augmentation}"] = ("plain_monai", given, sys.executable)
    return found | {name: (module, task, python) for name, (module, python) in peers().items()}


def measure_network(network: Network, device: str, rounds: int) -> None:
    """Print a network's table."""
    recipe = json.loads((RECIPE / "config_train.json").read_text())
    recipe["train"]["model"] = network.model
    fused = {"lr": 0.002, "weight_decay": 0.01, "fused": True}
    recipe["train"]["optimizer"] = {"name": "AdamW", "args": fused}
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        task = {
            **{k: recipe["train"][k] for k in ("model", "loss", "optimizer")},
            "batch_size": 2,
            "patch": network.patch,
            "amp": network.amp,
            "device": device,
            "threads": 4 if device == "cuda" else 1,
            "count": network.cases,
            "shape": network.shape,
            "listed": None,
            "data_root": f"{folder}/data",
            "cache": f"{folder}/cache",
            "pre_transforms": transforms_of(recipe, "none", network.patch),
        }
        task = prepared(folder, task)
        bare, *others = contenders(network, task, recipe).items()
        rows = []
        for other in others:  # in pairs: all at once would fill the GPU's memory
            of_pair = table(compared(rounds, dict([bare, other]), folder), network.cases)
            rows += of_pair[1:] if rows else of_pair
        show(
            f"Training on a GPU: {network.name} ({network.cases} cases an epoch, {rounds} rounds each)",
            COLUMNS,
            rows,
        )


def measure(rounds: int) -> None:
    """Print a table for each network, and what GPU it was."""
    asked = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    name = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True).stdout.strip()
    if not name:
        print(
            "training on a GPU: skipped, torch sees no CUDA device; run `make bench-gpu` on a machine that has one",
            file=sys.stderr,
        )
        return
    print(f"\nMeasured on one {name}.")
    for network in NETWORKS:
        measure_network(network, "cuda", rounds)
