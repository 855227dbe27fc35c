"""Prepared cases: the deterministic transforms of a case, done once and kept on disk.

Shared by splits, archives and processes; keyed by the content of the files, the transforms and the
versions, so that a stale entry is never found. Entries hold tensors and plain values only.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import monai
import torch
from monai.data import MetaTensor, set_track_meta
from tqdm import tqdm

from .errors import UserError
from .faults import is_no_memory
from .files import remove_abandoned, replacing
from .hashing import as_checked
from .nifti import Unreadable, check_header
from .transforms import apply_all, build_transforms, trace_of

FORMAT = 2
"""Of an entry; another number leaves older entries unread."""


class PreparedCases:
    """Cases after the deterministic transforms.

    Parameters
    ----------
    components:
        The transforms as configured; all deterministic.
    data_root, cache_dir:
        Where the files are and where the prepared cases go.
    allow:
        Dotted paths that the recipe may name.
    """

    def __init__(self, components: list[dict], data_root: str, cache_dir: str, allow: Sequence[str] = ()):
        self.transforms = build_transforms(components, allow)
        self.data_root = Path(data_root)
        recipe = json.dumps([components, monai.__version__, torch.__version__, FORMAT], sort_keys=True)
        self.recipe = hashlib.sha256(recipe.encode()).hexdigest()
        self.folder = Path(cache_dir, "prepared", self.recipe[:16])

    def _path(self, case: dict) -> Path:
        content = json.dumps([self.recipe, case["sha256"], case["label"]], sort_keys=True)
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()}.pt"

    def _file(self, name: str) -> str:
        try:
            check_header(name, str(self.data_root))
        except Unreadable as error:
            raise UserError(f"{self.data_root}: {error}") from None
        return str(self.data_root / name)

    def _prepare(self, case: dict) -> dict:
        label = case["label"]
        set_track_meta(True)
        with as_checked(self.data_root, checked_files(case)):
            images = [self._file(f) for f in case["image"]]
            item = {"image": images if len(images) > 1 else images[0]}
            if label is not None:
                item["label"] = self._file(label) if isinstance(label, str) else label
            item = apply_all(self.transforms, item, f"case {case['case']}")
        prepared = prepared_image(item["image"])
        if isinstance(item.get("label"), torch.Tensor):
            prepared["label"] = _compact(item["label"].as_subclass(torch.Tensor))
        elif "label" in item:
            prepared["label"] = _number(item["label"])
        return prepared

    def get(self, case: dict) -> dict:
        """One prepared case.

        Parameters
        ----------
        case:
            ``case``, ``image`` (files below data_root), ``label`` (a file, a value or None) and
            ``sha256`` (of the files' content).

        Returns
        -------
        dict
            ``image`` float ``[channels, *grid]``, ``label`` ``[1, *grid]`` (``[classes, *grid]`` where these may overlap),
            a class number (scalar), 0 or 1 for each class (float32 ``[classes]``) or a target (float32 ``[1]``), and for
            going back to the file's grid ``trace`` and ``affine``.
        """
        path = self._path(case)
        if path.is_file() and (kept := _kept(path)):
            return kept
        prepared = self._prepare(case)
        try:
            with replacing(path) as temporary, open(temporary, "wb") as file:
                torch.save(prepared, file)
        except OSError as error:
            raise UserError(
                f"{path}: a prepared case cannot be kept: {error.strerror}; free some space and see that this user may write here, "
                "or give another folder with --config cache_dir=DIR"
            ) from None
        return prepared

    def prepare_all(self, cases: Sequence[dict], workers: int) -> None:
        """Prepare what is missing, in parallel, with a progress bar."""
        missing = [c for c in cases if not self._path(c).is_file()]
        if not missing:
            return
        remove_abandoned(self.folder)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            done = pool.map(self.get, missing)
            for _ in tqdm(done, total=len(missing), desc="preparing cases", disable=None, unit="case"):
                pass


def prepared_image(image: torch.Tensor) -> dict:
    """An image after its transforms, with what it takes to go back to the file's grid."""
    prepared = {"image": torch.as_tensor(image).as_subclass(torch.Tensor).contiguous()}
    if isinstance(image, MetaTensor):
        prepared |= {"trace": trace_of(image), "affine": image.affine.as_subclass(torch.Tensor)}
    return prepared


def checked_files(case: dict) -> dict[str, str]:
    """A case's files with the SHA-256 that the data check found."""
    images, label = case["sha256"]
    files = dict(zip(case["image"], images.split(";"), strict=True))
    return {**files, case["label"]: label} if isinstance(case["label"], str) else files


def _kept(path: Path) -> dict | None:
    """A prepared case; None where a crash of the machine left no whole file."""
    try:
        return torch.load(path, weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        if is_no_memory(error):
            raise
        return None


def _number(label: int | float | list[int]) -> torch.Tensor:
    """A class as losses take it; a target, or 0 or 1 for each class, as a network gives it."""
    if isinstance(label, int):
        return torch.as_tensor(label)
    return torch.tensor(label if isinstance(label, list) else [label], dtype=torch.float32)


def _compact(label: torch.Tensor) -> torch.Tensor:
    """Label values in the smallest integer type that holds them; targets that are no integers stay."""
    if label.is_floating_point() and not torch.equal(label, label.round()):
        return label.contiguous()
    fits = label.numel() == 0 or (label.min() >= 0 and label.max() <= 255)
    return label.to(torch.uint8 if fits else torch.int32).contiguous()
