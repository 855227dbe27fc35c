"""Which of a dataset's files are no longer what was checked: found by content, before planning. No torch."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from . import layout
from .dataset import (
    TEST,
    TRAINING,
    VALIDATION,
    Case,
    Dataset,
    dataset_files,
    read_dataset,
    source_files,
    with_test_lists,
)
from .errors import UserError
from .files import read_json
from .hashing import HashIndex

TESTED = "test:"
"""Start of the name of what only tests read: a list of test cases, a file of theirs."""


def of_list(subset: str, file: str = "") -> str:
    """The name of a list of test cases or, given one, of a file of such a case."""
    return f"{TESTED}{subset}:{file}" if file else f"{TESTED}{subset}"


def is_of_list(name: str, subset: str) -> bool:
    """Whether a name is that of a list of test cases, or of a file of theirs."""
    return name == of_list(subset) or name.startswith(f"{of_list(subset)}:")


LIST = "list"


def list_digests(dataset: Dataset) -> dict[str, str]:
    """SHA-256 over what each list says, not how or in which order it is written: the training cases', test cases'."""
    rows: dict[str, list] = {LIST: [], of_list(TEST): []}
    for c in sorted(dataset.cases, key=lambda c: c.case):
        row = [c.case, c.participant_id, c.session_id, c.images, c.label, c.columns, c.subset]
        rows.setdefault(of_list(c.subset) if _is_tested(c) else LIST, []).append(row)
    texts = {name: json.dumps([found, sorted(dataset.labels.items())], sort_keys=True) for name, found in rows.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _is_tested(case: Case) -> bool:
    """Whether a case is of a test list, so that no training reads it."""
    return case.subset not in (TRAINING, VALIDATION)


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


def changed_files(
    archive: str, dataset_spec: dict, groups: dict, data_root: str, index: HashIndex
) -> dict[str, list[str]]:
    """Files, and the lists themselves, whose content ever changed: the hash first checked, and the present one.

    Names of what only tests read start with ``TESTED`` and say whose they are, once for each list that has them;
    ``groups`` are the test groups.
    """
    changed = _noted(Path(layout.changed_files(archive)))
    sources = (Path(data_root, name) for name in source_files(dataset_spec, {"groups": groups}))
    needed = (layout.cases_tsv(archive), layout.dataset_json(archive), *sources)
    if not all(map(os.path.isfile, needed)):
        return changed
    dataset = with_test_lists(read_dataset(dataset_spec, data_root), {"groups": groups}, data_root)
    digests = list_digests(dataset)
    known, files = _recorded(archive, dataset)
    present = {str(Path(data_root, f)): f for f in files if Path(data_root, f).is_file()}
    names = _names(dataset)
    current = {n: h for p, h in index.many(list(present)).items() for n in names[present[p]]} | digests
    recorded = {n: h for f, h in files.items() for n in names[f]} | known
    for name in current.keys() & (changed | recorded).keys():  # another list is a change of the configuration
        first, last = changed.get(name) or [recorded[name]] * 2
        if current[name] != last:
            changed[name] = [first, current[name]]
    return dict(sorted(changed.items()))


def _names(dataset: Dataset) -> dict[str, list[str]]:
    """The names under which changes of each file are noted."""
    found: dict[str, list[str]] = {f: [f] for f in _files_of(dataset, [c for c in dataset.cases if not _is_tested(c)])}
    for subset in dict.fromkeys(c.subset for c in dataset.cases if _is_tested(c)):
        for file in _files_of(dataset, [c for c in dataset.cases if c.subset == subset]):
            if found.setdefault(file, []) != [file]:
                found[file].append(of_list(subset, file))
    return found


def _files_of(dataset: Dataset, cases: list[Case]) -> list[str]:
    return dataset_files(replace(dataset, cases=cases))


def _noted(path: Path) -> dict[str, list[str]]:
    """The changes that were found before."""
    noted = read_json(path) if path.is_file() else {}
    pairs = list(noted.values()) if isinstance(noted, dict) else [None]
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(h, str) for h in p) for p in pairs):
        raise UserError(f"{path}: not as planning writes it; put back a copy, or delete it")
    return noted


def _recorded(archive: str, dataset: Dataset) -> tuple[dict[str, str], dict[str, str]]:
    """What the data check found: the lists' digests, and SHA-256 of each file."""
    from .checks import read_cases_table

    try:
        rows = read_cases_table(layout.cases_tsv(archive))
        # A case that a list now gives other files, or that is new, shows in the list's own digest.
        known = [c for c in dataset.cases if c.case in rows and len(c.images) == len(_hashes(rows[c.case]))]
        return dict(read_json(layout.dataset_json(archive))["digests"]), content_of(known, rows)
    except (UserError, AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f"{layout.cases_tsv(archive)} or {layout.dataset_json(archive)}: damaged ({type(error).__name__}: {error}); "
            "delete both to have the data checked again"
        ) from None
