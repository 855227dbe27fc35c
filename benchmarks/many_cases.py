"""A dataset of many small cases: ``python -m benchmarks.many_cases FOLDER 100000 segmentation`` makes it and its archive's configuration.

Each image is another one of 8x8x4 voxels; labels are names of few files. Two sessions belong to each participant. Then, in FOLDER,
``python -m armarium check-data archives/many`` and ``split-data archives/many`` are what the workflow runs.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[1] / "config/recipes"
FOLDERS, LABELS = 100, 16


def make(folder: Path, count: int, task: str) -> None:
    """The files, the list that names them, and the configuration of an archive of five splits, grouped and stratified."""
    from armarium.config import archive_section, check
    from armarium.configure import Globals, configure

    data = folder / "data"
    entries = [_entry(data, i, task) for i in _numbers(data, count)]
    names = {"0": "background", "1": "bright"} if task == "segmentation" else {"0": "low", "1": "middle", "2": "high"}
    listed = {"name": "many", "labels": names, "modality": {"0": "MR"}, "training": entries}
    (data / "dataset.json").write_text(json.dumps(listed))
    splits = {"n_splits": 5, "stratify_by": ["site"] if task == "segmentation" else ["label"]}
    recipe = str(RECIPES / ("unet_small" if task == "segmentation" else "adrenal"))
    dataset = {"list": "data/dataset.json", "task": task}
    section = {"recipe": recipe, "dataset": dataset, "splits": splits, "test": {"groups": {"test": {"fraction": 0.1}}}}
    config = check({"archives": {"many": section}}, "config", "configuration")
    given = Globals(data_root=str(folder), changes={}, cache_dir=str(folder / "cache"))
    configure(str(folder / "archives/many"), archive_section(config, "many"), given, False)


def _numbers(data: Path, count: int) -> range:
    """The cases' numbers, once their folders and the label files are there."""
    import numpy

    for inside in range(FOLDERS):
        for kind in ("images", "labels"):
            (data / kind / f"{inside:02d}").mkdir(parents=True)
    label = numpy.zeros((8, 8, 4), numpy.uint8)
    for k in range(LABELS):
        label.flat[k] = 1
        (data / f"label_{k}.nii").write_bytes(_volume(label))
    return range(count)


def _entry(data: Path, i: int, task: str) -> dict:
    """One case's files, and the list's entry."""
    import numpy

    image = f"images/{i % FOLDERS:02d}/image_{i:06d}.nii"
    noise = numpy.random.RandomState(i).randint(0, 255, (8, 8, 4)).astype(numpy.uint8)
    (data / image).write_bytes(_volume(noise))
    person = {"participant_id": f"sub-{i // 2:06d}", "session_id": f"ses-{i % 2}", "site": f"site{i // 2 % 7}"}
    if task != "segmentation":
        return {"image": image, "label": i % 3, **person}
    label = f"labels/{i % FOLDERS:02d}/label_{i:06d}.nii"
    os.link(data / f"label_{i % LABELS}.nii", data / label)
    return {"image": image, "label": label, **person}


def _volume(voxels) -> bytes:
    import nibabel
    import numpy

    return nibabel.Nifti1Image(voxels, numpy.eye(4)).to_bytes()


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
