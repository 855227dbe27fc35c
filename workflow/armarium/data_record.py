"""What the data of an archive was, kept beside its configuration: with nothing but that left, other data is still told."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

from . import layout
from .changes import TESTED, list_digests
from .dataset import Dataset, dataset_files, read_dataset, source_files, with_test_lists
from .errors import Problems, UserError
from .files import read_json
from .hashing import HashIndex

SHOWN = 20
"""Differing files that are named."""


def record_of(dataset: Dataset, files: dict[str, str]) -> dict[str, dict[str, str]]:
    """What ``config/data.json`` holds: a digest of each list, and SHA-256 of each file by its path below the data root."""
    return {"lists": list_digests(dataset), "files": dict(sorted(files.items()))}


def check_same_data(archive: str, spec: dict, groups: dict[str, dict], data_root: str, index: HashIndex) -> None:
    """Refuse data that is not what the archive was made from; of an archive with a table of cases it may be absent.

    Parameters
    ----------
    spec, groups:
        ``dataset`` of the archive's configuration, and its test groups.

    Raises
    ------
    UserError
        If a list of cases is missing.
    Problems
        If lists or files differ from those that were checked, with every difference.
    """
    groups = {name: group for name, group in groups.items() if "given" not in group}
    sources = [str(Path(data_root, name)) for name in source_files(spec, {"groups": groups})]
    missing = [path for path in sources if not os.path.isfile(path)]
    if missing and Path(layout.cases_tsv(archive)).is_file():
        return
    if missing:
        raise UserError(
            f"{missing[0]}: file not found, wanted the list of cases that {archive} is made from; say where its dataset is "
            f"with --config data_root=DIR (armarium rebuild: --data-root DIR){_how_to_synthesize(spec, missing[0])}"
        )
    if not Path(layout.data_record(archive)).is_file():
        return
    lists_then, files_then = _recorded(archive)
    dataset = with_test_lists(read_dataset(spec, data_root), {"groups": groups}, data_root)
    problems = _other_lists(lists_then, list_digests(dataset)) + _other_files(dataset, files_then, data_root, index)
    if problems:
        advice = (
            f"say where the data is that it was made from, or delete {layout.data_record(archive)} to make it from this"
        )
        raise Problems(f"{data_root}: not the data that {archive} was made from; {advice}", problems)


def _how_to_synthesize(spec: dict, listed: str) -> str:
    if not spec.get("synthesize"):
        return ""
    asked = shlex.quote(json.dumps({**spec["synthesize"], "task": spec["task"]}))
    return f"; it was synthesised, and is made again by: armarium synthesize {shlex.quote(listed)} {asked}"


def _recorded(archive: str) -> tuple[dict[str, str], dict[str, str]]:
    path = layout.data_record(archive)
    record: Any = read_json(path)
    parts = [record.get(key) for key in ("lists", "files")] if isinstance(record, dict) else [None]
    if not all(isinstance(part, dict) and all(isinstance(v, str) for v in part.values()) for part in parts):
        raise UserError(f"{path}: not as the data check writes it; put back a copy, or delete it")
    return parts[0], parts[1]


def _other_lists(then: dict[str, str], now: dict[str, str]) -> list[str]:
    differing = sorted(name for name in then | now if then.get(name) != now.get(name))
    return [f"{name.replace(TESTED, 'test list ')}: says something else" for name in differing]


def _other_files(dataset: Dataset, then: dict[str, str], data_root: str, index: HashIndex) -> list[str]:
    """Of the files that the lists name those with other bytes; what else the record names is none of ours to look at."""
    paths = {name: str(Path(data_root, name)) for name in dataset_files(dataset)}
    hashes = index.many(path for path in paths.values() if Path(path).is_file())
    found = {name: hashes.get(path, "missing") for name, path in paths.items()}
    differing = [name for name, digest in found.items() if digest != then.get(name)]
    told = [f"{name}: {'missing' if found[name] == 'missing' else 'changed'}" for name in differing[:SHOWN]]
    return told + ([f"and {len(differing) - SHOWN} more files"] if len(differing) > SHOWN else [])
