"""The MMAR configurations that follow from config_train.json."""

from __future__ import annotations

from copy import deepcopy

from .grammar import with_references


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


def _finetune(conf: dict) -> dict:
    """The training configuration with a loader of the archive's own weights in front."""
    tuned = deepcopy(conf)
    tuned["dont_load_ckpt_model"] = False
    loader = {
        "name": "CheckpointLoader",
        "disabled": "{dont_load_ckpt_model}",
        "args": {"load_path": "{MMAR_CKPT}", "load_dict": {"model": "@model"}},
    }
    others = [h for h in tuned["train"]["handlers"] if h.get("name") != "CheckpointLoader"]
    tuned["train"]["handlers"] = [loader, *others]
    return tuned


def derived_configs(conf: dict, task: str) -> dict[str, dict]:
    """config_finetune, config_validation, config_validation_ckpt and config_inference.

    Parameters
    ----------
    conf:
        A ``config_train.json`` with both sections.
    task:
        segmentation, classification or regression; decides how predictions are saved, and which details of metrics.
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
        "config_finetune.json": _finetune(conf),
        "config_validation.json": _evaluation(conf, True, "validation", True, [metrics]),
        "config_validation_ckpt.json": _evaluation(conf, False, "validation", True, [metrics]),
        "config_inference.json": inference,
    }
