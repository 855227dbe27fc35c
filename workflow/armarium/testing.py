"""Score trained checkpoints on cases they have never seen, paying imports and data once."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from .cache import checked_files
from .dataset import CLASSIFICATION, SEGMENTATION
from .distributed import ALONE, Team
from .evaluation import CLASS_SUMMARY, IDS, CaseScorer, Evaluation
from .hashing import as_checked
from .multi_label import is_multi_label
from .network import build_network, choose_device, make_deterministic
from .parts import Part
from .predictions import prediction_table, probability_table, segmentation_bytes
from .records import class_columns
from .run import epoch_of, finished_run
from .tables import tsv
from .weights import load_into


def evaluation_tables(evaluation: Evaluation) -> dict[str, str]:
    """The four metric tables of an evaluation, by file name."""
    metrics = evaluation.metrics
    return {
        "aggregated.tsv": tsv(metrics, [evaluation.aggregated()]),
        "details.tsv": tsv([*IDS, *metrics], evaluation.details),
        "classes.tsv": tsv(CLASS_SUMMARY, evaluation.classes()),
        "class_details.tsv": tsv([*IDS, *class_columns(metrics)], evaluation.class_details),
    }


def evaluate_checkpoints(
    settings: dict,
    run_zip: str,
    checkpoints: Sequence[str],
    cases: list[dict],
    class_names: dict[int, str],
    data_root: str,
    cache_dir: str,
    device: str,
    team: Team = ALONE,
) -> dict[str, Part]:
    """Tables of checkpoints; ``team`` is the processes that share the cases.

    Returns
    -------
    dict
        By checkpoint: text by ``/<table>``.
    """
    make_deterministic(settings)
    chosen = team.device or choose_device(device)
    scorer = CaseScorer(settings, data_root, cache_dir, chosen, class_names, team)
    scorer.prepare(cases, settings["threads"])
    network = build_network(settings).to(chosen)
    info = finished_run(run_zip)
    made: dict[str, Part] = {}
    for checkpoint in checkpoints:
        load_into(network, run_zip, epoch_of(info, checkpoint))
        made[checkpoint] = {f"/{name}": text for name, text in evaluation_tables(scorer(network, cases)).items()}
    return made


def torchscript_from(data: bytes) -> Callable[[torch.device], torch.nn.Module]:
    """How to load a TorchScript model, which is trusted, onto a device."""
    return lambda device: torch.jit.load(io.BytesIO(data), map_location=device).eval()


def evaluate_published(
    settings: dict,
    network_on: Callable[[torch.device], torch.nn.Module],
    cases: list[dict],
    class_names: dict[int, str],
    data_root: str,
    cache_dir: str,
    device: str,
    keep_predictions: bool,
    team: Team = ALONE,
) -> dict[str, str | bytes]:
    """Tables of the published model, and its predictions.

    Parameters
    ----------
    network_on:
        Gives the model, on a device and in evaluation mode.
    team:
        The processes that share the cases.

    Returns
    -------
    dict
        The metric tables; ``predictions/<case>.nii.gz`` for segmentation, ``probabilities.tsv`` for classification,
        ``predictions.tsv`` for regression.
    """
    make_deterministic(settings)
    chosen = team.device or choose_device(device)
    scorer = CaseScorer(settings, data_root, cache_dir, chosen, class_names, team)
    scorer.prepare(cases, settings["threads"])

    def keep(case: dict, prediction: numpy.ndarray) -> numpy.ndarray | bytes:
        if settings["task"] == SEGMENTATION:
            image = case["image"][0]
            with as_checked(data_root, {image: checked_files(case)[image]}):
                prediction = segmentation_bytes(prediction, Path(data_root, image), is_multi_label(settings))
        return prediction

    evaluation = scorer(network_on(chosen), cases, keep if keep_predictions else None)
    if not team.is_first:
        return {}
    kept = evaluation.kept
    members: dict[str, str | bytes] = evaluation_tables(evaluation)
    if keep_predictions and settings["task"] == SEGMENTATION:
        members |= {f"predictions/{case['case']}.nii.gz": data for case, data in kept}
    elif keep_predictions and settings["task"] == CLASSIFICATION:
        members["probabilities.tsv"] = probability_table(kept, class_names)
    elif keep_predictions:
        members["predictions.tsv"] = prediction_table(kept)
    return members


def evaluate_torchscript(torchscript: bytes, **evaluation: Any) -> dict[str, str | bytes]:
    """The same of a TorchScript model, which is trusted; the rest is what :func:`evaluate_published` takes."""
    return evaluate_published(network_on=torchscript_from(torchscript), **evaluation)
