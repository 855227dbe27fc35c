"""The published checkpoint beside the published TorchScript: scored on the same cases, and compared on an input.

What is scored goes to eval/ckpt/, by the same scorer and in the same form, so the two differ by the export alone.
"""

from __future__ import annotations

import math
import os

import torch

from . import layout
from .configure import (
    published_checkpoint,
    read_effective,
)
from .errors import UserError
from .export import LARGEST_INPUT, first_output, parity
from .files import json_text, read_bytes, write_json
from .fingerprints import fingerprint_on_disk
from .network import build_network, make_deterministic
from .plain_weights import plain_weights
from .provenance import step
from .run import INFO, epoch_of, finished_run, weights_of
from .standing import cases_sha256
from .steps import cases_of, published_cases, published_evaluation_of, published_torchscript, recipe_of
from .testing import evaluate_published
from .transforms import components_at_work
from .weights import give, most_bytes, weights_in
from .zips import write_zip


def evaluate_checkpoint(archive: str, device: str, cache_dir: str) -> None:
    """Score ``models/model.pt``, and keep its predictions."""
    output, published = layout.eval_zip(archive, layout.CKPT), layout.published_model(archive)
    publish, settings = read_effective(archive, "publish")["publish"], recipe_of(archive)
    inputs = [
        published,
        layout.splits_json(archive),
        layout.cases_tsv(archive),
        *(layout.effective(archive, p) for p in ("train", "test", "predict", "publish")),
    ]
    with step(archive, "evaluate_checkpoint", "evaluate_checkpoint", inputs, [output]):
        checkpoint, cases = published_checkpoint(settings), cases_of(archive, published_cases(archive, publish))
        run_zip = layout.run_zip(archive, publish)
        run = finished_run(run_zip, "checkpoints")
        _refuse_other_weights(archive, run, run_zip, checkpoint)
        members = evaluate_published(
            **published_evaluation_of(archive, cases, cache_dir),
            network_on=lambda on: published_network(archive, settings).to(on),
            device=device,
        )
        says = {
            "fingerprint": fingerprint_on_disk(archive, "checkpoint evaluation"),
            "cases": cases_sha256(cases, named=True),
            "weights": weights_of(run, [checkpoint]),
        }
        write_zip(output, {INFO: json_text(says), **members})


def published_network(archive: str, settings: dict) -> torch.nn.Module:
    """The recipe's network with the weights of ``models/model.pt``, in evaluation mode."""
    path, network = layout.published_model(archive), build_network(settings).network
    weights = weights_in(read_bytes(path, most_bytes(network)), path)
    give(network, weights, path, "delete this file to have it taken from the run again")
    return network.eval()


def _refuse_other_weights(archive: str, run: dict, run_zip: str, checkpoint: str) -> None:
    """What is scored counts as the run's, so it must be that."""
    path, wanted = layout.published_model(archive), plain_weights(run_zip, epoch_of(run, checkpoint))
    if os.path.getsize(path) != len(wanted) or read_bytes(path, len(wanted)) != wanted:
        raise UserError(
            f"{path}: not the weights that {run_zip} publishes; delete it to have it taken from there again"
        )


def compare_shape(archive: str, shape: str, cache_dir: str, trusted: bool) -> None:
    """Compare the published TorchScript with its checkpoint on an input of ``shape``, such as ``1x1x64x64``.

    Raises
    ------
    UserError
        If the network takes no such input, or the two differ by more than the export's tolerance.
    """
    published, script, output = (
        layout.published_model(archive),
        layout.published_ts(archive),
        layout.export_parity(archive, shape),
    )
    inputs = [published, script, *(layout.effective(archive, p) for p in ("train", "export"))]
    with step(archive, f"compare_shape_{shape}", "compare_shape", inputs, [output]):
        settings, tolerance = recipe_of(archive), read_effective(archive, "export")["tolerance"]
        make_deterministic(settings)
        sizes = [int(n) for n in shape.split("x")]
        if math.prod(sizes) > LARGEST_INPUT:
            raise UserError(f"--input_shape: found {sizes}, wanted at most {LARGEST_INPUT:,} values")
        network = published_network(archive, settings)
        example = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), components_at_work(f"network on an input of shape {sizes}"):
            given = first_output(network(example))
        difference = parity(network, published_torchscript(archive, cache_dir, trusted), example)
        if not difference <= tolerance:
            raise UserError(
                f"{script}: differs from {published} by {difference:.3g} on an input of shape {sizes}; wanted at most {tolerance:g}; "
                "raise export.tolerance if that is acceptable"
            )
        says = {"input_shape": sizes, "output_shape": list(given.shape), "max_abs_difference": difference}
        write_json(output, {**says, "tolerance": tolerance})
