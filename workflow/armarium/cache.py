"""Prepared cases: the deterministic transforms of a case, done once and kept on disk.

Shared by splits, archives and processes; keyed by the content of the files, the transforms and the
versions, so that a stale entry is never found. Entries hold tensors and plain values only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import monai
import torch
from monai.data import MetaTensor, set_track_meta
from tqdm import tqdm

from .errors import UserError
from .files import write_with
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
        path = self.data_root / name
        if not path.is_file():
            raise UserError(
                f"{path}: file not found; restore it, or give the dataset's folder with --config data_root=DIR"
            )
        return str(path)

    def _prepare(self, case: dict) -> dict:
        images = [self._file(f) for f in case["image"]]
        item = {"image": images if len(images) > 1 else images[0]}
        if case["label"] is not None:
            label = case["label"]
            item["label"] = self._file(label) if isinstance(label, str) else label
        set_track_meta(True)
        item = apply_all(self.transforms, item, f"case {case['case']}")
        image = item["image"]
        prepared = {"image": torch.as_tensor(image).as_subclass(torch.Tensor).contiguous()}
        if isinstance(image, MetaTensor):
            prepared |= {"trace": trace_of(image), "affine": image.affine.as_subclass(torch.Tensor)}
        if isinstance(item.get("label"), torch.Tensor):
            prepared["label"] = _compact(item["label"].as_subclass(torch.Tensor))
        elif "label" in item:
            prepared["label"] = torch.as_tensor(item["label"])
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
            ``image`` float ``[channels, *grid]``, ``label`` ``[1, *grid]`` or scalar, and for going
            back to the file's grid ``trace`` and ``affine``.
        """
        path = self._path(case)
        if path.is_file():
            return torch.load(path, weights_only=True, mmap=True)
        prepared = self._prepare(case)
        write_with(path, lambda p: torch.save(prepared, p))
        return prepared

    def prepare_all(self, cases: Sequence[dict], workers: int) -> None:
        """Prepare what is missing, in parallel, with a progress bar."""
        missing = [c for c in cases if not self._path(c).is_file()]
        if not missing:
            return
        with ThreadPoolExecutor(max(1, workers)) as pool:
            done = pool.map(self.get, missing)
            for _ in tqdm(done, total=len(missing), desc="preparing cases", disable=None, unit="case"):
                pass


def _compact(label: torch.Tensor) -> torch.Tensor:
    """Label values in the smallest integer type that holds them; targets that are no integers stay."""
    if label.is_floating_point() and not torch.equal(label, label.round()):
        return label.contiguous()
    fits = label.numel() == 0 or (label.min() >= 0 and label.max() <= 255)
    return label.to(torch.uint8 if fits else torch.int32).contiguous()
