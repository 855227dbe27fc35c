"""What of a recipe's metrics ClinicaDL 2.0.0 computes to the same values: the parts of metrics.json. No torch.

ClinicaDL applies the post-transforms of a metric to the batch that all later metrics are given too. So they must change
nothing when they come a second time, or belong to the first metric alone. Labels are one-hot, as its losses need them.
"""

from __future__ import annotations

from typing import Any

from .clinicadl_model import Inexpressible
from .dataset import CLASSIFICATION, REGRESSION
from .multi_label import is_multi_label

LOSS = "loss"
NOT_SPATIAL = {
    *("LoadImaged", "EnsureChannelFirstd", "EnsureTyped", "CastToTyped", "AsDiscreted", "NormalizeIntensityd"),
    *("ScaleIntensityd", "ScaleIntensityRanged", "ScaleIntensityRangePercentilesd", "ThresholdIntensityd"),
}
"""Pre-transforms that leave the grid alone: behind others, ClinicaDL would score on another grid than the file's."""
_SET_ASIDE = {"SaveImaged", "SaveClassificationd", "Invertd"}

_OVERLAP = {"include_background": True, "ignore_empty": True}
_BY_CASE = {
    "MeanDice": ("DiceMetric", {**_OVERLAP, "num_classes": None, "return_with_label": False}),
    "MeanIoUHandler": ("MeanIoU", _OVERLAP),
}
_OF_RANKS = {"ROCAUC": "ROCAUCMetric", "AveragePrecision": "AveragePrecisionMetric"}
_OF_NUMBERS = {"MeanSquaredError": "MSEMetric", "MeanAbsoluteError": "MAEMetric"}
_REDUCED = {"get_not_nans": False, "reduction": "mean"}
_REDUCTIONS = ("mean", "mean_batch", "mean_channel", "none", None)


def _transform(name: str, **fields: Any) -> dict:
    return {"name_": name, "include": ["output"], "exclude": None, "copy": False, **fields}


_SOFTMAX = _transform("Activations", sigmoid=False, softmax=True, other=None, dim=0)


def _as_discrete(**fields: Any) -> dict:
    choice = {"argmax": False, "to_onehot": None, "threshold": None, "rounding": None, **fields}
    return _transform("AsDiscrete", **choice, dtype="torch.float32", dim=0)


def _of_prediction(value: Any) -> Any:
    """What a post-transform does with the prediction, the first of its keys."""
    return value[0] if isinstance(value, list) and value else value


def _post_transforms(components: list[dict]) -> tuple[bool, bool]:
    """Whether the prediction goes through a softmax, and whether through an argmax after it."""
    softmax = argmax = False
    for component in components:
        name, args = component.get("name"), component["args"]
        if name in _SET_ASIDE:
            continue
        done = {k for k, v in args.items() if k not in ("keys", "to_onehot", "dim") and _of_prediction(v)}
        if _of_prediction(args.get("keys")) != "pred":
            continue
        if name == "Activationsd" and done == {"softmax"} and not argmax:
            softmax = True
        elif name == "AsDiscreted" and done == {"argmax"}:
            argmax = True
        else:
            raise Inexpressible(f"post-transform {name} {args} is none that ClinicaDL can repeat")
    return softmax, argmax


def outputs_of(model: dict) -> int | None:
    """How many channels or classes a network gives, by its arguments."""
    found = next((model["args"][k] for k in ("out_channels", "num_classes", "classes") if k in model["args"]), None)
    return found if type(found) is int and found > 0 else None


def _described(component: dict, settings: dict, first: bool) -> dict:
    name = component.get("name")
    if is_multi_label(settings):
        raise Inexpressible("classes that may occur together are not compared with ClinicaDL's")
    softmax, argmax = _post_transforms(settings["validate"]["post_transforms"])
    if settings["task"] == REGRESSION:
        return _of_regression(name, component["args"], softmax or argmax)
    outputs = outputs_of(settings["model"])
    if outputs is None:
        raise Inexpressible("the network's arguments do not say how many outputs it has")
    soft = [_SOFTMAX] if softmax else []
    hard = [*soft, _as_discrete(argmax=True), _as_discrete(to_onehot=outputs)]
    if settings["task"] == CLASSIFICATION:
        return _of_classification(name, component["args"], outputs, (soft, hard), first, argmax)
    return _of_segmentation(name, component["args"], settings, hard, argmax)


def _of_regression(name, args: dict, of_classes: bool) -> dict:
    if name == "RootMeanSquaredError":
        raise Inexpressible("ClinicaDL takes the mean of the cases' roots")
    if name not in _OF_NUMBERS or of_classes:
        raise Inexpressible("ClinicaDL has no class that gives the same value")
    if args.keys() - {"reduction"} or args.get("reduction") not in _REDUCTIONS:
        raise Inexpressible(f"arguments {args} are more than ClinicaDL's")
    return _metric(_OF_NUMBERS[name], [], _REDUCED)


def _of_classification(name, args: dict, outputs: int, post: tuple[list, list], first: bool, argmax: bool) -> dict:
    soft, hard = post
    if argmax:
        raise Inexpressible("scores of classes chosen before are not compared")
    if name in _OF_RANKS:
        if args.keys() - {"average"}:
            raise Inexpressible(f"arguments {args} are more than ClinicaDL's")
        if soft and not first:
            raise Inexpressible("a second softmax would come before it; make it the recipe's key metric")
        return _metric(_OF_RANKS[name], soft, {"average": args.get("average", "macro")})
    if name == "Accuracy" and not args:
        if outputs != 2:
            raise Inexpressible("ClinicaDL's accuracy is the mean over classes of one class against the rest")
        fields = {"metric_name": "accuracy", "include_background": True, "compute_sample": False, **_REDUCED}
        return _metric("ConfusionMatrixMetric", hard, fields)
    raise Inexpressible("ClinicaDL has no class that gives the same value")


def _of_segmentation(name, args: dict, settings: dict, hard: list[dict], argmax: bool) -> dict:
    if name not in _BY_CASE:
        reason = "ClinicaDL measures in voxels, this table is in mm" if "Distance" in str(name) else None
        raise Inexpressible(reason or "ClinicaDL has no class that gives the same value")
    if moved := [t for t in settings["validate"]["pre_transforms"] if t.get("name") not in NOT_SPATIAL]:
        raise Inexpressible(
            f"{moved[0].get('name') or moved[0]['path']} may change the grid, this table is on the label file's"
        )
    if not argmax:
        raise Inexpressible("only scores of the chosen class (AsDiscreted with argmax) are compared")
    kind, defaults = _BY_CASE[name]
    if args.keys() - {"include_background", "ignore_empty", "reduction"} or args.get("reduction") not in _REDUCTIONS:
        raise Inexpressible(f"arguments {args} are more than ClinicaDL's")
    # A case's value is the mean over its classes and the set's over its cases, however the recipe reduces.
    return _metric(kind, hard, {**defaults, **{k: args[k] for k in defaults if k in args}, **_REDUCED})


def _metric(kind: str, postprocessing: list[dict], fields: dict, prediction: str = "output") -> dict:
    keys = {"pred_key": prediction, "label_key": "label"}
    return {
        "name_": kind,
        **keys,
        "postprocessing": {"name_": "PostprocessingHandler", "transforms": postprocessing},
        **fields,
    }


def _stand_in(component: dict, reason: str) -> dict:
    """A metric that ClinicaDL reads, so that the archive opens, and whose computation stops with the reason."""
    prediction = f"{component['label']}, which is not ClinicaDL's to compute ({reason})"
    if component["mode"] == "max":
        return _metric("DiceMetric", [], {**_BY_CASE["MeanDice"][1], **_REDUCED}, prediction)
    return _metric("MAEMetric", [], _REDUCED, prediction)


def metrics(settings: dict) -> tuple[dict[str, dict], dict[str, str]]:
    """A description for every column of the tables, and why ClinicaDL cannot compute some.

    Parameters
    ----------
    settings:
        The effective training configuration.

    Returns
    -------
    dict
        Descriptions as ``MetricConfig`` reads them, by name; the loss first, before any post-transform.
    dict
        Reasons by name, for those that are not computed to the same values.
    """
    described, reasons = {LOSS: _metric("LossMetric", [], {"loss_name": LOSS})}, {}
    for i, component in enumerate(settings["validate"]["metrics"]):
        try:
            described[component["label"]] = _described(component, settings, i == 0)
        except Inexpressible as reason:
            described[component["label"]] = _stand_in(component, str(reason))
            reasons[component["label"]] = f"{component.get('name') or component['path']} {component['args']}: {reason}"
    return described, reasons
