"""The smallest recipe, cases and configuration that the package takes; tests change what they are about."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import numpy
from armarium.config import archive_section, check
from armarium.configure import Configured, Globals, configure
from armarium.mmar_configs import environment_defaults
from armarium.recipe import training_settings

REPO = Path(__file__).resolve().parents[2]
CLASSES = {0: "background", 1: "bright"}


def recipe() -> dict:
    """The demo's ``config_train.json`` in 2D, with one transform that is random."""
    conf = json.loads((REPO / "config/recipes/unet_small/config/config_train.json").read_text())
    conf["train"]["model"]["args"].update(spatial_dims=2, channels=[2, 4], strides=[2], num_res_units=0)
    conf["train"]["pre_transforms"] = [
        t for t in conf["train"]["pre_transforms"] if t["name"] not in ("RandFlipd", "RandScaleIntensityd")
    ]
    conf["validate"]["additional_metrics"] = []
    return conf


def component(name: str, **args) -> dict:
    return {"name": name, "args": args}


def handler(conf: dict, name: str) -> dict:
    """The arguments of a training handler, to change."""
    return next(h["args"] for h in conf["train"]["handlers"] if h["name"] == name)


def settings(conf: dict | None = None, environment: dict | None = None, **more) -> dict:
    """What ``config/effective/train.json`` would hold; ``more`` goes over it."""
    found = training_settings(conf or recipe(), {**environment_defaults(), **(environment or {})}, "config_train.json")
    return {**found, "task": "segmentation", "keep_epochs": [], "allow": [], **more}


# ---- data


def save_nifti(
    path: Path, voxels: numpy.ndarray, affine: numpy.ndarray | None = None, units: tuple[str, str] = ("mm", "sec")
) -> str:
    """Write a volume; its SHA-256."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels, numpy.eye(4) if affine is None else affine)
    image.header.set_xyzt_units(*units)
    nibabel.save(image, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def case(
    root: Path, name: str, images: list[numpy.ndarray], label: numpy.ndarray | int, affine: numpy.ndarray | None = None
) -> dict:
    """Write a case's files (one for each image given) and describe it as training takes it."""
    files = [f"{name}_{i}.nii.gz" for i in range(len(images))]
    hashes = [save_nifti(root / f, voxels, affine) for f, voxels in zip(files, images, strict=True)]
    described = {
        "case": name,
        "participant_id": f"sub-{name}",
        "session_id": "ses-M000",
        "image": files,
        "label": label,
        "columns": {},
    }
    if isinstance(label, numpy.ndarray):
        described["label"] = f"{name}_label.nii.gz"
        hashes.append(save_nifti(root / described["label"], label, affine))
    return {**described, "sha256": [";".join(hashes[: len(images)]), hashes[-1]]}


def squares(root: Path, count: int, shape: tuple[int, ...] = (16, 16), prefix: str = "c") -> list[dict]:
    """Cases with a bright box on noise, the box being class 1."""
    made = []
    for i in range(count):
        rng = numpy.random.RandomState(i)
        label = numpy.zeros(shape, numpy.uint8)
        label[tuple(slice(s, s + n // 2) for s, n in zip(rng.randint(1, 6, len(shape)), shape, strict=True))] = 1
        image = (rng.rand(*shape) + 2 * label).astype(numpy.float32)
        made.append(case(root, f"{prefix}{i}", [image], label))
    return made


# ---- training


def training_of(
    data: tuple, archive: Path, given: dict, split: str = "0", fingerprint: str = "f", train: list | None = None
):
    """A training of ``given`` settings on ``data``: a folder, training cases and validation cases."""
    import torch
    from armarium.network import make_deterministic
    from armarium.run import Workspace
    from armarium.training import SplitTraining

    root, cases, validation = data
    make_deterministic(given)
    workspace = Workspace(str(archive), split, fingerprint)
    train = cases if train is None else train
    return SplitTraining(
        given, split, train, validation, CLASSES, str(root), str(root / "cache"), torch.device("cpu"), workspace
    )


# ---- configuration


def section(**changes) -> dict:
    """An archive's section of config.yaml; nested keys of ``changes`` go over the defaults here."""
    base = {
        "recipe": "recipe",
        "dataset": {"list": "data/dataset.json"},
        "splits": {"n_splits": 2},
        "select": {"best": ["loss", "MeanDice"]},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return base


def write_recipe(folder: Path, conf: dict | None = None, environment: dict | None = None) -> Path:
    (folder / "config").mkdir(parents=True, exist_ok=True)
    (folder / "config/config_train.json").write_text(json.dumps(conf or recipe(), indent=1))
    if environment is not None:
        (folder / "config/environment.json").write_text(json.dumps(environment))
    return folder


def configured(folder: Path, given: dict | None = None, dry: bool = False, **top) -> Configured:
    """Configure ``folder/archives/a`` as planning does, from a section and the file's other keys."""
    raw = {"archives": {"a": copy.deepcopy(given or section())}, **top}
    config = check(raw, "config", "configuration")
    of_file = archive_section(config, "a")
    of_file["recipe"] = str(folder / of_file["recipe"])
    return configure(str(folder / "archives/a"), of_file, globals_of(folder, top), dry)


def globals_of(folder: Path, top: dict) -> Globals:
    return Globals(
        data_root=top.get("data_root", str(folder)), changes=top.get("set", {}), cache_dir=str(folder / "cache")
    )
