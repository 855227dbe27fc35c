"""Score one large volume in a process of its own: ``python -m benchmarks.large_volume FOLDER 512 512 800`` makes it,
``python -m benchmarks.large_volume FOLDER`` scores it.

Prints a JSON object: seconds, the process's peak in bytes, and what was found.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CLASSES = {0: "background", 1: "liver", 2: "spleen", 3: "left kidney", 4: "right kidney"}
RECIPE = Path(__file__).resolve().parents[1] / "config/recipes/unet_small/config/config_train.json"


def make(folder: Path, shape: tuple[int, ...]) -> dict:
    """An image of 16-bit numbers and a label with one box for each class, compressed; the case as evaluation takes it."""
    import nibabel
    import numpy
    from armarium.hashing import sha256

    tile = numpy.random.RandomState(0).randint(-400, 400, (64, 64, 64)).astype(numpy.int16)
    label = numpy.zeros(shape, numpy.uint8)
    for k in range(1, len(CLASSES)):
        label[tuple(slice(n * k // 8, n * k // 8 + n // 4) for n in shape)] = k
    image = numpy.tile(tile, [-(-n // 64) for n in shape])[tuple(map(slice, shape))]
    for k in range(1, len(CLASSES)):
        image[label == k] += 1000 * k
    nibabel.openers.Opener.default_compresslevel = 1
    affine = numpy.diag([0.8, 0.8, 1.0, 1.0])
    for name, voxels in (("image", image), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    files = {"image": ["image.nii.gz"], "label": "label.nii.gz"}
    digests = [sha256(folder / f"{name}.nii.gz") for name in ("image", "label")]
    ids = {"case": "large", "participant_id": "sub-large", "session_id": "ses-M000", "columns": {}}
    return {**ids, **files, "sha256": digests}


def settings() -> dict:
    """The demo's recipe, read through a sliding window."""
    from armarium.mmar_configs import environment_defaults
    from armarium.recipe import training_settings

    conf = json.loads(RECIPE.read_text())
    window = {"roi_size": [128, 128, 128], "sw_batch_size": 1, "overlap": 0.125, "mode": "gaussian"}
    scaled = {"keys": "image", "a_min": 0, "a_max": 1000, "b_min": 0, "b_max": 1}
    conf["validate"]["inferer"] = {"name": "SlidingWindowInferer", "args": window}
    conf["validate"]["pre_transforms"][2] = {"name": "ScaleIntensityRanged", "args": scaled}
    found = training_settings(conf, environment_defaults(), str(RECIPE))
    return {**found, "task": "segmentation", "keep_epochs": [], "allow": []}


def network() -> torch.nn.Module:
    """One convolution: the class whose number is nearest to the mean intensity around a voxel."""
    import torch

    numbers = torch.arange(len(CLASSES), dtype=torch.float32)
    made = torch.nn.Conv3d(1, len(CLASSES), 3, padding=1)
    with torch.no_grad():
        made.weight[:] = 20 * numbers[:, None, None, None, None] / 27
        made.bias[:] = -10 * numbers**2
    return made


def score(folder: Path, case: dict) -> dict:
    """Prepare and score the case; what that took."""
    import torch
    from armarium.evaluation import CaseScorer
    from armarium.network import make_deterministic
    from armarium.predictions import segmentation_bytes

    given = settings()
    make_deterministic(given)
    started = time.perf_counter()
    scorer = CaseScorer(given, str(folder), str(folder / "cache"), torch.device("cpu"), CLASSES)
    scorer.prepare([case], 1)
    prepared = peak()
    found = scorer(network(), [case], lambda c, p: len(segmentation_bytes(p, folder / c["image"][0])))
    took = time.perf_counter() - started
    return {"seconds": took, "peak_of_preparing": prepared, "peak": peak(), "rows": found.details}


def peak() -> int:
    """Most bytes that this process ever had in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    folder, shape = Path(sys.argv[1]), tuple(map(int, sys.argv[2:]))
    listed = folder / "case.json"
    if shape:
        folder.mkdir(parents=True, exist_ok=True)
        listed.write_text(json.dumps(make(folder, shape)))
    else:
        print(json.dumps(score(folder, json.loads(listed.read_text()))))


if __name__ == "__main__":
    main()
