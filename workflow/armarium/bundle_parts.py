"""Building blocks of the bundle's configurations: components as ``_target_``, references as ``@id``."""

from __future__ import annotations

from typing import Any

from . import layout
from .configure import read_effective

TORCH_LOSSES = {
    *("BCELoss", "BCEWithLogitsLoss", "CrossEntropyLoss", "GaussianNLLLoss", "HuberLoss", "KLDivLoss"),
    *("L1Loss", "MSELoss", "MultiLabelSoftMarginLoss", "MultiMarginLoss", "NLLLoss", "PoissonNLLLoss"),
    *("SmoothL1Loss", "SoftMarginLoss"),
}
IGNITE_METRICS = {"Accuracy", "Precision", "Recall", "Fbeta", "TopKCategoricalAccuracy", "CohenKappa"}
IGNITE_REGRESSION = {
    *("CanberraMetric", "FractionalAbsoluteError", "FractionalBias", "GeometricMeanAbsoluteError"),
    *("GeometricMeanRelativeAbsoluteError", "KendallRankCorrelation", "ManhattanDistance", "MaximumAbsoluteError"),
    *("MeanAbsoluteRelativeError", "MeanError", "MeanNormalizedBias", "MedianAbsoluteError"),
    *("MedianAbsolutePercentageError", "MedianRelativeAbsoluteError", "PearsonCorrelation", "R2Score"),
    *("SpearmanRankCorrelation", "WaveHedgesDistance"),
}
SAVED_BY_US = {"SaveImaged", "SaveClassificationd", "Invertd"}


def module(kind: str, name: str) -> str:
    """Module that the recipe's component comes from, first match as ``components.MODULES`` has it."""
    return {
        "loss": "torch.nn" if name in TORCH_LOSSES else "monai.losses",
        "optimizer": "monai.optimizers" if name == "Novograd" else "torch.optim",
        "lr_scheduler": "monai.optimizers" if name == "WarmupCosineSchedule" else "torch.optim.lr_scheduler",
        "model": "monai.networks.nets",
        "transform": "monai.transforms",
        "inferer": "monai.inferers",
        "handler": "monai.handlers",
        "metric": _metric_module(name),
    }[kind]


def _metric_module(name: str) -> str:
    if name in IGNITE_REGRESSION:
        return "ignite.metrics.regression"
    return "ignite.metrics" if name in IGNITE_METRICS else "monai.handlers"


def target(kind: str, component: dict, **extra: Any) -> dict:
    name = component.get("name")
    path = f"{module(kind, name)}.{name}" if name else component["path"]
    return {"_target_": path, **component["args"], **extra}


def transforms(components: list[dict], present: set[str]) -> list[dict]:
    """Dictionary transforms for items that have only the keys ``present``."""
    kept = []
    for component in components:
        keys = component["args"].get("keys", [])
        keys = {keys} if isinstance(keys, str) else set(keys)
        if keys and not keys & present:
            continue
        missing = {"allow_missing_keys": True} if keys - present else {}
        kept.append(target("transform", component, **missing))
    return kept


def transform(name: str, **args: Any) -> dict:
    return {"_target_": f"monai.transforms.{name}", **args}


def compose(transforms: list[dict]) -> dict:
    return {"_target_": "monai.transforms.Compose", "transforms": transforms}


def common(archive: str) -> dict:
    """What every bundle configuration starts with; paths are relative to the bundle.

    Nothing is written where the archive has its own files: a run of MONAI's client changes none of them.
    """
    datalist = layout.datalist("", read_effective(archive, "publish")["publish"])
    return {
        "bundle_root": ".",
        "dataset_dir": ".",
        "output_dir": f"$@bundle_root + '{layout.client_output('')}'",
        "datalist": f"$@bundle_root + '{datalist}'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": target("model", read_effective(archive, "train")["model"]),
        "network": "$@network_def.to(@device)",
    }


def listed(key: str, labelled: bool) -> dict:
    """The cases of one of the datalist's lists, another one by ``--datalist_key``."""
    return {"datalist_key": key, "data": data("@datalist_key", labelled)}


def data(key: str, labelled: bool) -> dict:
    return {
        "_target_": "monai.data.load_decathlon_datalist",
        "data_list_file_path": "@datalist",
        "is_segmentation": labelled,
        "data_list_key": key,
        "base_dir": "@dataset_dir",
    }


def dataset(data: str, transform: str) -> dict:
    return {"_target_": "monai.data.Dataset", "data": data, "transform": transform}


def dataloader(dataset: str, batch_size: int = 1, shuffle: bool = False, num_workers: int = 0) -> dict:
    return {
        "_target_": "monai.data.DataLoader",
        "dataset": dataset,
        "batch_size": batch_size,
        "shuffle": shuffle,
        "num_workers": num_workers,
    }


def checkpoint_loader() -> dict:
    return {
        "_target_": "monai.handlers.CheckpointLoader",
        "load_path": f"$@bundle_root + '{layout.published_model('')}'",
        "load_dict": {"model": "@network"},
        "map_location": "@device",
    }


def evaluator(prefix: str = "", **extra: Any) -> dict:
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


def split_post(settings: dict) -> tuple[list[dict], list[dict]]:
    """Post-transforms before and after the prediction goes back to its file's grid, as in evaluation."""
    post = [c for c in settings["validate"]["post_transforms"] if c.get("name") not in SAVED_BY_US]
    first = next((i for i, c in enumerate(post) if c.get("name") == "AsDiscreted"), len(post))
    return post[:first], post[first:]


def gives_class_numbers(post: list[dict]) -> bool:
    """Whether the last AsDiscreted leaves class numbers, not one channel per class."""
    last = next((c["args"] for c in reversed(post) if c.get("name") == "AsDiscreted"), {})
    return bool(first(last.get("argmax"))) and not first(last.get("to_onehot"))


def first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def invert(
    keys: str | list[str],
    orig_keys: str | list[str],
    nearest: bool | list[bool],
    chain: str = "@preprocessing",
) -> dict:
    return transform("Invertd", keys=keys, orig_keys=orig_keys, transform=chain, nearest_interp=nearest, to_tensor=True)
