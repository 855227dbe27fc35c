"""An archive's published model in one file for another client: MONAI Label, MONAI Deploy, Triton.

A pack is a stored zip, the same bytes every time, whose one folder is named after the data and the task; so it does
not depend on what the archive's own folder is called. It holds no resume state, no case and no name of one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from . import layout
from .bundle_metadata import grid_divisor, metadata
from .configure import published_checkpoint, read_effective
from .dataset import REGRESSION
from .files import LARGEST_TEXT, memory_bytes, read_bytes
from .parts import PARITY, SCRIPTED
from .provenance import step
from .steps import published_torchscript
from .zips import write_zip, zip_member


def packed_name(archive: str) -> str:
    """What the model is called where it is served: the dataset's name and the task, such as ``liver_segmentation``.

    MONAI Label tells a bundle's task by its folder's name.
    """
    task = read_effective(archive, "train")["task"]
    words = re.sub(r"[^a-z0-9]+", "_", str(metadata(archive)["name"]).lower()).strip("_")
    return words if task in words.split("_") else f"{words}_{task}".lstrip("_")


def packed_files(archive: str, client: str) -> list[str]:
    """The archive's files that a pack for MONAI Label or MONAI Deploy copies.

    For MONAI Label: what its app for bundles (0.8) reads, ``models/`` with no other weights than the published ones, for
    it offers each of them to its users. For MONAI Deploy: the TorchScript, which carries the configurations that its
    operator for bundles (4.0) reads.
    """
    described = [layout.licence(archive), layout.doc(archive, "README.md")]
    if client == layout.DEPLOY:
        return [*described, layout.published_ts(archive)]
    configs = [layout.bundle_config(archive, name) for name in layout.BUNDLE_CONFIGS]
    return [*described, *configs, layout.published_model(archive), layout.published_ts(archive)]


def pack_bundle(archive: str, client: str) -> None:
    """Write the pack for MONAI Label or MONAI Deploy.

    Raises
    ------
    UserError
        If a file of it does not fit into memory.
    """
    files, output = packed_files(archive, client), layout.pack(archive, client)
    inputs = [*files, layout.dataset_json(archive), *(layout.effective(archive, p) for p in ("train", "publish"))]
    with step(archive, f"pack_{client}", "pack_bundle", inputs, [output]):
        name, most = packed_name(archive), memory_bytes() // 2
        inside = _of_deploy if client == layout.DEPLOY else _of_label
        write_zip(output, {inside(name, f.removeprefix(f"{archive}/")): read_bytes(f, most) for f in files})


def pack_triton(archive: str, cache_dir: str, trusted: bool) -> None:
    """Write the pack for Triton: a model repository.

    What the network takes is found by running it, so it is asked for where it comes from as before its evaluation.
    """
    exports = layout.exports_zip(archive, read_effective(archive, "publish")["publish"])
    output = layout.pack(archive, layout.TRITON)
    inputs = [layout.published_ts(archive), exports, layout.dataset_json(archive), layout.licence(archive)]
    inputs += [layout.effective(archive, part) for part in ("train", "publish")]
    with step(archive, f"pack_{layout.TRITON}", "pack_triton", inputs, [output]):
        data, settings = published_torchscript(archive, cache_dir, trusted), read_effective(archive, "train")
        from .triton import Served, model_repository

        how = json.loads(zip_member(exports, f"{published_checkpoint(settings)}{PARITY}"))
        served = Served(packed_name(archive), data, how["input_shape"], how["method"] == SCRIPTED, _labels(archive))
        licence = read_bytes(layout.licence(archive), LARGEST_TEXT)
        write_zip(output, model_repository(served, grid_divisor(settings)) | {f"{served.name}/LICENSE": licence})


def _labels(archive: str) -> list[str]:
    """The output channels' names; none of a regression, whose one number is no class."""
    if read_effective(archive, "train")["task"] == REGRESSION:
        return []
    return list(metadata(archive)["network_data_format"]["outputs"]["pred"]["channel_def"].values())


def _of_label(name: str, file: str) -> str:
    return f"{name}/{file}"


def _of_deploy(name: str, file: str) -> str:
    """MONAI Deploy looks for each model in a folder of its own name below the one that it is given, ``models/``."""
    return f"{name}/models/{name}/{Path(file).name}" if file.endswith(".ts") else f"{name}/{file}"
