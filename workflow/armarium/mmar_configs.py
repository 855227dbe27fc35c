"""The MMAR configurations that follow from config_train.json."""

from __future__ import annotations

import os
from copy import deepcopy

from . import layout
from .grammar import with_references
from .parent import CONTINUE, Parent


def environment_defaults() -> dict:
    """environment.json of an archive: locations relative to it, as MMAR names them."""
    return {
        "DATA_ROOT": ".",
        "DATASET_JSON": "config/dataset_0.json",
        "PROCESSING_TASK": "segmentation",
        "MMAR_EVAL_OUTPUT_PATH": "eval",
        "MMAR_CKPT_DIR": "models",
        "MMAR_CKPT": "models/model.pt",
        "MMAR_TORCHSCRIPT": "models/model.ts",
    }


def _model_choices(conf: dict) -> list[dict]:
    return [
        {"ts_path": "{MMAR_TORCHSCRIPT}", "disabled": "{dont_load_ts_model}"},
        {"ckpt_path": "{MMAR_CKPT}", **deepcopy(conf["train"]["model"]), "disabled": "{dont_load_ckpt_model}"},
    ]


def _evaluation(conf: dict, use_ts: bool, data_list_key: str, metrics: bool, handlers: list) -> dict:
    validate = with_references(deepcopy(conf["validate"]), deepcopy(conf["train"]), "config_train.json validate")
    used = {k: v for k, v in conf.items() if not isinstance(v, (dict, list))}
    used.update({"multi_gpu": False, "dont_load_ts_model": not use_ts, "dont_load_ckpt_model": use_ts})
    dataset = {**validate["dataset"], "data_list_key": data_list_key}
    kept = ("dataloader", "inferer", "post_transforms")
    result = {
        **used,
        "model": _model_choices(conf),
        "pre_transforms": validate["pre_transforms"],
        "dataset": dataset,
        **{k: validate[k] for k in kept},
        "handlers": handlers,
    }
    if metrics:
        result.update({k: validate[k] for k in ("metrics", "key_metric", "additional_metrics") if k in validate})
    result["evaluator"] = validate["evaluator"]
    return result


def finetune_config(conf: dict, parent: Parent | None = None) -> dict:
    """``config_finetune.json``: the training configuration with a loader of the starting weights in front.

    Parameters
    ----------
    conf:
        A ``config_train.json``.
    parent:
        What the archive's training starts from; of an archive that starts from nothing, what finetune.sh would take.
    """
    tuned = deepcopy(conf)
    tuned["dont_load_ckpt_model"] = False
    loader = {"name": "CheckpointLoader", "disabled": "{dont_load_ckpt_model}", "args": _loaded(parent)}
    others = [h for h in tuned["train"]["handlers"] if h.get("name") != "CheckpointLoader"]
    tuned["train"]["handlers"] = [loader, *others]
    return tuned


def _loaded(parent: Parent | None) -> dict:
    """The loader's arguments: MONAI's, who would leave out layers of other shapes as well."""
    if parent is not None and parent.mode == CONTINUE:
        parts = {"model": "@model", "optimizer": "@optimizer"}
        return {"load_path": _every_file(parent), "load_dict": parts, "strict": True}
    path = "{MMAR_CKPT}" if parent is None else _every_file(parent)
    return {"load_path": path, "load_dict": {"model": "@model"}, "strict": False, "strict_shape": False}


def _every_file(parent: Parent) -> str:
    """The files of a parent, relative to the archive; of several, one for each split, their pattern."""
    names = list(parent.files)
    name = names[0] if len(names) == 1 else f"split-*{os.path.splitext(names[0])[1]}"
    return layout.parent_file("", name).removeprefix("/")


def derived_configs(conf: dict, task: str, parent: Parent | None = None) -> dict[str, dict]:
    """config_finetune, config_validation, config_validation_ckpt and config_inference.

    Parameters
    ----------
    conf:
        A ``config_train.json`` with both sections.
    task:
        segmentation, classification or regression; decides how predictions are saved, and which details of metrics.
    parent:
        What the archive's training starts from, if from anything.
    """
    # Segmentations are saved by a post-transform, as Clara 4.1 and MONAI do; MONAI's ClassificationSaver, a handler,
    # writes a row of whatever numbers the network gives.
    segments = task == "segmentation"
    saver = {
        "name": "SaveImaged" if segments else "ClassificationSaver",
        "args": {**({"keys": "pred"} if segments else {}), "output_dir": "{MMAR_EVAL_OUTPUT_PATH}"},
    }
    inference = _evaluation(conf, True, "test", False, [] if segments else [saver])
    if segments:
        kept = [t for t in inference["post_transforms"] if t.get("name") != saver["name"]]
        inference["post_transforms"] = [*kept, saver]
    metrics = {
        "name": "MetricsSaver",
        "args": {
            "save_dir": "{MMAR_EVAL_OUTPUT_PATH}",
            "metrics": "*",
            "metric_details": "*" if task == "regression" else ["val_mean_dice"],
            "summary_ops": "*",
        },
    }
    return {
        "config_finetune.json": finetune_config(conf, parent),
        "config_validation.json": _evaluation(conf, True, "validation", True, [metrics]),
        "config_validation_ckpt.json": _evaluation(conf, False, "validation", True, [metrics]),
        "config_inference.json": inference,
    }
