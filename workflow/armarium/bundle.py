"""The MONAI Bundle face: metadata, and the recipe's configurations in the bundle's language. No torch.

Everything follows from the effective configuration and ``data/dataset.json``; nothing from results,
because the exported TorchScript carries two of these files and is evaluated afterwards. Expressions
(``$…``) are kept to a handful that a reader can check at a glance.
"""

from __future__ import annotations

from typing import Any

from . import layout
from .bundle_metadata import metadata
from .configure import read_effective
from .errors import UserError
from .files import json_text, read_json, write_text

TORCH_LOSSES = {
    *("BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "GaussianNLLLoss", "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss"),
    *("MultiLabelSoftMarginLoss", "MultiMarginLoss", "NLLLoss", "PoissonNLLLoss", "SmoothL1Loss", "SoftMarginLoss"),
}
IGNITE_METRICS = {"Accuracy", "Precision", "Recall", "Fbeta", "TopKCategoricalAccuracy", "CohenKappa"}
DISTANCES = {"HausdorffDistance", "SurfaceDistance"}
"""In mm in this archive's tables; MONAI's handlers give voxels, so evaluate.json leaves them out."""

SAVED_BY_US = {"SaveImaged", "SaveClassificationd", "Invertd"}
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


# ---- components in the bundle's language


def _module(kind: str, name: str) -> str:
    """Module that the recipe's component comes from, first match as ``components.MODULES`` has it."""
    return {
        "loss": "torch.nn" if name in TORCH_LOSSES else "monai.losses",
        "optimizer": "monai.optimizers" if name == "Novograd" else "torch.optim",
        "lr_scheduler": "monai.optimizers" if name == "WarmupCosineSchedule" else "torch.optim.lr_scheduler",
        "model": "monai.networks.nets",
        "transform": "monai.transforms",
        "inferer": "monai.inferers",
        "handler": "monai.handlers",
        "metric": "ignite.metrics" if name in IGNITE_METRICS else "monai.handlers",
    }[kind]


def _target(kind: str, component: dict, **extra: Any) -> dict:
    name = component.get("name")
    target = f"{_module(kind, name)}.{name}" if name else component["path"]
    return {"_target_": target, **component["args"], **extra}


def _transforms(components: list[dict], present: set[str]) -> list[dict]:
    """Dictionary transforms for items that have only the keys ``present``."""
    kept = []
    for component in components:
        keys = component["args"].get("keys", [])
        keys = {keys} if isinstance(keys, str) else set(keys)
        if keys and not keys & present:
            continue
        missing = {"allow_missing_keys": True} if keys - present else {}
        kept.append(_target("transform", component, **missing))
    return kept


def _transform(name: str, **args: Any) -> dict:
    return {"_target_": f"monai.transforms.{name}", **args}


def _compose(transforms: list[dict]) -> dict:
    return {"_target_": "monai.transforms.Compose", "transforms": transforms}



def _common(archive: str, datalist_key: str, labelled: bool) -> dict:
    """What every bundle configuration starts with; paths are relative to the bundle."""
    datalist = layout.datalist("", read_effective(archive, "publish")["publish"])
    return {
        "bundle_root": ".",
        "dataset_dir": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": f"$@bundle_root + '{datalist}'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "data": _data(datalist_key, labelled),
        "network_def": _target("model", read_effective(archive, "train")["model"]),
        "network": "$@network_def.to(@device)",
    }


def _data(key: str, labelled: bool) -> dict:
    return {
        "_target_": "monai.data.load_decathlon_datalist",
        "data_list_file_path": "@datalist",
        "is_segmentation": labelled,
        "data_list_key": key,
        "base_dir": "@dataset_dir",
    }


def _dataset(data: str, transform: str) -> dict:
    return {"_target_": "monai.data.Dataset", "data": data, "transform": transform}


def _dataloader(dataset: str, batch_size: int = 1, shuffle: bool = False, num_workers: int = 0) -> dict:
    return {"_target_": "monai.data.DataLoader", "dataset": dataset, "batch_size": batch_size, "shuffle": shuffle, "num_workers": num_workers}


def _checkpoint_loader() -> dict:
    return {
        "_target_": "monai.handlers.CheckpointLoader",
        "load_path": f"$@bundle_root + '{layout.published_model('')}'",
        "load_dict": {"model": "@network"},
        "map_location": "@device",
    }


def _evaluator(prefix: str = "", **extra: Any) -> dict:
    return {
        "_target_": "monai.engines.SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": f"@{prefix}dataloader",
        "network": "@network",
        "inferer": f"@{prefix}inferer",
        "postprocessing": f"@{prefix}postprocessing",
        "amp": False,
        **extra,
    }


def _split_post(settings: dict) -> tuple[list[dict], list[dict]]:
    """Post-transforms before and after the prediction returns to its file's grid, as the evaluation does it."""
    post = [c for c in settings["validate"]["post_transforms"] if c.get("name") not in SAVED_BY_US]
    first = next((i for i, c in enumerate(post) if c.get("name") == "AsDiscreted"), len(post))
    return post[:first], post[first:]


def _gives_class_numbers(post: list[dict]) -> bool:
    """Whether the last AsDiscreted leaves class numbers, not one channel per class."""
    last = next((c["args"] for c in reversed(post) if c.get("name") == "AsDiscreted"), {})
    return bool(_first(last.get("argmax"))) and not _first(last.get("to_onehot"))


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


# ---- inference.json


def inference_config(archive: str) -> dict:
    """``configs/inference.json``: the published model on the datalist's test cases.

    The recipe's own transforms and inferer, then back to each file's grid: the segmentations that the
    archive holds. Without a test group, the published split's validation cases.
    """
    settings = read_effective(archive, "train")
    key = "test" if read_effective(archive, "evaluate")["groups"] else "validation"
    before, after = _split_post(settings)
    post = _transforms(before, {"pred"})
    if settings["task"] == "segmentation":
        post += [_invert("pred", "image", False), *_transforms(after, {"pred"})]
        post += [] if _gives_class_numbers(after) else [_transform("AsDiscreted", keys="pred", argmax=True)]
        post += [_save_segmentation()]
    else:
        post += [*_transforms(after, {"pred"}), _save_probabilities()]
    return {
        **_common(archive, key, labelled=False),
        "preprocessing": _compose([_transform("SelectItemsd", keys="image"), *_transforms(settings["validate"]["pre_transforms"], {"image"})]),
        "dataset": _dataset("@data", "@preprocessing"),
        "dataloader": _dataloader("@dataset"),
        "inferer": _target("inferer", settings["validate"]["inferer"]),
        "postprocessing": _compose(post),
        "handlers": [_checkpoint_loader()],
        "evaluator": _evaluator(val_handlers="@handlers"),
        "run": ["$@evaluator.run()"],
    }


def _invert(keys: str | list[str], orig_keys: str | list[str], nearest: bool | list[bool], transform: str = "@preprocessing") -> dict:
    return _transform("Invertd", keys=keys, orig_keys=orig_keys, transform=transform, nearest_interp=nearest, to_tensor=True)


def _save_segmentation() -> dict:
    return _transform("SaveImaged", keys="pred", output_dir="@output_dir", output_postfix="seg", output_dtype="uint8", resample=False, print_log=False)


def _save_probabilities() -> dict:
    """A csv row per case: the image's path and each class's value."""
    return _transform("SaveClassificationd", keys="pred", meta_keys="image_meta_dict", output_dir="@output_dir", filename="predictions.csv", overwrite=False)


# ---- evaluate.json


def _metric_components(settings: dict) -> dict[str, dict]:
    """Metrics by label, the key metric first; distances in mm have no handler of MONAI's own."""
    listed = [m for m in settings["validate"]["metrics"] if m.get("name") not in DISTANCES]
    taken = "$monai.handlers.from_engine(['pred', 'label'])"
    return {m["label"]: _target("metric", m, output_transform=taken) for m in listed}


def _scored_post(settings: dict, transform: str) -> list[dict]:
    """Post-transforms that end with prediction and label as a metric wants them: one-hot, on the file's grid."""
    before, after = _split_post(settings)
    both = {"pred", "label"}
    if settings["task"] == "classification":
        return _transforms([*before, *after], both)
    classes = next((settings["model"]["args"][k] for k in ("out_channels", "num_classes") if k in settings["model"]["args"]), None)
    if classes is None:
        raise UserError(f"model {settings['model'].get('name')}: args lack out_channels, which evaluate.json needs; add it to the recipe")
    numbers = [] if _gives_class_numbers(after) else [_transform("AsDiscreted", keys="pred", argmax=True)]
    inverted = _invert(["pred", "label"], ["image", "label"], [False, True], transform)
    # AsDiscreted of the recipe may already have made the label one-hot; one that is stays.
    onehot_label = any("label" in c["args"].get("keys", []) for c in after if c.get("name") == "AsDiscreted")
    last = _transform("AsDiscreted", keys=["pred"] if onehot_label else ["pred", "label"], to_onehot=classes)
    return [*_transforms(before, both), inverted, *_transforms(after, both), *numbers, last]


def evaluate_config(archive: str) -> dict:
    """``configs/evaluate.json``: the published model on its split's validation cases, with the recipe's metrics."""
    settings = read_effective(archive, "train")
    metrics = _metric_components(settings)
    key, *others = metrics or [None]
    extra = {"key_val_metric": {key: f"@metrics#{key}"}} if key else {}
    extra |= {"additional_metrics": {m: f"@metrics#{m}" for m in others}} if others else {}
    saver = {"_target_": "monai.handlers.MetricsSaver", "save_dir": "@output_dir", "metrics": "*", "metric_details": None, "batch_transform": None}
    return {
        **_common(archive, "validation", settings["task"] == "segmentation"),
        "preprocessing": _compose(_transforms(settings["validate"]["pre_transforms"], {"image", "label"})),
        "dataset": _dataset("@data", "@preprocessing"),
        "dataloader": _dataloader("@dataset"),
        "inferer": _target("inferer", settings["validate"]["inferer"]),
        "postprocessing": _compose(_scored_post(settings, "@preprocessing")),
        "metrics": metrics,
        "handlers": [_checkpoint_loader(), {k: v for k, v in saver.items() if v is not None}],
        "evaluator": _evaluator(val_handlers="@handlers", **extra),
        "run": ["$@evaluator.run()"],
    }


# ---- train.json


def _runtime(value: Any) -> Any:
    """The variables that only a started training knows, as expressions."""
    known = {"{iterations}": "$len(@train#dataloader) * @epochs", "{steps_per_epoch}": "$len(@train#dataloader)"}
    if isinstance(value, dict):
        return {k: _runtime(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_runtime(v) for v in value]
    return known.get(value, value) if isinstance(value, str) else value


def _lr_scheduler(component: dict) -> dict:
    args = dict(component["args"])
    if "schedulers" in args:
        args["schedulers"] = [_lr_scheduler({"args": {}, **c}) for c in args["schedulers"]]
    return _target("lr_scheduler", {**component, "args": _runtime(args)}, optimizer="@optimizer")


def train_config(archive: str) -> dict:
    """``configs/train.json``: the recipe's training for MONAI's own client.

    The archive's weights come from this workflow, which seeds every epoch and keeps every file's grid;
    this is the same recipe, not the same bytes.
    """
    settings = read_effective(archive, "train")
    labelled = settings["task"] == "segmentation"
    common = _common(archive, "training", labelled)
    train_data = common.pop("data")
    schedule = settings["lr_scheduler"]
    handlers = [
        {"_target_": "monai.handlers.ValidationHandler", "validator": "@validate#evaluator", "epoch_level": True, "interval": "@val_interval"},
        {"_target_": "monai.handlers.StatsHandler", "tag_name": "train_loss", "output_transform": "$monai.handlers.from_engine(['loss'], first=True)"},
    ]
    if schedule:
        handlers.insert(0, {"_target_": "monai.handlers.LrScheduleHandler", "lr_scheduler": "@lr_scheduler", "print_lr": True, "epoch_level": settings["lr_epoch_level"]})
    metrics = _metric_components(settings)
    key = next(iter(metrics), None)
    return {
        **common,
        "epochs": settings["epochs"],
        "val_interval": settings["validation_interval"],
        "loss": _target("loss", settings["loss"]),
        "optimizer": _target("optimizer", {**settings["optimizer"], "args": _runtime(settings["optimizer"]["args"])}, params="$@network.parameters()"),
        **({"lr_scheduler": _lr_scheduler(schedule)} if schedule else {}),
        "train": {
            "data": train_data,
            "preprocessing": _compose(_transforms(settings["pre_transforms"], {"image", "label"})),
            "dataset": _dataset("@train#data", "@train#preprocessing"),
            "dataloader": _dataloader("@train#dataset", settings["batch_size"], True, settings["num_workers"]),
            "inferer": _target("inferer", settings["inferer"]),
            "handlers": handlers,
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
        },
        "validate": {
            "data": _data("validation", labelled),
            "preprocessing": _compose(_transforms(settings["validate"]["pre_transforms"], {"image", "label"})),
            "dataset": _dataset("@validate#data", "@validate#preprocessing"),
            "dataloader": _dataloader("@validate#dataset"),
            "inferer": _target("inferer", settings["validate"]["inferer"]),
            "postprocessing": _compose(_scored_post(settings, "@validate#preprocessing")),
            "handlers": [
                {"_target_": "monai.handlers.StatsHandler", "iteration_log": False},
                {
                    "_target_": "monai.handlers.CheckpointSaver",
                    "save_dir": "$@bundle_root + '/models'",
                    "save_dict": {"model": "@network"},
                    "save_key_metric": True,
                    "key_metric_filename": "retrained.pt",
                },
            ],
            **({"key_metric": {key: metrics[key]}} if key else {}),
            "evaluator": _evaluator("validate#", val_handlers="@validate#handlers", **({"key_val_metric": "@validate#key_metric"} if key else {})),
        },
        "initialize": [f"$monai.utils.set_determinism(seed={settings['seed']})"],
        "run": ["$@train#trainer.run()"],
    }


def write_bundle_config(archive: str, name: str) -> list[str]:
    """Write one of ``layout.BUNDLE_CONFIGS``; return its path."""
    makers = {"metadata.json": metadata, "train.json": train_config, "evaluate.json": evaluate_config, "inference.json": inference_config}
    if name not in layout.BUNDLE_CONFIGS:
        raise UserError(f"configs/{name}: no such file in a bundle; wanted one of {', '.join(layout.BUNDLE_CONFIGS)}")
    path = layout.bundle_config(archive, name)
    write_text(path, json_text(makers[name](archive)) if name in makers else LOGGING_CONF)
    return [path]
