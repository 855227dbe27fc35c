"""The task's network, loss and optimizer, as a script of one's own would make them, and one step of it."""

from __future__ import annotations

from collections.abc import Callable

import monai
import torch

from .turns import Turns


def a_step(turns: Turns) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function that takes a batch's images and labels and trains on them."""
    task = turns.task
    torch.manual_seed(0)
    network = getattr(monai.networks.nets, task["model"]["name"])(**task["model"]["args"]).to(task["device"]).train()
    if task.get("channels_last"):
        network = network.to(memory_format=torch.channels_last_3d)
    if task.get("compile"):
        network = torch.compile(network)
    loss = getattr(monai.losses, task["loss"]["name"])(**task["loss"]["args"])
    optimizer = getattr(torch.optim, task["optimizer"]["name"])(network.parameters(), **task["optimizer"]["args"])
    scaler = torch.amp.GradScaler(task["device"], enabled=task["amp"])

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(task["device"], dtype=torch.float16, enabled=task["amp"]):
            value = loss(network(images), labels)
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        return value.detach()

    return step
