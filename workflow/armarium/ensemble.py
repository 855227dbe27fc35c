"""The splits' models as one TorchScript file that gives their mean.

Averaged is what the recipe makes of an output: probabilities where its post-transforms apply softmax or sigmoid, the
outputs themselves elsewhere, as in a regression. The file gives the mean in the form of an output, the logarithm of mean
probabilities (of sigmoid: their log-odds), so that the recipe's post-transforms, which follow, give the mean itself:
an ensemble stands in for a single model wherever that is used.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import logsigmoid

from .dataset import REGRESSION
from .errors import UserError
from .export import deterministic_bytes, first_output, network_input_shape, to_torchscript
from .files import json_text
from .formats import REPORT
from .network import build_network, make_deterministic
from .parts import Part
from .run import epoch_of, finished_run, weights_of
from .weights import load_into

ACTIVATIONS = ("Activationsd", "ActivationsD", "ActivationsDict")
SAYS = "ensemble.json"
"""The text in the file that says what it is the mean of."""


class _Mean(torch.nn.Module):
    """The mean of several networks' outputs."""

    def __init__(self, networks: Sequence[torch.nn.Module]):
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)

    def outputs(self, image: torch.Tensor) -> torch.Tensor:
        found = []
        for network in self.networks:
            found.append(network(image))
        return torch.stack(found)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.outputs(image).mean(0)


class _MeanOfSoftmax(_Mean):
    """The logarithm of the mean of the networks' probabilities: softmax of it is that mean."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logs = torch.log_softmax(self.outputs(image), 2)
        return torch.logsumexp(logs, 0) - math.log(len(self.networks))


class _MeanOfSigmoid(_Mean):
    """The log-odds of the mean of the networks' probabilities: sigmoid of it is that mean."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        outputs = self.outputs(image)
        return torch.logsumexp(logsigmoid(outputs), 0) - torch.logsumexp(logsigmoid(-outputs), 0)


class _First(torch.nn.Module):
    """A network without what it gives beside the first output."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor):
        return self.network(image)[0]


MEANS = {
    "outputs": (_Mean, lambda output: output, "the mean of the outputs"),
    "softmax": (
        _MeanOfSoftmax,
        lambda output: output.softmax(1),
        "the logarithm of the mean probabilities: softmax gives these",
    ),
    "sigmoid": (
        _MeanOfSigmoid,
        torch.sigmoid,
        "the log-odds of the mean probabilities: sigmoid gives these",
    ),
}
"""By what is averaged: the ensemble, what is done to an output before, and what the file gives."""


def averaged(settings: dict) -> str:
    """What of the outputs is averaged, a key of ``MEANS``: by what the recipe's post-transforms apply to a prediction."""
    if settings["task"] == REGRESSION:
        return "outputs"
    for component in settings["validate"]["post_transforms"]:
        args = component.get("args", {})
        keys = args.get("keys", [])
        if component.get("name") in ACTIVATIONS and "pred" in ([keys] if isinstance(keys, str) else keys):
            applied = [kind for kind in ("softmax", "sigmoid") if args.get(kind) in (True, [True])]
            if applied:
                return applied[0]
    return "outputs"


def export_ensemble(settings: dict, runs: Mapping[int, str], checkpoint: str, tolerance: float, extra: dict) -> Part:
    """Export the mean of several splits' models.

    Parameters
    ----------
    settings:
        The effective training configuration.
    runs:
        The run.zip of each split.
    checkpoint:
        The one of every split that is a member.
    tolerance:
        Largest difference allowed between TorchScript and the eager mean, after the activation.
    extra:
        Texts that the file carries beside what it says of itself.

    Returns
    -------
    dict
        ``ensemble.ts`` and the report.

    Raises
    ------
    UserError
        If the two differ by more.
    """
    make_deterministic(settings)
    infos = {split: finished_run(run, "input_shape", "checkpoints") for split, run in runs.items()}
    shape = network_input_shape(settings, next(iter(infos.values())))
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    networks = [_member(settings, runs[split], epoch_of(info, checkpoint), example) for split, info in infos.items()]
    kind = averaged(settings)
    make, activate, gives = MEANS[kind]
    members = [
        {
            "split": split,
            "checkpoint": checkpoint,
            "epoch": epoch_of(info, checkpoint),
            "sha256": weights_of(info, [checkpoint])[checkpoint],
        }
        for split, info in infos.items()
    ]
    says = {"members": members, "mean_of": kind, "output": gives}
    script, how = to_torchscript(make(networks).eval(), example)
    data = deterministic_bytes(script, {**extra, SAYS: json_text(says)})
    difference = ensemble_parity(networks, data, activate, example)
    if not difference <= tolerance:
        raise UserError(
            f"ensemble of {', '.join(runs.values())}: TorchScript ({how}) differs from the mean of the models by {difference:.3g} "
            f"on input {shape}; wanted at most {tolerance:g}; raise export.tolerance if that is acceptable"
        )
    report = {**says, "method": how, "input_shape": shape, "max_abs_difference": difference, "tolerance": tolerance}
    return {"ensemble.ts": data, REPORT: json_text(report)}


def _member(settings: dict, run_zip: str, epoch: int, example: torch.Tensor) -> torch.nn.Module:
    model = build_network(settings)
    load_into(model, run_zip, epoch)
    network = model.network.eval()
    with torch.no_grad():
        several = isinstance(network(example), list | tuple)
    return _First(network) if several else network


def ensemble_parity(networks: Sequence[torch.nn.Module], data: bytes, activate, example: torch.Tensor) -> float:
    """Largest difference between the eager mean, after the activation, and the saved file's, on ``example``."""
    loaded = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
    with torch.no_grad():
        mean = torch.stack([activate(first_output(network(example))) for network in networks]).mean(0)
        return float((mean - activate(loaded(example))).abs().max())
