"""Two small datasets of classes that may occur together, and recipes for them: findings in an image, regions of a tumour."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy

from tests.workflow.conftest import micro_recipe
from tests.workflow.test_classification import classification_recipe

FINDINGS = ["effusion", "nodule", "opacity"]
REGIONS = {"TC": (1, 4), "WT": (1, 2, 4), "ET": (4,)}
"""As ConvertToMultiChannelBasedOnBratsClassesd makes them of label maps."""


FINDINGS_SECTION = {
    "recipe": "recipe",
    "dataset": {"list": "data/plco.json", "task": "classification", "multi_label": True},
    "splits": {"method": "holdout", "holdout": 10, "stratify_by": ["label"]},
    "test": {"groups": {"held": {"from": "test"}}},
    "select": {"best": ["ROCAUC"], "final": False},
}
REGIONS_SECTION = {
    "recipe": "recipe",
    "dataset": {
        **{"list": "data/dataset.json", "multi_label": True},
        "labels": {str(i): name for i, name in enumerate(REGIONS)},
    },
    "splits": {"method": "holdout", "holdout": 2},
    "test": {"groups": {"held": {"from": "test"}}},
    "select": {"best": ["MeanDice"], "final": False},
}


def component(name: str, **args) -> dict:
    return {"name": name, "args": args}


def findings_recipe() -> dict:
    """The classification recipe with a sigmoid for each of three findings."""
    conf = classification_recipe()
    conf["train"]["model"]["args"].update(num_classes=len(FINDINGS))
    conf["train"]["loss"] = component("BCEWithLogitsLoss")
    for section in ("train", "validate"):
        conf[section]["post_transforms"] = [component("Activationsd", keys="pred", sigmoid=True)]
    f1 = {"metric_name": "f1 score", "reduction": "mean_batch"}
    conf["validate"]["additional_metrics"] = [
        {"name": "AveragePrecision", "log_label": "val_ap", "args": {}},
        {"name": "ConfusionMatrix", "log_label": "F1", "args": f1},
        {"name": "Accuracy", "log_label": "ExactMatch", "args": {"is_multilabel": True}},
    ]
    conf.update(epochs=12, learning_rate=0.02, batch_size=4)
    return conf


def write_findings(folder: Path) -> None:
    """Two-channel images; an effusion is bright in the first channel, a nodule in the second, an opacity a chequered pattern."""
    (folder / "images").mkdir(parents=True)
    rng = numpy.random.RandomState(0)
    chequered = numpy.indices((16, 16)).sum(0) % 2
    lists = {"training": [], "test": []}
    for i in range(52):
        label = [int(rng.rand() < share) for share in (0.5, 0.4, 0.3)]
        effusion, nodule, opacity = label
        channels = [rng.normal(effusion + 2 * opacity * chequered, 0.6, (16, 16)), rng.normal(nodule, 0.6, (16, 16))]
        files = [f"images/x{i:02d}_{c}.nii.gz" for c in range(2)]
        for file, voxels in zip(files, channels, strict=True):
            nibabel.save(nibabel.Nifti1Image(voxels.astype(numpy.float32), numpy.eye(4)), folder / file)
        lists["training" if i < 40 else "test"].append({"case": f"x{i:02d}", "image": files, "label": label})
    names = {str(i): name for i, name in enumerate(FINDINGS)}
    listed = {"name": "Chest", "labels": names, "modality": {"0": "a", "1": "b"}, **lists}
    (folder / "plco.json").write_text(json.dumps(listed))


def regions_recipe() -> dict:
    """The micro recipe in 3D for three overlapping regions, made by MONAI's transform for BraTS."""
    conf = micro_recipe()
    conf["train"]["model"]["args"].update(spatial_dims=3, out_channels=3, channels=[8, 16])
    conf["train"]["loss"] = component("DiceLoss", sigmoid=True)
    made = component("ConvertToMultiChannelBasedOnBratsClassesd", keys="label")
    conf["train"]["pre_transforms"].insert(2, made)
    conf["validate"]["pre_transforms"].insert(2, {"ref": made["name"]})
    sigmoid = component("Activationsd", keys="pred", sigmoid=True)
    conf["train"]["post_transforms"] = [sigmoid]
    conf["validate"]["post_transforms"] = [sigmoid, component("AsDiscreted", keys="pred", threshold=0.5)]
    conf["validate"]["key_metric"]["args"] = {}
    conf.update(epochs=24, learning_rate=0.03)
    return conf


def write_tumours(folder: Path) -> None:
    """Oedema (2), within it a core (1), within that what enhances (4), each brighter; two volumes have nothing that enhances."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rng = numpy.random.RandomState(1)
    affine = numpy.diag([-1.0, 1.0, 2.0, 1.0])
    lists = {"training": [], "test": []}
    for i in range(13):
        label = numpy.zeros((14, 13, 9), numpy.uint8)
        start = rng.randint(0, 3, 3)
        for value, inset in ((2, 0), (1, 1), (4, 2)):
            if value != 4 or i not in (0, 12):
                label[tuple(slice(a + inset, a + size - inset) for a, size in zip(start, (9, 9, 6), strict=True))] = (
                    value
                )
        brightness = numpy.select([label == 2, label == 1, label == 4], [1.0, 2.0, 3.0], 0.0)
        image = (brightness + rng.normal(0, 0.2, label.shape)).astype(numpy.float32)
        for kind, voxels in (("images", image), ("labels", label)):
            nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"{kind}/b{i:02d}.nii.gz")
        entry = {"image": f"images/b{i:02d}.nii.gz", "label": f"labels/b{i:02d}.nii.gz"}
        lists["training" if i < 10 else "test"].append(entry)
    names = {"0": "background", "1": "necrosis", "2": "oedema", "4": "enhancing"}
    listed = {"name": "Tumours", "labels": names, "modality": {"0": "FLAIR"}, **lists}
    (folder / "dataset.json").write_text(json.dumps(listed))
