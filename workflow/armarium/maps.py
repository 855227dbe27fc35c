"""The MAPS face: the files ClinicaDL 2.0 wants beside the weights and the tables. No torch.

ClinicaDL reads each JSON by a configuration class that refuses unknown and missing keys, so every file
here has exactly the keys of the class named in the function's docstring. Writers return the paths they wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from . import layout
from .clinicadl_metrics import LOSS, metrics
from .clinicadl_model import supervised_model
from .configure import read_effective, training_settings_of
from .errors import UserError
from .files import write_json, write_text
from .run import finished_run
from .split_files import own_groups, read_splits, tested_on
from .tables import tsv

IDS = ["participant_id", "session_id"]


def _json(path: str, value: dict) -> list[str]:
    write_json(path, value)
    return [path]


def _text(path: str, text: str) -> list[str]:
    write_text(path, text)
    return [path]


# ---- root configurations


def write_model_json(archive: str) -> list[str]:
    """``model.json`` (ClinicaDL's ``SupervisedModelConfig``).

    What ClinicaDL has no class for is there as the recipe names it; ClinicaDL then says which part to give it.
    """
    return _json(layout.model_json(archive), supervised_model(read_effective(archive, "train"))[0])


def write_metrics_json(archive: str) -> list[str]:
    """``metrics.json`` (ClinicaDL's ``MetricsHandlerConfig``): a metric for every column of the tables."""
    described = metrics(read_effective(archive, "train"))[0]
    return _json(
        layout.metrics_json(archive), {"name_": "MetricsHandler", "metrics": described, "metrics_on_cpu": True}
    )


def not_rebuilt(settings: dict) -> list[str]:
    """What ClinicaDL cannot rebuild from the archive, each with the reason: lines of a split's ``warning.log``.

    They depend on the recipe alone.
    """
    parts, scores = supervised_model(settings)[1], metrics(settings)[1]
    lines = [f"{part} {reason}" for part, reason in parts.items()]
    lines += [f"metric {name} is {reason}" for name, reason in scores.items()]
    if settings["lr_scheduler"]:
        component = settings["lr_scheduler"]
        lines.append(
            f"lr_scheduler {component.get('name') or component['path']} {component['args']}: callbacks.json has none"
        )
    lines.append("dataset: dataset.json lists the cases in Armarium's way; give ClinicaDL a dataloader over them")
    return [f"ClinicaDL 2.0.0 cannot rebuild {line}" for line in lines]


def write_callbacks_json(archive: str) -> list[str]:
    """``callbacks.json`` (``CallbacksHandlerConfig``): kept checkpoints, early stopping, resume states."""
    train, chosen = training_settings_of(archive), read_effective(archive, "select")["checkpoints"]
    modes = _modes(train)
    best = [c.removeprefix("best-") for c in chosen if c.startswith("best-")]
    epochs = [int(c.removeprefix("epoch-")) for c in chosen if c.startswith("epoch-")]
    callbacks = [_checkpoint(m, [], False, modes[m]) for m in best]
    callbacks += [_checkpoint(None, epochs, "final" in chosen, None)]
    callbacks += [_early_stopping(train, modes)] if train["early_stopping"] else []
    callbacks += [{"name_": "TrainingCheckpointCallback", "every_n_epochs": train["save_interval"], "enabled": True}]
    return _json(layout.callbacks_json(archive), {"name_": "CallbacksHandler", "callbacks": callbacks})


def _modes(train: dict) -> dict[str, str]:
    return {LOSS: "min", **{m["label"]: m["mode"] for m in train["validate"]["metrics"]}}


def _checkpoint(metric: str | None, epochs: list[int], save_last: bool, mode: str | None) -> dict:
    return {
        "name_": "ModelCheckpointCallback",
        "metric": metric,
        "epochs": epochs,
        "save_last": save_last,
        "mode": mode,
    }


def _early_stopping(train: dict, modes: dict[str, str]) -> dict:
    stop = train["early_stopping"]
    metric = stop.get("metric") or train["validate"]["metrics"][0]["label"]
    if metric not in modes:
        raise UserError(f"EarlyStopHandler: metric is {metric!r}; the recipe has {list(modes)}")
    stopper = {
        "name_": "OneMetricEarlyStopping",
        "metric": metric,
        # ClinicaDL stops when more than ``patience`` validations brought no gain, MMAR when that many did.
        "patience": max(0, int(stop.get("patience", 10)) - 1),
        "min_delta": float(stop.get("min_delta", 0.0)),
        "mode": modes[metric],
        "check_finite": False,
        "upper_bound": None,
        "lower_bound": None,
    }
    return {"name_": "EarlyStoppingCallback", "stoppers": [stopper]}


def write_optimization_json(archive: str) -> list[str]:
    """``training/optimization.json`` (``OptimizationConfig``)."""
    train = read_effective(archive, "train")
    value = {
        "num_epochs": train["epochs"],
        "accumulation_steps": 1,
        "evaluation_interval": train["validation_interval"],
        "clip_grad_norm": train["clip_grad_norm"],
        "grad_norm_type": 2.0,
        "clip_grad_value": train["clip_grad_value"],
        "reset_model": True,
    }
    return _json(layout.optimization_json(archive), value)


def computational_json(settings: dict, amp: bool, gpu: bool, channels_last: bool = False) -> dict:
    """``computational.json`` (``ComputationalConfig``) of a training or an evaluation."""
    return {
        "gpu": gpu,
        "non_blocking": True,
        "amp": amp,
        "channels_last": channels_last,
        "seed": settings["seed"],
        "deterministic": settings["deterministic"],
    }


# ---- sets of cases


def _ids(cases: dict, names: Iterable[str]) -> str:
    """A table of the cases' participants and sessions, each pair once."""
    pairs = dict.fromkeys(tuple(cases[n][c] for c in IDS) for n in names)
    return tsv(IDS, (dict(zip(IDS, pair, strict=True)) for pair in pairs))


def write_training_data_tsv(archive: str) -> list[str]:
    """``training/data/data.tsv``: whoever is in a train or validation set of any split."""
    splits = read_splits(layout.splits_json(archive))
    used = {name for split in splits["splits"] for side in layout.SIDES for name in split[side]}
    return _text(layout.training_data_tsv(archive), _ids(splits["cases"], (n for n in splits["cases"] if n in used)))


def _dataloader(batch_size: int, shuffle: bool, num_workers: int) -> dict:
    """As ``DataLoaderConfig`` reads it; ``pin_memory`` works on a GPU only, where training pins too."""
    return {
        "name_": "DataLoader",
        "batch_size": batch_size,
        "sampling_weights": None,
        "shuffle": shuffle,
        "num_workers": num_workers,
        "pin_memory": True,
        "drop_last": False,
        "prefetch_factor": None,
        "persistent_workers": False,
        "collate_fn": {"name_": "ToBatchCollate"},
    }


def _dataset(names: Sequence[str], transforms: list[dict], **source: str) -> dict:
    return {"name_": "Datalist", **source, "cases": list(names), "transforms": transforms}


def write_side_data(archive: str, side: str, split: str | int) -> list[str]:
    """``data.tsv``, ``dataset.json`` and ``dataloader.json`` of a split's train or validation set.

    ``dataset.json`` names the datalist that the cases are in; ClinicaDL keeps it and does not parse it.
    """
    splits, train = read_splits(layout.splits_json(archive)), training_settings_of(archive)
    names = _split(splits, split)[side]
    training = side == layout.TRAIN
    section = train if training else train["validate"]
    key = "training" if training else "validation"
    datalist = layout.datalist("", split).removeprefix("/")
    loader = _dataloader(train["batch_size"], True, train["num_workers"]) if training else _dataloader(1, False, 0)
    return _write_set(
        layout.side_data(archive, side, split),
        splits["cases"],
        names,
        _dataset(names, section["pre_transforms"], datalist=datalist, key=key),
        loader,
    )


def write_group_data(archive: str, group: str) -> list[str]:
    """The same three files of a test group."""
    splits, train = read_splits(layout.splits_json(archive)), training_settings_of(archive)
    if group not in splits["groups"]:
        raise UserError(f"{layout.splits_json(archive)}: no test group {group!r}; it has {list(splits['groups'])}")
    names = splits["groups"][group]
    dataset = _dataset(names, train["validate"]["pre_transforms"], group=group)
    return _write_set(layout.group_data(archive, group), splits["cases"], names, dataset, _dataloader(1, False, 0))


def _write_set(paths: list[str], cases: dict, names: Sequence[str], dataset: dict, loader: dict) -> list[str]:
    table, dataset_json, dataloader_json = paths
    write_text(table, _ids(cases, names))
    write_json(dataset_json, dataset)
    write_json(dataloader_json, loader)
    return paths


def _split(splits: dict, split: str | int) -> dict:
    if not 0 <= int(split) < len(splits["splits"]):
        raise UserError(f"split {split}: the archive has the splits 0 to {len(splits['splits']) - 1}")
    return splits["splits"][int(split)]


# ---- results


def write_result_computational(archive: str, group: str, split: str | int, checkpoint: str) -> list[str]:
    """``computational.json`` of a test result: evaluation never uses AMP; the device is the split's own."""
    info = finished_run(layout.run_zip(archive, split), "device")
    settings = read_effective(archive, "train")
    path = layout.result_computational(layout.result_dir(archive, group, split, checkpoint))
    return _json(path, computational_json(settings, amp=False, gpu=info["device"] != "cpu"))


def finished_runs(archive: str) -> dict[int, dict]:
    """``run.json`` of every trained split, by number."""
    numbers = range(len(read_splits(layout.splits_json(archive))["splits"]))
    trained = [k for k in numbers if Path(layout.run_zip(archive, k)).exists()]
    return {k: finished_run(layout.run_zip(archive, k), "stopped_early") for k in trained}


def write_summary_log(archive: str) -> list[str]:
    """``summary.log``: what is trained and tested so far, under ClinicaDL's headings but without dates."""
    runs = finished_runs(archive)
    lines = ["==================== MAPS summary ====================", ""]
    lines += ["---------------------- Training ----------------------", "", "Splits", ""]
    for split, info in runs.items():
        lines.append(f"   - {split}")
        lines.append(f"      Epochs: {info['epochs']}{' (stopped early)' if info['stopped_early'] else ''}")
        lines += [f"      Best {name}: {_value(b['value'])} at epoch {b['epoch']}" for name, b in info["best"].items()]
    lines += ["", "------------------------ Test ------------------------", "", "Groups", ""]
    groups = read_effective(archive, "test")["groups"]
    for group in groups:
        tested = [str(k) for k in runs if _is_tested(archive, groups, group, k)]
        if tested:
            lines += [f"   - {group}", f"      Splits: {', '.join(tested)}"]
    return _text(layout.summary_log(archive), "\n".join(lines) + "\n")


def _is_tested(archive: str, groups: dict, group: str, split: int) -> bool:
    wanted = group in tested_on(split, groups, own_groups(groups))
    return wanted and Path(layout.evaluation_zip(archive, group, split)).is_file()


def _value(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.6f}"
