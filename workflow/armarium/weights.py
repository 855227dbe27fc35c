"""Weights out of run.zip. Needs torch, not MONAI; nothing in a file is run."""

from __future__ import annotations

import io

import torch

from .run import member_of_checkpoint, zip_member


def load_weights(run_zip: str, epoch: int) -> dict[str, torch.Tensor]:
    """The weights of an epoch, keyed ``network.…`` as MAPS has them."""
    return torch.load(
        io.BytesIO(zip_member(run_zip, member_of_checkpoint(epoch))), weights_only=True, map_location="cpu"
    )


def plain_weights(run_zip: str, epoch: int) -> dict[str, torch.Tensor]:
    """The same as the bundle and MMAR want them: the network's own keys, no prefix."""
    return {k.removeprefix("network."): v for k, v in load_weights(run_zip, epoch).items()}
