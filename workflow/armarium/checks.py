"""Everything that can be wrong with a dataset's files, looked for before any training.

All cases are looked at, in parallel, and everything found is reported together. numpy and nibabel are
imported where files are opened.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from .dataset import LABEL_VALUES, REGRESSION, Case, Dataset
from .errors import Problems, UserError
from .files import read_text, write_text
from .multi_label import as_text, is_multi_label
from .nifti import BLOCK, Unreadable, Volume, by, read_volume
from .tables import read_tsv

LOG = logging.getLogger(__name__)

COLUMNS = (
    "case",
    "participant_id",
    "session_id",
    "subset",
    "shape",
    "spacing",
    "orientation",
    "dtype",
    "channels",
    "min",
    "max",
    "mean",
    "std",
    "label",
    "label_voxels",
    "image_sha256",
    "label_sha256",
    "content_sha256",
)
_SHOWN = 8  # values or cases that one message spells out


@dataclass(frozen=True)
class Wanted:
    """What each case is checked against.

    ``labels`` names the classes; where these may overlap (``multi_label``), ``values`` names what files without a
    channel for each class hold, if that is known.
    """

    task: str
    root: str
    channels: int
    labels: dict[int, str]
    affine_tolerance: float
    allow_empty_labels: bool
    multi_label: bool = False
    values: dict[int, str] | None = None


def check_dataset(dataset: Dataset, dataset_spec: dict, data_root: str, workers: int) -> list[dict[str, str]]:
    """Check every case in ``workers`` processes; progress goes to the standard error.

    Returns
    -------
    list of dict
        A row of ``COLUMNS`` for each case, sorted by case.

    Raises
    ------
    Problems
        All that is wrong with all cases, together.
    """
    wanted = Wanted(
        dataset_spec["task"],
        data_root,
        len(dataset.modality),
        dataset.labels,
        dataset_spec["affine_tolerance"],
        dataset_spec["allow_empty_labels"],
        is_multi_label(dataset_spec),
        {int(k): v for k, v in dataset.facts[LABEL_VALUES].items()} if LABEL_VALUES in dataset.facts else None,
    )
    cases = sorted(dataset.cases, key=lambda c: c.case)
    rows, problems = [], []
    for row, found in _progress(_checked(cases, wanted, workers), len(cases)):
        rows.append(row)
        problems += found
    if not dataset_spec["allow_repeated_participants"]:
        problems += _repeated_participants(cases)
    if not dataset_spec["allow_duplicates"]:
        problems += _duplicates(cases, rows)
    if problems:
        raise Problems(f"{dataset.source} ({len(cases)} cases checked)", problems)
    return rows


def check_case(case: Case, wanted: Wanted) -> tuple[dict[str, str], list[str]]:
    """Check one case's files; return its row and what is wrong with it, in words."""
    row = dict.fromkeys(COLUMNS, "")
    row |= {k: getattr(case, k) for k in ("case", "participant_id", "session_id", "subset")}
    problems: list[str] = []
    images = [v for v in (_read(path, wanted.root, problems) for path in case.images) if v]
    if len(images) == len(case.images):
        problems += _image_problems(images, wanted)
        row |= _image_columns(images, problems)
    if isinstance(case.label, str):
        label = _read(case.label, wanted.root, problems)
        if label:
            channels = _label_channels(label, images[:1], wanted)
            problems += _grid_problems(channels[0] if channels else label, images[:1], wanted.affine_tolerance)
            counts = _channel_counts(channels, problems) if channels else _label_counts(label, problems)
            problems += _label_problems(label.path, counts, wanted, bool(channels))
            row["label_voxels"] = " ".join(f"{k}:{n}" for k, n in sorted(counts.items()) if k or channels)
            row["label_sha256"] = label.file_sha256
    elif isinstance(case.label, tuple):
        row["label"] = as_text(case.label)
    elif case.label is not None:
        row["label"] = str(case.label)
        if wanted.task != REGRESSION and case.label not in wanted.labels:
            problems.append(
                f"case {case.case}: label: found class {case.label}, wanted one of {_classes(wanted)}; mend the list's label or declare the class"
            )
    return row, problems


def write_cases_table(path: str, rows: list[dict[str, str]]) -> None:
    """Write the table of cases (TSV, ``COLUMNS``)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_cases_table(path: str) -> dict[str, dict[str, str]]:
    """Rows of a table of cases by the case's name."""
    rows = read_tsv(read_text(path), path)
    needed = ("case", "image_sha256", "label_sha256")
    if lacking := [name for name in needed if rows and name not in rows[0]]:
        raise UserError(f"{path}: found no column '{lacking[0]}', wanted the table that the data check writes")
    return {row["case"]: row for row in rows}


# ---- running


def _checked(cases: list[Case], wanted: Wanted, workers: int) -> Iterator[tuple[dict[str, str], list[str]]]:
    import nibabel  # noqa: F401  before the fork: imported once, not in every worker

    check = partial(check_case, wanted=wanted)
    if workers <= 1 or len(cases) < 2:
        yield from map(check, cases)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    chunk = max(1, min(64, len(cases) // (8 * workers)))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        try:
            yield from pool.map(check, cases, chunksize=chunk)
        except BrokenProcessPool:
            raise UserError(
                f"a process that checked images was killed ({workers} ran at once), probably for want of memory; give the step fewer threads or more memory"
            ) from None


def _progress(results: Iterable, total: int) -> Iterator:
    """Pass results on; show a bar on a terminal, a line every tenth of the way elsewhere."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(results, total=total, desc="checking", unit="case")
        return
    step = max(1, math.ceil(total / 10))
    for done, result in enumerate(results, 1):
        yield result
        if done % step == 0 or done == total:
            LOG.info(f"checking: {done}/{total} cases")


# ---- across cases


def _repeated_participants(cases: list[Case]) -> list[str]:
    times = defaultdict(list)
    for case in cases:
        times[case.participant_id, case.session_id].append(case.case)
    return [
        f"{participant} {session}: found {len(names)} cases ({_some(names)}), wanted one; tell them apart by "
        "session_id, or set dataset.allow_repeated_participants"
        for (participant, session), names in times.items()
        if len(names) > 1
    ]


def _duplicates(cases: list[Case], rows: list[dict[str, str]]) -> list[str]:
    same = defaultdict(list)
    for case, row in zip(cases, rows, strict=True):
        if row["content_sha256"]:
            same[row["content_sha256"]].append((case, row))
    problems = []
    for group in same.values():
        if len(group) > 1:
            labels = {row["label_sha256"] or row["label"] for _, row in group}
            note = " and differing labels" if len(labels) > 1 else ""
            problems.append(
                f"{_some([c.images[0] for c, _ in group])}: found the same voxels{note} in cases "
                f"{_some([c.case for c, _ in group])}, wanted each image once; remove all but one, or set "
                "dataset.allow_duplicates"
            )
    return problems


# ---- one case


def _read(path: str, root: str, problems: list[str]) -> Volume | None:
    try:
        return read_volume(path, root)
    except Unreadable as error:
        problems.append(str(error))
        return None


def _image_problems(images: list[Volume], wanted: Wanted) -> list[str]:
    first, problems = images[0], []
    for image in images:
        axes = "2 or 3" if len(images) > 1 else "2, 3 or (channels last) 4"
        if len(image.shape) not in (2, 3, 4)[: 2 if len(images) > 1 else 3]:
            problems.append(f"{image.path}: found shape {by(image.shape)}, wanted {axes} axes; reshape the image")
    for image in images[1:]:
        problems += _grid_problems(image, [first], wanted.affine_tolerance)
    channels = _channels(images)
    if channels != wanted.channels and not problems:
        problems.append(
            f"{first.path}: found {channels} channels, wanted {wanted.channels} as the list's modality declares; mend the list, or set dataset.channels"
        )
    return problems


def _grid_problems(volume: Volume, references: list[Volume], tolerance: float) -> list[str]:
    """Differences of shape and affine between a label (or further channel) and the case's image."""
    problems = []
    for image in references:
        grid = image.shape[:3]
        if volume.shape != grid:
            problems.append(
                f"{volume.path}: found shape {by(volume.shape)}, wanted {by(grid)} as {image.path} has; resample it to the image's grid"
            )
        difference = float(abs(volume.affine - image.affine).max())
        if not difference <= tolerance:
            problems.append(
                f"{volume.path}: found an affine that differs by {difference:.6g} from {image.path}'s, "
                f"wanted at most {tolerance:g}; resample it, mend its header, or raise "
                "dataset.affine_tolerance"
            )
    return problems


def _image_columns(images: list[Volume], problems: list[str]) -> dict[str, str]:
    first = images[0]
    content = hashlib.sha256()
    for image in images:
        content.update(repr((image.shape, image.voxels.dtype.str, image.slope, image.inter)).encode())
        content.update(image.voxels.data)
    return {
        "shape": by(first.shape[:3]),
        "spacing": "x".join(f"{s:.6g}" for s in first.spacing[:3]),
        "orientation": _orientation(first.affine[:3, :3].astype("f8").tobytes()),
        "dtype": ";".join(dict.fromkeys(image.voxels.dtype.name for image in images)),
        "channels": str(_channels(images)),
        **_statistics(images, problems),
        "image_sha256": ";".join(image.file_sha256 for image in images),
        "content_sha256": content.hexdigest(),
    }


@lru_cache(1024)
def _orientation(axes: bytes) -> str:
    """Axis codes of an affine's 3x3 part: a dataset has few, and each takes a third of a small case's time."""
    import nibabel as nib
    import numpy as np

    affine = np.eye(4)
    affine[:3, :3] = np.frombuffer(axes).reshape(3, 3)
    return "".join(code or "?" for code in nib.aff2axcodes(affine))


def _statistics(images: list[Volume], problems: list[str]) -> dict[str, str]:
    """Minimum, maximum, mean and standard deviation over all channels, merged block by block (Chan 1979)."""
    import numpy as np

    count, mean, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for image in images:
        bad = 0
        for block in image.blocks():
            values = block.astype(np.float64)
            missing = values.size - int(np.isfinite(values).sum())
            if missing:
                bad += missing
                continue
            block_mean = float(values.mean())
            shift, total = block_mean - mean, count + values.size
            squares += float(((values - block_mean) ** 2).sum()) + shift**2 * count * values.size / total
            mean, count = mean + shift * values.size / total, total
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        if bad:
            problems.append(
                f"{image.path}: found {bad} NaN or infinite voxels of {image.voxels.size}, wanted finite "
                "numbers; replace them (by 0, say) or leave the case out"
            )
    std = math.sqrt(squares / count) if count else math.nan
    names = ("min", "max", "mean", "std")
    return {k: f"{v:.6g}" for k, v in zip(names, (low, high, mean, std), strict=True)}


def _label_counts(label: Volume, problems: list[str]) -> Counter[int]:
    """Voxels of each whole value; NaN and broken values become problems."""
    import numpy as np

    counts: Counter[int] = Counter()
    bad, example = 0, 0.0
    for block in label.blocks():
        if block.dtype.kind == "f":
            whole = np.isfinite(block) & (block == np.rint(block)) & (abs(block) < 2**53)
            if not whole.all():
                bad, example = bad + int((~whole).sum()), float(block[~whole][0])
            block = block[whole].astype(np.int64)
        if not block.size:
            continue
        low, high = int(block.min()), int(block.max())
        if high - low < BLOCK:
            n = np.bincount((block.astype(np.int64) - low).ravel())
            counts.update({low + int(i): int(n[i]) for i in np.flatnonzero(n)})
        else:
            counts.update(dict(zip(*(a.tolist() for a in np.unique(block, return_counts=True)), strict=True)))
    if bad:
        problems.append(
            f"{label.path}: found {bad} voxels that are no whole numbers ({example:.6g}, for example), "
            "wanted class indices; resample labels with nearest-neighbour interpolation"
        )
    return counts


def _label_channels(label: Volume, images: list[Volume], wanted: Wanted) -> list[Volume]:
    """Each class's channel of a label file that has one for each, as volumes of their own; else nothing."""
    grid = images[0].shape[:3] if images else ()
    shape = (*grid, *[1] * (len(label.shape) - 1 - len(grid)), len(wanted.labels))
    if not wanted.multi_label or not grid or label.shape != shape:
        return []
    size = math.prod(grid)
    parts = (label.voxels[i * size : (i + 1) * size] for i in range(len(wanted.labels)))
    return [replace(label, shape=grid, voxels=part) for part in parts]


def _channel_counts(channels: list[Volume], problems: list[str]) -> Counter[int]:
    """Voxels of each class; values other than 0 and 1 become problems."""
    counts: Counter[int] = Counter()
    for i, channel in enumerate(channels):
        found = _label_counts(channel, problems)
        counts[i] = found[1]
        if outside := {k: n for k, n in sorted(found.items()) if k not in (0, 1)}:
            values = _some([f"{k} ({n} voxels)" for k, n in outside.items()])
            problems.append(f"{channel.path}: found values {values} in channel {i}, wanted 0 and 1; relabel them")
    return counts


def _label_problems(path: str, counts: Counter[int], wanted: Wanted, by_channel: bool) -> list[str]:
    values = wanted.values if wanted.multi_label else wanted.labels
    first = 0 if by_channel else 1  # the background has no channel
    problems = []
    outside = {k: n for k, n in sorted(counts.items()) if k not in values} if values and not by_channel else {}
    if outside:
        found = _some([f"{k} ({n} voxels)" for k, n in outside.items()])
        known = _some([f"{i} {name}" for i, name in values.items()])
        problems.append(f"{path}: found values {found}, wanted {known}; relabel, or declare them")
    elif counts and not any(counts[k] for k in counts if k >= first) and not wanted.allow_empty_labels:
        problems.append(
            f"{path}: found background only, wanted some voxels of {_classes(wanted)}; leave the case out, or set dataset.allow_empty_labels"
        )
    return problems


def _channels(images: list[Volume]) -> int:
    shape = images[0].shape
    return len(images) if len(images) > 1 or len(shape) < 4 else shape[3]


def _classes(wanted: Wanted) -> str:
    return _some([f"{i} {name}" for i, name in wanted.labels.items()])


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
