"""The MONAI Bundle face: the recipe's configurations in the bundle's language. No torch.

Everything follows from the effective configuration and ``data/dataset.json``; nothing from results,
because the exported TorchScript carries two of these files and is evaluated afterwards. Expressions
(``$…``) are kept to a handful that a reader can check at a glance.
"""

from __future__ import annotations

from typing import Any

from . import bundle_parts as parts
from . import bundle_scoring as scoring
from . import layout
from .bundle_metadata import metadata
from .configure import read_effective, training_settings_of
from .dataset import SEGMENTATION
from .errors import UserError
from .files import json_text, write_text
from .multi_label import is_multi_label
from .split_files import own_groups, tested_on

__all__ = ["evaluate_config", "inference_config", "metadata", "train_config", "write_bundle_config"]

LOGGING_CONF = """\
[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=INFO
handlers=console

[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)

[formatter_plain]
format=%(asctime)s %(levelname)s %(name)s: %(message)s
"""


# ---- inference.json


def inference_config(archive: str) -> dict:
    """``configs/inference.json``: the published model on the datalist's test cases.

    The recipe's own transforms and inferer, then back to each file's grid: the segmentations that the
    archive holds. Without a test group of it, the published split's validation cases.
    """
    settings = read_effective(archive, "train")
    groups, published = read_effective(archive, "test")["groups"], read_effective(archive, "publish")["publish"]
    key = "test" if tested_on(published, groups, own_groups(groups)) else "validation"
    before, after = parts.split_post(settings)
    post = parts.transforms(before, {"pred"})
    if settings["task"] == SEGMENTATION:
        post += [parts.invert("pred", "image", False), *parts.transforms(after, {"pred"})]
        decided = is_multi_label(settings) or parts.gives_class_numbers(after)
        post += [] if decided else [parts.transform("AsDiscreted", keys="pred", argmax=True)]
        post += [_save_segmentation()]
    else:
        post += [*([] if is_multi_label(settings) else parts.transforms(after, {"pred"})), *_save_numbers()]
    return {
        **parts.common(archive),
        **parts.listed(key, labelled=False),
        "preprocessing": parts.compose(
            [
                parts.transform("SelectItemsd", keys="image"),
                *parts.transforms(settings["validate"]["pre_transforms"], {"image"}),
            ]
        ),
        "dataset": parts.dataset("@data", "@preprocessing"),
        "dataloader": parts.dataloader("@dataset"),
        "inferer": parts.target("inferer", settings["validate"]["inferer"]),
        "postprocessing": parts.compose(post),
        "handlers": [parts.checkpoint_loader()],
        "evaluator": parts.evaluator(val_handlers="@handlers"),
        "run": ["$@evaluator.run()"],
    }


def _save_segmentation() -> dict:
    return parts.transform(
        "SaveImaged",
        keys="pred",
        output_dir="@output_dir",
        output_postfix="seg",
        output_dtype="uint8",
        resample=False,
        print_log=False,
    )


def _save_numbers() -> list[dict]:
    """A csv row per case: the image's path and each class's value, or the one number."""
    meta = {"keys": "pred", "meta_keys": "image_meta_dict"}
    file = {"output_dir": "@output_dir", "filename": "predictions.csv", "overwrite": True}
    return [
        parts.transform("FromMetaTensord", keys="image", data_type="tensor"),
        parts.transform("SaveClassificationd", **meta, **file),
    ]


# ---- evaluate.json


def evaluate_config(archive: str) -> dict:
    """``configs/evaluate.json``: the published model on its split's validation cases, or other lists of the datalist."""
    settings = read_effective(archive, "train")
    scored = scoring.metrics(settings)
    saver = _handler("MetricsSaver", {"save_dir": "@output_dir", "metrics": "*"})
    return {
        **scoring.imports(settings),
        **parts.common(archive),
        **parts.listed("validation", settings["task"] == SEGMENTATION),
        "preprocessing": scoring.preprocessing(settings, settings["validate"]["pre_transforms"], scored=True),
        "dataset": parts.dataset("@data", "@preprocessing"),
        "dataloader": parts.dataloader("@dataset"),
        "inferer": parts.target("inferer", settings["validate"]["inferer"]),
        "postprocessing": scoring.postprocessing(settings, "@preprocessing"),
        **scored,
        "handlers": [parts.checkpoint_loader(), saver],
        "evaluator": parts.evaluator(
            val_handlers="@handlers",
            additional_metrics="@additional_metrics",
            **({"key_val_metric": "@key_metric"} if "key_metric" in scored else {}),
        ),
        "run": ["$@evaluator.run()"],
    }


# ---- train.json


def _runtime(value: Any) -> Any:
    """The variables that only a started training knows, as expressions."""
    known = {
        "{iterations}": "$len(@train#dataloader) * @epochs",
        "{steps_per_epoch}": "$len(@train#dataloader)",
    }
    if isinstance(value, dict):
        return {k: _runtime(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_runtime(v) for v in value]
    return known.get(value, value) if isinstance(value, str) else value


def _lr_scheduler(component: dict) -> dict:
    args = dict(component["args"])
    if "schedulers" in args:
        args["schedulers"] = [_lr_scheduler({"args": {}, **c}) for c in args["schedulers"]]
    return parts.target("lr_scheduler", {**component, "args": _runtime(args)}, optimizer="@optimizer")


def train_config(archive: str) -> dict:
    """``configs/train.json``: the recipe's training for MONAI's own client.

    The archive's weights come from this workflow, which seeds every epoch and keeps every file's grid;
    this is the same recipe, not the same bytes. Its best weights go to ``output_dir``, beside nothing published.
    """
    settings = training_settings_of(archive)
    schedule, optimizer = settings["lr_scheduler"], settings["optimizer"]
    optimizer = {**optimizer, "args": _runtime(optimizer["args"])}
    return {
        **scoring.imports(settings),
        **parts.common(archive),
        "epochs": settings["epochs"],
        "val_interval": settings["validation_interval"],
        "loss": parts.target("loss", settings["loss"]),
        "optimizer": parts.target("optimizer", optimizer, params="$@network.parameters()"),
        **({"lr_scheduler": _lr_scheduler(schedule)} if schedule else {}),
        "train": _train_section(settings),
        "validate": _validate_section(settings),
        "initialize": [f"$monai.utils.set_determinism(seed={settings['seed']})"],
        "run": ["$@train#trainer.run()"],
    }


def _train_section(settings: dict) -> dict:
    batches = {"batch_size": settings["batch_size"], "shuffle": True, "num_workers": settings["num_workers"]}
    return {
        "data": parts.data("training", settings["task"] == SEGMENTATION),
        "preprocessing": scoring.preprocessing(settings, settings["pre_transforms"]),
        "dataset": parts.dataset("@train#data", "@train#preprocessing"),
        "dataloader": parts.dataloader("@train#dataset", **batches),
        "inferer": parts.target("inferer", settings["inferer"]),
        "handlers": _train_handlers(settings),
        "trainer": {
            "_target_": "monai.engines.SupervisedTrainer",
            "max_epochs": "@epochs",
            "device": "@device",
            "train_data_loader": "@train#dataloader",
            "network": "@network",
            "optimizer": "@optimizer",
            "loss_function": "@loss",
            "inferer": "@train#inferer",
            "train_handlers": "@train#handlers",
            "amp": "$torch.cuda.is_available()" if settings["amp"] else False,
        },
    }


def _train_handlers(settings: dict) -> list[dict]:
    losses = {"tag_name": "train_loss", "output_transform": "$monai.handlers.from_engine(['loss'], first=True)"}
    validation = {"validator": "@validate#evaluator", "epoch_level": True, "interval": "@val_interval"}
    schedule = {"lr_scheduler": "@lr_scheduler", "epoch_level": settings["lr_epoch_level"]}
    return [
        *([_handler("LrScheduleHandler", schedule)] if settings["lr_scheduler"] else []),
        _handler("ValidationHandler", validation),
        _handler("StatsHandler", losses),
    ]


def _handler(name: str, args: dict) -> dict:
    return parts.target("handler", {"name": name, "args": args})


def _validate_section(settings: dict) -> dict:
    validate, metrics = settings["validate"], scoring.metrics(settings, "validate#")
    key = next(iter(metrics.get("key_metric", {})), None)
    saved = {"save_dir": "@output_dir", "save_dict": {"model": "@network"}, "save_key_metric": True}
    scored = {"additional_metrics": "@validate#additional_metrics"}
    scored |= {"key_val_metric": "@validate#key_metric"} if key else {}
    if any(m["label"] == key and m["mode"] == "min" for m in validate["metrics"]):
        saved["key_metric_negative_sign"] = True
        scored["metric_cmp_fn"] = "$lambda value, best: value < best"
    return {
        "data": parts.data("validation", settings["task"] == SEGMENTATION),
        "preprocessing": scoring.preprocessing(settings, validate["pre_transforms"], scored=True),
        "dataset": parts.dataset("@validate#data", "@validate#preprocessing"),
        "dataloader": parts.dataloader("@validate#dataset"),
        "inferer": parts.target("inferer", validate["inferer"]),
        "postprocessing": scoring.postprocessing(settings, "@validate#preprocessing"),
        "handlers": [_handler("StatsHandler", {"iteration_log": False}), _handler("CheckpointSaver", saved)],
        **metrics,
        "evaluator": parts.evaluator("validate#", val_handlers="@validate#handlers", **scored),
    }


def write_bundle_config(archive: str, name: str) -> list[str]:
    """Write one of ``layout.BUNDLE_CONFIGS``; return its path."""
    makers = {
        "metadata.json": metadata,
        "train.json": train_config,
        "evaluate.json": evaluate_config,
        "inference.json": inference_config,
    }
    if name not in layout.BUNDLE_CONFIGS:
        raise UserError(f"configs/{name}: no such file in a bundle; wanted one of {', '.join(layout.BUNDLE_CONFIGS)}")
    path = layout.bundle_config(archive, name)
    write_text(path, json_text(makers[name](archive)) if name in makers else LOGGING_CONF)
    return [path]
