"""Prepared cases: the deterministic transforms of a case, done once and kept on disk.

Shared by splits, archives, users and processes; keyed by the content of the files, the transforms and what computes them
(:mod:`armarium.transform_keys`), so that a stale entry is never found. A case is prepared by one process at a time, others
take other cases meanwhile (:mod:`armarium.crew`).
"""

from __future__ import annotations

import logging
import math
import os
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import nibabel
import torch
from monai.data import MetaTensor, set_track_meta

from .claims import claimed, in_use
from .crew import work_off
from .entries import Damaged, decoded, read_entry, write_entry
from .errors import UserError
from .files import folder_while_alive, refusals_of, remove_abandoned, write_json
from .hashing import as_checked
from .nifti import Unreadable, check_header
from .prepared import CLAIMS, FORMAT, USED_BY, USERS, entry_name, folder_of, number_of, prepared_dir, use_name
from .transform_keys import recipe_key
from .transforms import apply_all, build_transforms, trace_of

LOG = logging.getLogger(__name__)
BYTES_OF_A_VOXEL = 16
"""Memory that loading and transforming takes for each voxel of a case's files: an estimate, of float32 images and a few copies."""


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
        self.components, self.transforms = components, build_transforms(components, allow)
        self.data_root = Path(data_root)
        self.recipe = recipe_key(components, self.transforms, FORMAT)
        self.folder = folder_of(cache_dir, self.recipe)
        self.places = prepared_dir(cache_dir)
        self.verified: set[str] = set()
        """Entries whose every byte this process has compared with their checksum."""
        self._in_use = False

    def _name(self, case: dict) -> str:
        return entry_name(self.recipe, case["sha256"], case["label"])

    def _file(self, name: str) -> str:
        try:
            check_header(name, str(self.data_root))
        except Unreadable as error:
            raise UserError(f"{self.data_root}: {error}") from None
        return str(self.data_root / name)

    def _prepare(self, case: dict) -> tuple[dict[str, torch.Tensor], list | None]:
        """What is kept of a case: tensors by name, and the trace of its image."""
        label = case["label"]
        set_track_meta(True)
        with as_checked(self.data_root, checked_files(case)):
            images = [self._file(f) for f in case["image"]]
            item = {"image": images if len(images) > 1 else images[0]}
            if label is not None:
                item["label"] = self._file(label) if isinstance(label, str) else label
            item = apply_all(self.transforms, item, f"case {case['case']}")
        tensors = prepared_image(item["image"])
        trace = tensors.pop("trace", None)
        if isinstance(item.get("label"), torch.Tensor):
            tensors["label"] = _compact(item["label"].as_subclass(torch.Tensor))
        elif "label" in item:
            tensors["label"] = _number(item["label"])
        return tensors, trace

    # ---- one case

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
        tensors, trace = self._entry(case)
        return tensors | ({} if trace is None else {"trace": decoded(trace)})

    def sample(self, case: dict) -> dict[str, torch.Tensor]:
        """``image`` and ``label`` alone: what training takes, without the trace, which takes longer to read."""
        tensors, _ = self._entry(case, ("image", "label"))
        return tensors

    def _entry(self, case: dict, names: Collection[str] | None = None) -> tuple[dict[str, torch.Tensor], list | None]:
        self._use()
        name = self._name(case)
        path = self.folder / name
        try:
            return self._kept(name, names)
        except FileNotFoundError:
            pass
        except Damaged:
            LOG.warning(f"{path}: damaged, by a crash or its disk; the case is prepared again")
            with suppress(OSError):
                path.unlink()
        with self._at_work() as work:
            work((name, case), True)
        try:
            return self._kept(name, names)
        except (FileNotFoundError, Damaged):
            raise UserError(
                f"{path}: damaged, and still so after its case was prepared again; see to its disk, or give another folder with "
                "--config cache_dir=DIR"
            ) from None

    def _kept(self, name: str, names: Collection[str] | None) -> tuple[dict[str, torch.Tensor], list | None]:
        found = read_entry(self.folder / name, name in self.verified, names)
        self.verified.add(name)
        return found

    @contextmanager
    def _at_work(self) -> Iterator[Callable[[tuple[str, dict], bool], bool | None]]:
        """What a worker of :func:`armarium.crew.work_off` enters."""
        with ExitStack() as held:
            held.enter_context(one_thread())
            with self._refusals(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                within = held.enter_context(folder_while_alive(self.folder))
            yield partial(self._work, within)

    def _work(self, within: Path, piece: tuple[str, dict], wait: bool) -> bool | None:
        """Prepare a case that is neither there nor in work, and put its entry in place, written to ``within`` first."""
        name, case = piece
        path = self.folder / name
        if path.exists():
            return False
        with claimed(self.folder / CLAIMS, number_of(name), wait) as free:
            if not free:
                return None
            if path.exists():
                return False
            tensors, trace = self._prepare(case)
            with self._refusals(path):
                write_entry(within / name, tensors, trace)
                os.replace(within / name, path)
        return True

    @contextmanager
    def _refusals(self, path: Path) -> Iterator[None]:
        try:
            with refusals_of(path):
                yield
        except OSError as error:
            raise UserError(
                f"{path}: a prepared case cannot be kept: {error.strerror}; free some space (armarium cache --clean) and see that this "
                "user may write here, or give another folder with --config cache_dir=DIR"
            ) from None

    # ---- many cases

    def prepare_all(self, cases: Sequence[dict], workers: int) -> None:
        """Prepare what is missing, in parallel, with a progress bar.

        Parameters
        ----------
        workers:
            Cores that the job has; those that lie idle take part (:func:`armarium.crew.spare_cores`).
        """
        self._use()
        named = {self._name(case): case for case in cases}
        there = self._there()
        missing = [(name, case) for name, case in named.items() if name not in there]
        self._note_use(named)
        if not missing:
            return
        remove_abandoned(self.folder)
        most = 1 if _on_a_gpu(self.components) else self._that_fit_memory([case for _, case in missing])
        work_off(missing, self._at_work, workers, self.places, most, "preparing cases")

    def _there(self) -> set[str]:
        try:
            return set(os.listdir(self.folder))
        except OSError:  # not made yet
            return set()

    def _that_fit_memory(self, cases: Sequence[dict]) -> int:
        """How many of the largest case may be prepared at once in half of the memory that is free."""
        sizes = {c["case"]: sum(_size(self.data_root / f) for f in checked_files(c)) for c in cases}
        largest = max(cases, key=lambda c: sizes[c["case"]])
        try:
            voxels = sum(_voxels(self.data_root / f) for f in checked_files(largest))
        except Exception:  # whatever is wrong with the file is told when it is prepared
            return 1
        return max(1, free_memory() // 2 // max(1, voxels * BYTES_OF_A_VOXEL))

    # ---- who uses it, for armarium cache

    def _use(self) -> None:
        """Have it known, as long as this object lives, that its entries may be read: then none is cleaned away."""
        if not self._in_use:
            self._in_use = True
            if (said := in_use(self.folder / USERS)) is not None:
                weakref.finalize(self, os.close, said)

    def _note_use(self, named: dict[str, dict]) -> None:
        """Note, once a day, that entries are used, and by which data and transforms."""
        note = self.folder / USED_BY / use_name(self.data_root.resolve(), self.components, named)
        try:
            if note.exists() and time.time() - note.stat().st_mtime < 86400:
                return
            for name in named:
                if (path := self.folder / name).exists():
                    os.utime(path)
            write_json(note, {"data_root": str(self.data_root.resolve()), "transforms": self.components})
        except OSError:  # read-only: who may not write may not note either
            return


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


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's in the body.

    Sums over several differ in their last bits, and who prepares must not show; and a forked process waits for ever for those
    that its parent had.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on_a_gpu(components: list[dict]) -> bool:
    """Whether a transform is told to compute on a GPU, which a forked process cannot."""
    return any(str(c["args"].get("device") or "cpu") != "cpu" for c in components)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # told when it is prepared
        return 0


def _voxels(path: Path) -> int:
    return math.prod(nibabel.load(path).shape) if path.is_file() else 0


def free_memory() -> int:
    """Bytes that this machine has free, or the control group that the job runs in."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return min(free, int(limit) - int(used)) if limit.isdecimal() else free


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
