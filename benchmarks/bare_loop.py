"""The yardstick of a good model soon: a training step with nothing around the arithmetic.

The network, loss, optimizer, batch and crop are those of the hippocampus recipe as it was when the yardstick was set. They stay as
they are here: a budget of so many of its steps means the same whatever the recipe becomes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet

BATCH, CROP = 2, (40, 56, 40)
BUDGET_STEPS = 7000
"""A good model is to be there within this many steps of the bare loop."""


def steps(device: str = "cpu") -> Iterator[float]:
    """Train for ever on two batches that lie in memory, without augmentation; the seconds of each step."""
    torch.manual_seed(0)
    network = UNet(3, 1, 3, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=1, norm="instance").to(device)
    loss_of = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.002, weight_decay=0.01)
    batches = [
        (torch.randn(BATCH, 1, *CROP, device=device), torch.randint(3, (BATCH, 1, *CROP), device=device).float())
        for _ in range(2)
    ]
    network.train()
    while True:
        for images, labels in batches:
            started = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(network(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
            yield time.perf_counter() - started


def step_seconds(threads: int, count: int = 20) -> float:
    """The median of ``count`` steps on the CPU, after five that warm up."""
    torch.set_num_threads(threads)
    running = steps()
    for _ in range(5):
        next(running)
    return median(next(running) for _ in range(count))
