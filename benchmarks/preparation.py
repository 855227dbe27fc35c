"""Cases a second: a dataset's deterministic transforms for a first, a second and a third archive, beside MONAI's PersistentDataset."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from .measuring import alternately, show, spread

SHAPES = {"small (36×50×35)": ((36, 50, 35), 100), "medium (160×160×96)": ((160, 160, 96), 10)}
"""Volumes as of the hippocampus, and larger ones; how many."""
OURS, CORES, SECOND, THIRD, MONAI, MONAI_AGAIN = (
    "first archive, one process",
    "first archive, the cores that lie idle too",
    "second run",
    "third archive: another recipe and other splits",
    "MONAI PersistentDataset, first",
    "MONAI PersistentDataset, again",
)


def measure(rounds: int) -> None:
    """Print both tables."""
    import torch
    from armarium.crew import CORES as VARIABLE

    torch.set_num_threads(1)
    os.environ.pop(VARIABLE, None)
    for name, (shape, count) in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            _measure_one(name, Path(folder), _dataset(Path(folder, "data"), shape, count), shape, rounds)


def _measure_one(name: str, folder: Path, cases: list[dict], shape: tuple[int, ...], rounds: int) -> None:
    from armarium.cache import PreparedCases
    from armarium.crew import CORES as VARIABLE

    cache, monai = folder / "cache", folder / "monai"
    cores = len(os.sched_getaffinity(0))

    def ours(chain: list[dict], some: list[dict]) -> None:
        prepared = PreparedCases(chain, str(folder / "data"), str(cache))
        prepared.prepare_all(some, 1)
        for case in some:
            prepared.sample(case)

    def on_all_cores() -> None:
        os.environ[VARIABLE] = str(cores)
        try:
            ours(_chain(shape), cases)
        finally:
            del os.environ[VARIABLE]

    def persistent() -> None:
        from monai.data import PersistentDataset

        items = [
            {k: str(folder / "data" / f) for k, f in (("image", c["image"][0]), ("label", c["label"]))} for c in cases
        ]
        for _ in PersistentDataset(items, _monai_chain(shape), monai):
            pass

    runs = {
        OURS: _fresh(lambda: ours(_chain(shape), cases), cache),
        SECOND: _timed(lambda: ours(_chain(shape), cases)),
        THIRD: _timed(lambda: ours(_chain(shape, as_lists=False), cases[::2])),
        CORES: _fresh(on_all_cores, cache),
        MONAI: _fresh(persistent, monai),
        MONAI_AGAIN: _timed(persistent),
    }
    found = alternately(runs, rounds)  # what reads finds what the round before filled
    sizes = {where: sum(p.stat().st_size for p in where.rglob("*") if p.is_file()) / 2**20 for where in (cache, monai)}
    rows = []
    for key, seconds in found.items():
        number = len(cases[::2]) if key == THIRD else len(cases)
        where = monai if key in (MONAI, MONAI_AGAIN) else cache
        rows.append(
            [key, number, spread([number / s for s in seconds], 1), f"{median(seconds):.3f}", f"{sizes[where]:.0f}"]
        )
    show(
        f"Preparation: {len(cases)} {name} volumes with labels",
        ["", "cases", "cases/s", "seconds", "MiB kept"],
        rows,
        f"Load, channel first, normalise, pad; then each case read once as training does. {cores} cores, {rounds} rounds.",
    )


def _timed(run: Callable[[], None]) -> Callable[[], float]:
    def seconds() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return seconds


def _fresh(run: Callable[[], None], folder: Path) -> Callable[[], float]:
    """The same with nothing prepared before."""

    def seconds() -> float:
        shutil.rmtree(folder, ignore_errors=True)
        return _timed(run)()

    return seconds


def _chain(shape: tuple[int, ...], as_lists: bool = True) -> list[dict]:
    """The deterministic part of the hippocampus's recipe; written in other words for another recipe."""
    image, own = (["image"], {}) if as_lists else ("image", {"nonzero": False})
    both = ["image", "label"]
    return [
        {"name": "LoadImaged", "args": {"keys": both}},
        {"name": "EnsureChannelFirstd", "args": {"keys": both}},
        {"name": "NormalizeIntensityd", "args": {"keys": image, **own}},
        {"name": "SpatialPadd", "args": {"keys": both, "spatial_size": [n + 8 for n in shape]}},
    ]


def _monai_chain(shape: tuple[int, ...]):
    import monai.transforms

    return monai.transforms.Compose([getattr(monai.transforms, c["name"])(**c["args"]) for c in _chain(shape)])


def _dataset(root: Path, shape: tuple[int, ...], count: int) -> list[dict]:
    """Volumes of noise with a bright box, as int16 in .nii.gz."""
    import nibabel
    import numpy
    from armarium.hashing import sha256

    root.mkdir()
    cases = []
    for i in range(count):
        label = numpy.zeros(shape, numpy.uint8)
        label[tuple(slice(n // 4, n // 2) for n in shape)] = 1
        image = numpy.random.default_rng(i).normal(100, 20, shape) + 50 * label
        files = [f"{i}.nii.gz", f"{i}_label.nii.gz"]
        for file, voxels in zip(files, (image.astype(numpy.int16), label), strict=True):
            nibabel.save(nibabel.Nifti1Image(voxels, numpy.eye(4)), root / file)
        hashes = [sha256(root / file) for file in files]
        cases.append({"case": str(i), "image": files[:1], "label": files[1], "sha256": hashes})
    return cases
