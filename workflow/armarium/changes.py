"""Which of a dataset's files are no longer what was checked: found by content, before planning. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from . import layout
from .dataset import Case, Dataset, read_dataset
from .files import read_json
from .hashing import HashIndex


def dataset_digest(dataset: Dataset) -> str:
    """SHA-256 over what a dataset's list says, not how it is written."""
    rows = [[c.case, c.participant_id, c.session_id, c.images, c.label, c.columns, c.subset] for c in dataset.cases]
    text = json.dumps([rows, sorted(dataset.labels.items())], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _hashes(row: dict[str, str]) -> list[str]:
    return row["image_sha256"].split(";")


def content_of(cases: Iterable[Case], rows: dict[str, dict[str, str]]) -> dict[str, str]:
    """SHA-256 of every file of ``cases``, by its path under the data root; ``rows`` are of the cases' table."""
    found: dict[str, str] = {}
    for case in cases:
        found.update(zip(case.images, _hashes(rows[case.case]), strict=True))
        if isinstance(case.label, str):
            found[case.label] = rows[case.case]["label_sha256"]
    return found


def changed_files(archive: str, dataset_spec: dict, data_root: str, index: HashIndex) -> dict[str, list[str]]:
    """Files, and the list itself, whose content ever changed: the hash first checked, and the present one."""
    from .checks import read_cases_table

    path = Path(layout.changed_files(archive))
    changed = read_json(path) if path.is_file() else {}
    listed = Path(data_root, dataset_spec["list"])
    if not (
        Path(layout.cases_tsv(archive)).is_file() and Path(layout.dataset_json(archive)).is_file() and listed.is_file()
    ):
        return changed
    dataset = read_dataset(dataset_spec, data_root)
    rows = read_cases_table(layout.cases_tsv(archive))
    # A case that the list now gives other files, or that is new, shows in the list's own digest.
    known_cases = [c for c in dataset.cases if c.case in rows and len(c.images) == len(_hashes(rows[c.case]))]
    recorded = {"list": read_json(layout.dataset_json(archive))["digest"], **content_of(known_cases, rows)}
    present = {str(Path(data_root, f)): f for f in recorded if f != "list" and Path(data_root, f).is_file()}
    current = {present[p]: h for p, h in index.many(list(present)).items()}
    current["list"] = dataset_digest(dataset)
    for name, digest in current.items():
        first, known = changed.get(name, [recorded[name]] * 2)
        if digest != known:
            changed[name] = [first, digest]
    return changed
