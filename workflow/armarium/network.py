"""The recipe's network, and what it runs on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from . import gpu_pool
from .components import build
from .errors import UserError


def choose_device(wanted: str) -> torch.device:
    """``auto`` takes a GPU when there is one; ``cuda`` insists.

    Raises
    ------
    UserError
        If a GPU is insisted on and there is none.
    """
    taken = take_gpus(wanted, 1)
    return torch.device("cuda", _number_of(taken[0])) if taken else torch.device("cpu")


def take_gpus(wanted: str, processes: int) -> list[str]:
    """GPUs that are held as long as this process lives, one for each of the processes that do its job; none means the CPU.

    Returns
    -------
    What CUDA_VISIBLE_DEVICES calls them.

    Raises
    ------
    UserError
        If a GPU is insisted on and there is none, or there are fewer than processes.
    """
    if wanted == "cpu":
        return []
    taken = gpu_pool.take(processes)  # before torch looks, which then sees these alone
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there and wanted == "cuda":
        raise UserError(
            "device is cuda, but torch sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES, or set device: auto"
        )
    if not there:
        if taken:
            print(
                f"armarium: warning: torch {torch.__version__} sees no GPU, so this computes on the CPU; install a torch "
                "for this GPU's driver, or set device: cpu",
                file=sys.stderr,
                flush=True,
            )
        return []
    if there < processes:
        raise UserError(
            f"{processes} processes want a GPU each, torch sees {there}; give the job as many, or take fewer processes (processes, "
            "evaluation_processes), or device=cpu"
        )
    return taken or gpu_pool.take_unlisted(there, processes)


def _number_of(name: str) -> int:
    """The number by which torch knows a GPU; by its UUID where CUDA was in use before all others were hidden."""
    there = torch.cuda.device_count()
    names = gpu_pool.names_of(there)
    if name not in names:
        names = [f"GPU-{torch.cuda.get_device_properties(number).uuid}" for number in range(there)]
    return names.index(name)


def make_deterministic(settings: dict) -> None:
    """Fix torch's threads, algorithms and, where the recipe says it, whether a GPU rounds to TF32; other thread counts give other bytes."""
    torch.set_num_threads(settings["threads"])
    if settings.get("tf32") is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = settings["tf32"]
    if settings["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if settings.get("compile"):
            torch.use_deterministic_algorithms(True, warn_only=True)
        else:  # the same, without loading torch's compiler to tell that, in two seconds
            torch.set_deterministic_debug_mode("warn")
        torch.backends.cudnn.benchmark = False
    else:
        torch.backends.cudnn.benchmark = True


def one_number_a_case(shape: Sequence[int], cases: int) -> None:
    """Refuse an output that a regression's targets ``[cases, 1]`` cannot be compared with: torch's losses would broadcast.

    Raises
    ------
    UserError
        If ``shape`` is another.
    """
    if list(shape) != [cases, 1]:
        raise UserError(
            f"train.model: gives {list(shape)} for {cases} image{'s' if cases > 1 else ''}, wanted {[cases, 1]}: one number a case in a "
            "regression; set out_channels, num_classes or out_shape to 1"
        )


def a_channel_for_each_class(shape: Sequence[int], label: Sequence[int]) -> None:
    """Refuse a label that has not a channel for each of the network's, where classes may occur together.

    Raises
    ------
    UserError
        If the two shapes, ``[cases, channels, …]``, do not say so.
    """
    if len(shape) != len(label) or shape[1] != label[1]:
        raise UserError(
            f"train.pre_transforms: give a label {list(label)} to the network's {list(shape)}, wanted as many channels: one for each class "
            "where dataset.multi_label is true; give label files one, or use a transform that makes them"
        )


class Network(torch.nn.Module):
    """The recipe's network under the name that MAPS gives it, so that weights are keyed ``network.…``."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor):
        return self.network(x)


def build_network(settings: dict) -> Network:
    return Network(build("model", settings["model"], settings["allow"]))
