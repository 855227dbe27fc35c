"""The bundle's metadata.json: what the published network takes and gives. No torch.

From the effective configuration and ``data/dataset.json`` alone: the exported TorchScript carries it.
"""

from __future__ import annotations

from math import ceil, lcm, prod

from . import layout
from .configure import read_effective
from .dataset import CLASSIFICATION, REGRESSION, SEGMENTATION, read_facts
from .errors import UserError
from .multi_label import is_multi_label

VERSION = "0.1.0"
REQUIRES = {
    "monai": "1.6.1",
    "torch": "2.13.0",
    "numpy": "2.4.6",
    "nibabel": "5.4.2",
    "pytorch-ignite": "0.5.5",
}
"""What the bundle is tested with. Not what is installed here: a rule without torch writes the same bytes."""

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
MOST_CHANNELS = 10_000
DEFAULT_SIZE = 64
"""Voxels along an axis where the recipe fixes none."""


def _in_shape(settings: dict) -> list[int]:
    """``[channels, *grid]`` of a network that is made for one size (MONAI's Regressor and its like), else nothing."""
    return list(settings["model"]["args"].get("in_shape", []))


def _spatial_dims(settings: dict) -> int:
    """MONAI's networks are 3D unless told otherwise."""
    args = settings["model"]["args"]
    dims = args.get("spatial_dims", args.get("dimensions", len(_in_shape(settings)[1:]) or 3))
    if dims not in (1, 2, 3):
        raise UserError(f"train.model: spatial_dims is {dims!r:.80}; wanted 1, 2 or 3")
    return int(dims)


def _per_axis(value: int | list[int], dims: int) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * dims


def grid_divisor(settings: dict) -> list[int]:
    """What a network's grid is a multiple of: its strides, and the padding that the recipe does for them."""
    dims = _spatial_dims(settings)
    if _in_shape(settings):
        return [1] * dims
    strides = settings["model"]["args"].get("strides", settings["model"]["args"].get("upsample_kernel_size", []))
    found = [prod(s) for s in zip(*(_per_axis(s, dims) for s in strides), strict=True)] or [1] * dims
    for transform in settings["validate"]["pre_transforms"]:
        if transform.get("name") in ("DivisiblePadd", "DivisiblePadD", "DivisiblePadDict"):
            found = [lcm(a, b) for a, b in zip(found, _per_axis(transform["args"]["k"], dims), strict=True)]
    return found


def _fixed_size(settings: dict, dims: int) -> list[int] | None:
    """The grid that the network is made for, else that of the inferer's window, else of the last sizing transform."""
    window = settings["validate"]["inferer"]["args"].get("roi_size")
    sizes = [t["args"].get("spatial_size", t["args"].get("roi_size")) for t in settings["validate"]["pre_transforms"]]
    for size in [_in_shape(settings)[1:] or None, window, *reversed(sizes)]:
        if size is not None and min(size := _per_axis(size, dims)) > 0:
            return size
    return None


def spatial_shape(settings: dict) -> list[int]:
    """A grid that the network takes, in voxels: the recipe's window or size, else what its strides divide."""
    dims = _spatial_dims(settings)
    size = _fixed_size(settings, dims) or [DEFAULT_SIZE] * dims
    return [ceil(n / k) * k for n, k in zip(size, grid_divisor(settings), strict=True)]


def _value_range(settings: dict) -> list[float]:
    """The range that the last intensity transform gives; empty where it is not bounded."""
    for transform in reversed(settings["validate"]["pre_transforms"]):
        name, args = transform.get("name", ""), transform["args"]
        if name == "ScaleIntensityd":
            return [args.get("minv", 0.0), args.get("maxv", 1.0)]
        if name.startswith("ScaleIntensityRange") and args.get("clip"):
            return [args["b_min"], args["b_max"]]
        if "Intensity" in name:
            return []
    return []


def _channels(settings: dict, dataset: dict) -> tuple[dict[str, str], dict[str, str]]:
    """Names of the input channels and of the output channels, by number."""
    args = settings["model"]["args"]
    given = [*(args[k] for k in ("in_channels", "n_input_channels") if k in args), *_in_shape(settings)[:1]]
    inputs = next(iter(given), len(dataset["modality"]))
    named = {"0": str(dataset.get("target"))} if settings["task"] == REGRESSION else dataset["labels"]
    outputs = next((args[k] for k in ("out_channels", "num_classes", "n_classes") if k in args), len(named))
    for what, count in (("input", inputs), ("output", outputs)):
        if not isinstance(count, int) or not 1 <= count <= MOST_CHANNELS:
            raise UserError(
                f"train.model: found {count!r:.80} {what} channels; wanted a whole number up to {MOST_CHANNELS:,}"
            )
    name = [
        {str(i): names.get(str(i), f"{kind} {i}") for i in range(n)}
        for kind, n, names in (
            ("channel", inputs, dataset["modality"]),
            ("class", outputs, named),
        )
    ]
    return name[0], name[1]


def input_shape(archive: str) -> list[int]:
    """``[1, channels, *grid]`` of the published network's input."""
    settings, dataset = read_effective(archive, "train"), read_facts(layout.dataset_json(archive))
    return [1, len(_channels(settings, dataset)[0]), *spatial_shape(settings)]


def licence_line(archive: str) -> str:
    """The data's licence in a line: the configuration's, else the dataset list's."""
    stated = read_effective(archive, "publish")["licence"] or read_facts(layout.dataset_json(archive)).get("licence")
    return str(stated or "not stated")


def description(archive: str) -> str:
    dataset = read_facts(layout.dataset_json(archive))
    return str(
        read_effective(archive, "publish")["description"]
        or dataset.get("description")
        or dataset.get("name")
        or "No description given."
    )


def metadata(archive: str) -> dict:
    """``configs/metadata.json``: what the network takes and gives (MONAI's schema of 2024-07-25)."""
    settings, dataset = read_effective(archive, "train"), read_facts(layout.dataset_json(archive))
    inputs, outputs = _channels(settings, dataset)
    shape, task = spatial_shape(settings), settings["task"]
    segmentation = task == SEGMENTATION
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": ", ".join(dict.fromkeys(inputs.values())),
        "num_channels": len(inputs),
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": _value_range(settings),
        "is_patch_data": "roi_size" in settings["validate"]["inferer"]["args"],
        "channel_def": inputs,
    }
    kind, form = {
        SEGMENTATION: ("image", "segmentation"),
        CLASSIFICATION: ("probabilities", "classes"),
        REGRESSION: ("tuples", "magnitude"),
    }[task]
    pred = {
        "type": kind,
        "format": form,
        "num_channels": len(outputs),
        "spatial_shape": shape if segmentation else [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": image["is_patch_data"] and segmentation,
        "channel_def": outputs,
    }
    named, several = ", ".join(outputs.values()), "multi-label " if is_multi_label(settings) else ""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: "first published model of this archive"},
        "monai_version": REQUIRES["monai"],
        "pytorch_version": REQUIRES["torch"],
        "numpy_version": REQUIRES["numpy"],
        "required_packages_version": {p: REQUIRES[p] for p in ("nibabel", "pytorch-ignite")},
        "name": str(dataset.get("name") or task),
        "task": f"{several}{task}: {named}",
        "description": description(archive),
        "authors": "not stated",
        "copyright": f"Data licence: {licence_line(archive)}. The licence of the weights is in LICENSE.",
        "data_source": str(dataset.get("reference") or "not stated"),
        "data_type": "nibabel",
        "image_classes": image["modality"],
        "label_classes": named,
        "pred_classes": named,
        "intended_use": "Research only; not a medical device.",
        "references": [str(dataset["reference"])] if dataset.get("reference") else [],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }
