"""How a bundle scores: the figures of this archive's tables, by MONAI's and ignite's own components. No torch.

Beside ``label``, prepared as the network's loss wants it, an item of a segmentation has ``reference``: the label on
its file's own grid, which no transform has touched and which predictions are compared with.
"""

from __future__ import annotations

from . import bundle_parts as parts
from .dataset import CLASSIFICATION, REGRESSION, SEGMENTATION
from .errors import UserError
from .multi_label import is_multi_label

DISTANCES = {
    "HausdorffDistance": "monai.metrics.compute_hausdorff_distance",
    "SurfaceDistance": "monai.metrics.compute_average_surface_distance",
}
"""Metrics in mm, for which MONAI's handlers take no voxel size; and the function behind each."""
OF_HANDLERS = {"reduction", "get_not_nans", "output_transform", "save_details"}
"""Arguments of a metric's handler that its function does not take."""
SCORED = "$monai.handlers.from_engine(['pred', 'label'])"
"""Prediction and label, one-hot: what MONAI's metrics compare."""
NUMBERED = "$monai.handlers.from_engine(['pred', 'index'])"
"""Prediction and class numbers (of a regression the target): what ignite's metrics compare."""
DECIDED = "$monai.handlers.from_engine(['decided', 'label'])"
"""Decisions beside probabilities: what metrics of classes that may occur together compare, but those of ranks."""
OF_RANKS = {"ROCAUC", "AveragePrecision"}
RAW = "$monai.handlers.from_engine(['output', 'prepared'])"
"""What the network gave and what it was to give: what the loss compares."""


# ---- before the network


def preprocessing(settings: dict, components: list[dict], scored: bool = False) -> dict:
    """A chain of pre-transforms for items with a label.

    A regression's becomes a float32 tensor ``[1]``; of classes that may occur together 0 and 1 for each ``[classes, …]``.

    Parameters
    ----------
    scored:
        Whether predictions are compared with the labels, so that these are wanted on their files' grids too.
    """
    chain = parts.transforms(components, {"image", "label"})
    if settings["task"] == REGRESSION or _decides_apart(settings):
        chain.append(parts.transform("ToTensord", keys="label", dtype="$torch.float32"))
    elif is_multi_label(settings):  # not ToTensord, which would be undone on the way back to the file's grid
        chain.append(parts.transform("CastToTyped", keys="label", dtype="$torch.float32"))
    if settings["task"] == REGRESSION:
        chain.append(parts.transform("EnsureChannelFirstd", keys="label", channel_dim="no_channel"))
    if scored and settings["task"] == SEGMENTATION and not is_multi_label(settings):
        chain = [
            parts.transform("CopyItemsd", keys="label", names="reference"),
            parts.transform("LoadImaged", keys="reference", reader="NibabelReader"),
            parts.transform("EnsureChannelFirstd", keys="reference"),
            *chain,
        ]
    return parts.compose(chain)


# ---- after it


def postprocessing(settings: dict, transform: str) -> dict:
    """Post-transforms that end with what the metrics compare.

    Parameters
    ----------
    transform:
        Reference to the pre-transforms that brought an image to the network's grid.
    """
    before, after = parts.split_post(settings)
    kept = parts.transform("CopyItemsd", keys=["pred", "label"], names=["output", "prepared"])
    if settings["task"] == SEGMENTATION:
        return parts.compose([kept, *_on_file_grid(settings, before, after, transform)])
    if _decides_apart(settings):
        decided = [*parts.transforms(before, {"pred"}), *_decisions(after)]
        return parts.compose([kept, *decided, parts.transform("CopyItemsd", keys="label", names="index")])
    done = [*parts.transforms([*before, *after], {"pred"}), *_likeliest(settings)]
    index = parts.transform("CopyItemsd", keys="label", names="index")
    return parts.compose(
        [kept, *done, index, *(_one_hot_class(settings) if settings["task"] == CLASSIFICATION else [])]
    )


def _decides_apart(settings: dict) -> bool:
    """Whether some metrics take probabilities, others decisions: of classes that may occur together in a case."""
    return settings["task"] == CLASSIFICATION and is_multi_label(settings)


def _decisions(after: list[dict]) -> list[dict]:
    """Decisions beside the probabilities: by the recipe's post-transforms of a threshold, else from 0.5 on."""
    copied = parts.transform("CopyItemsd", keys="pred", names="decided")
    given = [{**c, "args": {**c["args"], "keys": "decided"}} for c in after]
    chosen = given or [{"name": "AsDiscreted", "args": {"keys": "decided", "threshold": 0.5}}]
    return [copied, *parts.transforms(chosen, {"decided"})]


def _likeliest(settings: dict) -> list[dict]:
    """The likeliest class, one-hot, where a metric of decisions is listed."""
    if settings["task"] != CLASSIFICATION or not any(map(_of_decisions, settings["validate"]["metrics"])):
        return []
    return [
        parts.transform("CopyItemsd", keys="pred", names="decided"),
        parts.transform("AsDiscreted", keys="decided", argmax=True, to_onehot=_classes(settings)),
    ]


def _one_hot_class(settings: dict) -> list[dict]:
    return [
        parts.transform("EnsureChannelFirstd", keys="label", channel_dim="no_channel"),
        parts.transform("AsDiscreted", keys="label", to_onehot=_classes(settings)),
    ]


def _on_file_grid(settings: dict, before: list[dict], after: list[dict], transform: str) -> list[dict]:
    """The prediction back on its file's grid, beside the label as that file has it; both one-hot.

    Of classes that may occur together the recipe makes a label's channels, so that label goes back to the grid too.
    """
    if is_multi_label(settings):
        inverted = parts.invert(["pred", "label"], ["image", "label"], [False, True], transform)
        return [*parts.transforms(before, {"pred"}), inverted, *parts.transforms(after, {"pred", "label"})]
    labels = [
        parts.transform("DeleteItemsd", keys="label"),
        parts.transform("CopyItemsd", keys="reference", names="label"),
    ]
    if any(_of_ignite(metric) for metric in settings["validate"]["metrics"]):
        labels += [
            parts.transform("CopyItemsd", keys="label", names="index"),
            parts.transform("SqueezeDimd", keys="index", dim=0),
            parts.transform("ToTensord", keys="index", dtype="$torch.int64", track_meta=False),
        ]
    return [
        *parts.transforms(before, {"pred"}),
        parts.invert("pred", "image", False, transform),
        *labels,
        *parts.transforms(after, {"pred", "label"}),
        *_one_hot(settings, after),
    ]


def _one_hot(settings: dict, after: list[dict]) -> list[dict]:
    classes = _classes(settings)
    # AsDiscreted of the recipe may already have made the label one-hot; one that is stays.
    onehot_label = any("label" in c["args"].get("keys", []) for c in after if c.get("name") == "AsDiscreted")
    keys = ["pred"] * parts.gives_class_numbers(after) + ["label"] * (not onehot_label)
    return [parts.transform("AsDiscreted", keys=keys, to_onehot=classes)] if keys and classes > 1 else []


def _classes(settings: dict) -> int:
    """Output channels of the recipe's network."""
    args = settings["model"]["args"]
    found = next((args[k] for k in ("out_channels", "num_classes", "n_classes") if k in args), None)
    if found is None:
        raise UserError("model: args lack out_channels, which evaluate.json needs; add it to the recipe")
    return found


# ---- metrics


def metrics(settings: dict, place: str = "") -> dict[str, dict]:
    """The sections of a configuration that score: the key metric, the others with the loss, and what they use.

    Parameters
    ----------
    place:
        Where in the configuration the sections lie, such as ``validate#``.
    """
    listed = settings["validate"]["metrics"]
    # MONAI's handler pools the classes' counts, where the tables have the mean of the classes: of exclusive classes none.
    pooled = settings["task"] == CLASSIFICATION and not is_multi_label(settings)
    listed = [m for m in listed if m is listed[0] or not (pooled and _of_decisions(m))]
    made = {m["label"]: _metric(settings, m, place) for m in listed}
    key = {k: made.pop(k) for k in list(made)[:1]}
    loss = _of_function(f"@{place}measures#loss", RAW)
    return {
        **({"key_metric": key} if key else {}),
        "additional_metrics": {"loss": loss, **made},
        "measures": {"loss": parts.target("loss", settings["loss"]), **_measures(listed)},
    }


def _metric(settings: dict, component: dict, place: str) -> dict | str:
    name, label = component.get("name"), component["label"]
    if name in DISTANCES:
        # An infinite distance, of a class that only one of the two has, is undefined in the tables: inf - inf is NaN.
        found = f"@{place}measures#{label}(pred, label, spacing=[float(n) for n in label.pixdim])"
        return _of_function(f"$lambda pred, label: (d := {found}) - d + d", SCORED)
    if settings["task"] == REGRESSION and name == "RootMeanSquaredError":
        # MONAI's is the mean of the cases' roots, which of one number each is the mean absolute error.
        return {"_target_": "ignite.metrics.RootMeanSquaredError", "output_transform": SCORED}
    if name in parts.IGNITE_REGRESSION:
        # Read by the checkers of bundles as any other expression; a target in this module they would have to trust.
        given = "".join(f"{k}={v!r}, " for k, v in component["args"].items())
        return f"$@{place}measures#{label}({given}output_transform={NUMBERED[1:]})"
    if _decides_apart(settings):
        return parts.target("metric", component, output_transform=SCORED if name in OF_RANKS else DECIDED)
    if settings["task"] == CLASSIFICATION and _of_decisions(component):
        return parts.target("metric", component, output_transform=DECIDED)
    return parts.target(
        "metric",
        component,
        output_transform=NUMBERED if _of_ignite(component) and not is_multi_label(settings) else SCORED,
    )


def _of_function(function: str, taken: str) -> dict:
    """The mean over the cases, each of them the mean over the classes where ``function`` is defined."""
    return {"_target_": "monai.handlers.IgniteMetricHandler", "loss_fn": function, "output_transform": taken}


def _measures(listed: list[dict]) -> dict[str, dict | str]:
    """What metrics are made of that have no handler of MONAI's, by label."""
    made: dict[str, dict | str] = {}
    for component in listed:
        name = component.get("name")
        if name in DISTANCES:
            args = {k: v for k, v in component["args"].items() if k not in OF_HANDLERS}
            made[component["label"]] = {"_target_": DISTANCES[name], "_mode_": "callable", **args}
        elif name in parts.IGNITE_REGRESSION:
            made[component["label"]] = f"$ignite.metrics.regression.{name}"
    return made


def imports(settings: dict) -> dict[str, list[str]]:
    """The section that lets expressions name ignite, where any does."""
    used = any(m.get("name") in parts.IGNITE_REGRESSION for m in settings["validate"]["metrics"])
    return {"imports": ["$import ignite"]} if used else {}


def _of_ignite(component: dict) -> bool:
    return component.get("name") in parts.IGNITE_METRICS | parts.IGNITE_REGRESSION


def _of_decisions(component: dict) -> bool:
    return component.get("name") == "ConfusionMatrix"
