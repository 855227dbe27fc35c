"""The members of run.zip beside the weights: tables, logs and what was measured."""

from __future__ import annotations

import io
import json
import platform

import monai
import torch

from .dataset import CLASSIFICATION
from .evaluation import CLASS_SUMMARY, IDS
from .events import EventFile
from .files import json_text
from .history import Progress, peak_memory_mib
from .maps import computational_json, not_rebuilt
from .multi_label import is_multi_label, one_sided
from .progress import event_scalars, mean_loss
from .recipe import SPEED_UPS
from .run import INFO, TRAINED, epochs_noted, info_text, saved
from .starting import starting_members, starting_summary
from .tables import tsv
from .training import SplitTraining

TIMING = [
    "epoch",
    "ended",
    "train_seconds",
    "validation_seconds",
    "samples_per_second",
    "peak_memory_mib",
    "gpu_memory_mib",
]


def class_columns(metrics: list[str]) -> list[str]:
    """Columns of class_details.tsv after the ids."""
    return ["class", "name", *(m for m in metrics if m != "loss")]


def history_members(progress: Progress, metrics: list[str]) -> dict[str, str]:
    """The validation tables over all validated epochs."""
    columns = {
        "aggregated": metrics,
        "details": [*IDS, *metrics],
        "classes": CLASS_SUMMARY,
        "class_details": [*IDS, *class_columns(metrics)],
    }
    return {f"validation_metrics/{t}.tsv": tsv(["epoch", *c], progress.history[t]) for t, c in columns.items()}


def log_members(training: SplitTraining) -> dict[str, str]:
    """Losses and learning rates of every step, warnings (of what the recipe says otherwise and other clients cannot do, too), and a summary; no clocks."""
    progress = training.progress
    losses = [{"epoch": e, "batch": b, "loss": v} for e, b, v in progress.losses]
    groups = [f"group-{i}" for i in range(len(training.optimizer.param_groups))]
    rates = [dict(zip(["epoch", "batch", *groups], row, strict=True)) for row in progress.rates]
    of_recipe = [f"Recipe: {line}" for line in training.settings.get("warnings", [])]
    warnings = [*of_recipe, *_one_sided(training), *progress.warnings, *not_rebuilt(training.settings)]
    return {
        "logs/training_loss.tsv": tsv(["epoch", "batch", "loss"], losses),
        f"logs/learning_rates/{type(training.optimizer).__name__}.tsv": tsv(["epoch", "batch", *groups], rates),
        "warning.log": "".join(f"{w}\n" for w in warnings),
        "summary.log": _summary(training),
        "computational.json": json_text(
            computational_json(
                training.settings,
                training.amp,
                training.device.type == "cuda",
                training.settings.get("channels_last", False),
            )
        ),
    }


def _one_sided(training: SplitTraining) -> list[str]:
    if training.settings["task"] != CLASSIFICATION or not is_multi_label(training.settings):
        return []
    return one_sided({"training": training.cases.cases, "validation": training.validation}, training.scorer.class_names)


def _summary(training: SplitTraining) -> str:
    progress = training.progress
    lines = [
        f"Split {training.split}",
        *starting_summary(training),
        f"Training cases: {len(training.cases)}",
        f"Validation cases: {len(training.validation)}",
        f"Epochs: {progress.epoch} of {training.settings['epochs']}{' (stopped early)' if progress.stopped_early else ''}",
        f"Steps: {len(progress.losses)}",
        *_speed_ups(training),
        f"Mean training loss of the last epoch: {mean_loss(progress.losses, progress.epoch):.6f}",
        *(f"Best {name}: {b['value']:.6f} at epoch {b['epoch']}" for name, b in progress.best.items()),
    ]
    return "\n".join(lines) + "\n"


def _speed_ups(training: SplitTraining) -> list[str]:
    """What the recipe asks for that computational.json, whose keys are ClinicaDL's, has no key for."""
    asked = [f"{k} {json.dumps(training.settings[k])}" for k in SPEED_UPS if k in training.settings]
    return [f"Computed with: {', '.join(asked)}"] if asked else []


def run_description(training: SplitTraining, fingerprint: str) -> dict:
    """run.json: what a rule needs to know of a finished run, and what its bytes hold for."""
    progress = training.progress
    first = training.scorer.prepared.get(training.validation[0])["image"]
    finite = {
        n: {"value": b["value"] if b["value"] == b["value"] else None, "epoch": b["epoch"]}
        for n, b in progress.best.items()
    }
    return {
        "fingerprint": fingerprint,
        "split": training.split,
        "epochs": progress.epoch,
        "stopped_early": progress.stopped_early,
        "best": finite,
        "checkpoints": training.workspace.digests(progress.epochs_to_keep(training.settings["keep_epochs"])),
        "train": len(training.cases),
        "validation": len(training.validation),
        "input_shape": list(first.shape),
        "parameters": sum(p.numel() for p in training.network.parameters()),
        "network": training.settings["model"],
        "metrics": training.scorer.metrics,
        "class_names": {str(k): v for k, v in training.scorer.class_names.items()},
        "device": training.device.type if training.device.type == "cpu" else torch.cuda.get_device_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "threads": training.settings["threads"],
        **({"processes": training.team.size} if training.team.size > 1 else {}),
        **{k: training.settings[k] for k in SPEED_UPS if k in training.settings},
        "torch": torch.__version__,
        "monai": monai.__version__,
    }


def timing_members(training: SplitTraining) -> dict[str, bytes | str]:
    """What a clock or a machine's load decides: may differ when the run is made again."""
    rows = [dict(zip(TIMING, row, strict=True)) for row in training.progress.timing]
    seconds = sum(r["train_seconds"] for r in rows)
    trained = epochs_noted(training.workspace.folder, TRAINED)
    stats = {
        "epochs": training.progress.epoch,
        "steps": len(training.progress.losses),
        "train_seconds": seconds,
        "validation_seconds": sum(r["validation_seconds"] for r in rows),
        "samples_per_second": len(training.cases) * len(rows) / seconds,
        "peak_memory_mib": peak_memory_mib(),
        "epochs_trained_again": len(trained) - len(set(trained)),
        "best": run_description(training, "")["best"],
        "final_loss": mean_loss(training.progress.losses, training.progress.epoch),
    }
    return {
        "timing/logs/computational.tsv": tsv(TIMING, rows),
        "timing/train_stats.json": json_text(stats),
        "timing/events": events_file(training.progress, rows),
    }


def events_file(progress: Progress, timing: list[dict]) -> bytes:
    """One TensorBoard event file for the whole training, however often it was resumed."""
    validated = {row["epoch"]: row for row in progress.history["aggregated"]}
    rates = {row[0]: row[2] for row in progress.rates}
    file = io.BytesIO()
    events = EventFile(file, timing[0]["ended"] - timing[0]["train_seconds"] - timing[0]["validation_seconds"])
    for row in timing:
        epoch = row["epoch"]
        loss = mean_loss([r for r in progress.losses if r[0] == epoch], epoch)
        scores = {k: v for k, v in validated.get(epoch, {}).items() if k != "epoch"}
        events.add(epoch, event_scalars(loss, rates[epoch], scores), row["ended"])
    return file.getvalue()


def run_members(training: SplitTraining, fingerprint: str, environment: dict[str, bytes]) -> dict[str, bytes | str]:
    """All members of run.zip but the checkpoints, in order.

    Parameters
    ----------
    training:
        Finished.
    fingerprint:
        Of what determined it.
    environment:
        The archive's ``env/`` files by member name.
    """
    state = {name: part.state_dict() for name, part in training._stateful().items() if name != "network"}
    return {
        INFO: info_text(run_description(training, fingerprint)),
        **history_members(training.progress, training.scorer.metrics),
        **log_members(training),
        "state/final.pt": saved(state),
        **starting_members(training),
        **environment,
        **timing_members(training),
    }
