"""The published checkpoint scored as the published TorchScript is, into eval/ckpt/.

The same cases, scorer and form of results, so the two differ by the export alone.
"""

from __future__ import annotations

import torch

from . import layout
from .configure import data_root_of, fingerprint_on_disk, published_checkpoint, read_effective
from .errors import UserError
from .files import json_text, read_bytes
from .network import build_network
from .provenance import step
from .run import INFO, epoch_of, finished_run, saved, weights_of
from .standing import cases_sha256
from .steps import cases_of, class_names, published_cases, recipe_of
from .testing import evaluate_published
from .weights import give, most_bytes, plain_weights, weights_in
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
        run = finished_run(layout.run_zip(archive, publish), "checkpoints")
        members = evaluate_published(
            settings,
            lambda on: published_network(archive, settings).to(on).eval(),
            cases,
            class_names(archive),
            data_root_of(archive),
            cache_dir,
            device,
            read_effective(archive, "predict")["predictions"],
        )
        says = {
            "fingerprint": fingerprint_on_disk(archive, "checkpoint evaluation"),
            "cases": cases_sha256(cases, named=True),
            "weights": weights_of(run, [checkpoint]),
        }
        write_zip(output, {INFO: json_text(says), **members})


def published_network(archive: str, settings: dict) -> torch.nn.Module:
    """The recipe's network with the weights of ``models/model.pt``.

    Raises
    ------
    UserError
        If these are not the weights of the run that they are published from.
    """
    path, run_zip = (
        layout.published_model(archive),
        layout.run_zip(archive, read_effective(archive, "publish")["publish"]),
    )
    network = build_network(settings).network
    data = read_bytes(path, most_bytes(network))
    if data != saved(plain_weights(run_zip, epoch_of(finished_run(run_zip), published_checkpoint(settings)))):
        raise UserError(
            f"{path}: not the weights that {run_zip} publishes; delete it to have it taken from there again"
        )
    give(network, weights_in(data, path), path, "delete this file to have it taken from the run again")
    return network
