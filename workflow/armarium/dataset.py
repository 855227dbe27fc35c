"""Datalists and tables: which images, whose, with which label.

Two forms of a list are read: the Medical Segmentation Decathlon's ``dataset.json`` (the form that MMAR and MONAI
datalists share) and a TSV with BIDS column names. BIDS and CAPS trees are read by :mod:`.neuro`. Standard library only:
light steps import this module.
"""

from __future__ import annotations

import csv
import io
import math
import posixpath
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .derived import derive_columns
from .errors import Problems, UserError
from .files import read_json, read_text
from .multi_label import SEPARATOR, class_columns_of, is_multi_label, labels_of_case
from .naming import bids_id, given_name, longer_name, stem

SEGMENTATION, CLASSIFICATION, REGRESSION = "segmentation", "classification", "regression"
TASKS = (SEGMENTATION, CLASSIFICATION, REGRESSION)
BIDS, CAPS = "bids", "caps"
SOURCES = ("list", BIDS, CAPS)
"""Keys of a dataset's section, of which it has exactly one."""
TRAINING, VALIDATION, TEST = "training", "validation", "test"
DEFAULT_SESSION = "ses-M000"
SUBSETS = {
    "training": TRAINING,
    "train": TRAINING,
    "validation": VALIDATION,
    "val": VALIDATION,
    "test": TEST,
    "testing": TEST,
}
UNLABELLED = ("", "n/a")  # n/a is how BIDS tables write a missing value
LISTS = (".json", ".tsv")
MOST_FIELDS = 20_000_000
TARGET = "target"
LABEL_VALUES = "label_values"
LARGEST_TARGET = 1e38
LONGEST_NUMBER = 64
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_COUNTS = ("numTraining", "numValidation", "numTest")
_SPELLINGS = {"license": "licence", "relase": "release"}  # as found in published datalists
_OWN_COLUMNS = ("participant_id", "session_id", "case", "subset")


@dataclass(frozen=True, slots=True)
class Case:
    """One image (of one or several channel files) of one participant's session."""

    case: str
    participant_id: str
    session_id: str
    images: tuple[str, ...]
    label: str | int | float | tuple[int, ...] | None
    columns: dict[str, str]
    subset: str


@dataclass(frozen=True)
class Dataset:
    """Cases in the list's order, the meaning of labels and channels, and what the list says of itself.

    A regression has no ``labels``; ``facts["target"]`` names what its numbers are. Where label files' classes may overlap,
    ``facts[LABEL_VALUES]`` names the values of files without a channel for each, if the list says.
    ``source`` is the list's path and ``spec`` the section of the configuration it was read by.
    """

    cases: list[Case]
    labels: dict[int, str]
    modality: dict[int, str]
    facts: dict[str, Any]
    source: str
    spec: dict[str, Any] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        """What a datalist says beside its lists: facts, modality and labels, keys as JSON has them."""
        names = {"modality": self.modality, "labels": self.labels}
        return {**self.facts, **{k: {str(i): name for i, name in v.items()} for k, v in names.items()}}


@dataclass(slots=True)
class _Entry:
    """One entry as written; ``where`` is how messages call it."""

    where: str
    subset: str
    images: Any
    label: Any
    participant: Any
    session: Any
    case: Any
    columns: dict[str, str]


def read_dataset(dataset_spec: dict, data_root: str) -> Dataset:
    """Read the list, or the tree, that ``dataset_spec`` names; the images themselves are not opened.

    Paths in a list are relative to the list's own folder; those of the cases returned to ``data_root``.

    Raises
    ------
    Problems
        Every malformed entry of the list or the tree, together.
    UserError
        If the list or tree itself, its labels or the derived columns cannot be understood.
    """
    problems: list[str] = []
    if tree_kind(dataset_spec):
        from .neuro import read_tree, tree_folder

        source = tree_folder(dataset_spec)
        rows, facts, channels = read_tree(dataset_spec, data_root, problems)
        entries = [_Entry(*row) for row in rows]
    else:
        source = _list_path(dataset_spec["list"])
        read = _read_json_list if source.endswith(".json") else _read_tsv
        entries, facts, channels = read(str(Path(data_root, source)), dataset_spec, problems)
    labels = {}
    if dataset_spec["task"] == REGRESSION:
        facts["target"] = dataset_spec.get("target") or TARGET
    else:
        labels = _names(dataset_spec.get("labels") or facts.get("labels"), "labels", source)
    if dataset_spec["task"] == SEGMENTATION and is_multi_label(dataset_spec):
        facts |= _label_values(dataset_spec, facts, source)
    modality = _modality(facts.pop("modality", None), dataset_spec.get("channels") or channels, source)
    facts.pop("labels", None)
    cases = _cases(entries, dataset_spec, labels, source, problems)
    cases = derive_columns(cases, dataset_spec.get("columns") or {}, problems)
    if problems:
        raise Problems(source, problems)
    if not cases:
        raise UserError(f"{source}: no cases found, wanted at least one in {TRAINING!r}")
    return Dataset(cases, labels, modality, facts, source, dict(dataset_spec))


def tree_kind(dataset_spec: dict) -> str | None:
    """``bids`` or ``caps`` where the section names such a tree, None where it names a list."""
    return next((kind for kind in (BIDS, CAPS) if kind in dataset_spec), None)


def source_of(dataset_spec: dict) -> str:
    """The list or the tree's folder, as the configuration writes it."""
    kind = tree_kind(dataset_spec)
    return dataset_spec[kind]["folder"] if kind else dataset_spec["list"]


def source_files(dataset_spec: dict, test_spec: dict) -> list[str]:
    """Files, relative to the data root, without which the cases cannot be read: lists, or what makes a folder a tree."""
    others = [group["list"] for group in test_spec["groups"].values() if "list" in group]
    if tree_kind(dataset_spec) is None:
        return [dataset_spec["list"], *others]
    from .neuro import tree_files

    return tree_files(dataset_spec, others)


def with_test_lists(dataset: Dataset, test_spec: dict, data_root: str) -> Dataset:
    """Add the labelled cases of other lists that test groups name; their ``subset`` is the list's path.

    Beside a tree, a list may be another tree's folder, or a table that chooses of this one. Derived columns are not made for them: the patterns are the main list's. Lists that are already in
    ``dataset`` are not read again, so this may be applied twice.
    """
    cases, known = list(dataset.cases), {c.subset for c in dataset.cases}
    for name, group in test_spec["groups"].items():
        if "list" not in group or (path := _test_list_path(group["list"], dataset.spec)) in known:
            continue
        labels = {str(i): n for i, n in dataset.labels.items()} if path.endswith(".tsv") else None
        labels = dataset.spec.get("labels") or labels
        spec = {**_other_source(dataset.spec, path, data_root), "columns": {}, "labels": labels}
        other = read_dataset(spec, data_root)
        for what in ("labels", "modality"):
            found, wanted = getattr(other, what), getattr(dataset, what)
            if (found != wanted) if what == "labels" else (len(found) != len(wanted)):
                raise UserError(
                    f"test group {name!r}: {path}: found {what} {found}, wanted those of {dataset.source}: {wanted}"
                )
        labelled = [c for c in other.cases if c.label is not None]
        if not labelled:
            raise UserError(f"test group {name!r}: {path} has no labelled case, so nothing can be scored")
        taken, prefix = {c.case.lower() for c in cases}, stem([path])
        for case in labelled:
            new = case.case if case.case.lower() not in taken else f"{prefix}_{case.case}"
            cases.append(replace(case, case=new, subset=path))
        known.add(path)
    return replace(dataset, cases=cases)


def _other_source(dataset_spec: dict, path: str, data_root: str) -> dict:
    if tree_kind(dataset_spec) is None:
        return {**dataset_spec, "list": path}
    from .neuro import other_source

    return other_source(dataset_spec, path, data_root)


def dataset_files(dataset: Dataset) -> list[str]:
    """Every image and label file, relative to the data root, once each, in the list's order."""
    files: dict[str, None] = {}
    for case in dataset.cases:
        files.update(dict.fromkeys(case.images))
        if isinstance(case.label, str):
            files[case.label] = None
    return list(files)


def read_facts(path: str) -> dict[str, Any]:
    """``data/dataset.json``: the header of the list that was checked, and a digest of it.

    Raises
    ------
    UserError
        If there is none, or it is not as the data check writes it.
    """
    facts = read_json(path)
    named = [facts.get(key) for key in ("labels", "modality")] if isinstance(facts, dict) else [None]
    if not all(isinstance(n, dict) and all(k.isdecimal() and isinstance(v, str) for k, v in n.items()) for n in named):
        raise UserError(
            f"{path}: found no 'labels' and 'modality' by number; put back a copy, or delete this file to have the data checked again"
        )
    return facts


def stays_inside(case: dict[str, Any], row: dict[str, str]) -> bool:
    """Whether the files of a case, as :class:`Case` holds them, lie in the data root and in its row of the table."""
    if len(row["image_sha256"].split(";")) != len(case["image"]):
        return False
    files = [*case["image"], *([case["label"]] if isinstance(case["label"], str) else [])]
    try:
        return all(_relative(file, "", "file") == file for file in files)
    except ValueError:
        return False


# ---- the two forms of a list


def _read_json_list(path: str, spec: dict, problems: list[str]) -> tuple[list[_Entry], dict, int]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a JSON {type(content).__name__}, wanted an object with the list 'training'")
    entries = []
    for key in ("training", "validation", "test", "testing"):
        items = content.get(key, [])
        if not isinstance(items, list):
            raise UserError(f"{path}: {key!r} is a {type(items).__name__}, wanted a list of entries")
        for i, item in enumerate(items):
            where = f"{key}[{i}]"
            item = {"image": item} if isinstance(item, str) else item
            if isinstance(item, dict) and "image" in item:
                entries.append(_json_entry(where, SUBSETS[key], item, spec))
            else:
                problems.append(f'{where}: found {item!r:.80}, wanted {{"image": path, "label": …}} or a path')
    facts = {_SPELLINGS.get(k, k): v.strip() if isinstance(v, str) else v for k, v in content.items()}
    facts = {k: v for k, v in facts.items() if isinstance(v, str | int | float) and k not in _COUNTS}
    facts.setdefault("name", Path(path).resolve().parent.name)
    named = {k: content[k] for k in ("labels", "modality", LABEL_VALUES) if content.get(k)}
    return entries, {**facts, **named}, 0


def _json_entry(where: str, subset: str, item: dict, spec: dict) -> _Entry:
    images = item["image"] if isinstance(item["image"], list) else [item["image"]]
    labelled_by = spec.get("target") or "label"
    label = item.get(labelled_by)
    if isinstance(label, list) and len(label) == 1 and not (is_multi_label(spec) and spec["task"] == CLASSIFICATION):
        label = label[0]
    own = ("image", "label", labelled_by, *_OWN_COLUMNS)
    columns = {k: str(v) for k, v in item.items() if k not in own and isinstance(v, str | int | float)}
    return _Entry(
        where,
        subset,
        images,
        label,
        item.get("participant_id"),
        item.get("session_id"),
        item.get("case"),
        columns,
    )


def _read_tsv(path: str, spec: dict, problems: list[str]) -> tuple[list[_Entry], dict, int]:
    try:
        text = read_text(path).removeprefix("\ufeff")
        if text.count("\t") + 4 * text.count("\n") > MOST_FIELDS:  # a row takes the memory of several fields
            raise UserError(f"{path}: found more than {MOST_FIELDS:,} fields; this is not the table that it should be")
        table = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
        rows = [(i, row) for i, row in enumerate(table, 1) if any(row)]
    except csv.Error as error:
        raise UserError(f"{path}: not a UTF-8 table of tab-separated values ({error})") from None
    header = [name.strip() for name in rows[0][1]] if rows else []
    images, label = _tsv_columns(path, header, spec)
    of_classes = spec["task"] == CLASSIFICATION and is_multi_label(spec) and label not in header
    given = class_columns_of(spec, header, path) if of_classes else [label]
    own = {*_OWN_COLUMNS, *images, label}
    others = [name for name in header if name not in own]
    entries = []
    for line, row in rows[1:]:
        if len(row) != len(header):
            problems.append(f"line {line}: found {len(row)} fields, wanted {len(header)}, as in the header")
            continue
        value = dict(zip(header, (v.strip() for v in row), strict=True))
        subset = value.get("subset") or TRAINING
        if subset not in SUBSETS:
            problems.append(f"line {line}: found subset {subset!r}, wanted one of {', '.join(SUBSETS)}")
            continue
        files = [f.strip() for name in images for f in value[name].split(";")]
        targets = [value.get(name, "") for name in given]
        entries.append(
            _Entry(
                f"line {line}",
                SUBSETS[subset],
                files,
                None if all(target in UNLABELLED for target in targets) else SEPARATOR.join(targets),
                value["participant_id"],
                value.get("session_id"),
                value.get("case"),
                {name: value[name] for name in others},
            )
        )
    return entries, {"name": Path(path).stem}, len(entries[0].images) if entries else 1


def _tsv_columns(path: str, header: list[str], spec: dict) -> tuple[list[str], str]:
    """The image columns in channel order and the label column; where labels are no files ``target`` is preferred."""
    repeated = [name for name, n in Counter(header).items() if n > 1 or not name]
    if repeated:
        raise UserError(f"{path}: columns without a name or named twice: {repeated}; wanted each name once")
    numbered = sorted((int(m[1]), m[0]) for m in (re.fullmatch(r"image_?(\d+)", name) for name in header) if m)
    images = [name for _, name in numbered]
    if ("image" in header) == bool(images) or "participant_id" not in header:
        raise UserError(
            f"{path}: found columns {', '.join(header) or '(none)'}; wanted participant_id and either image "
            "(several files separated by ;) or image_0, image_1, …"
        )
    named = spec.get("target")
    if named and named not in header:
        raise UserError(f"{path}: dataset.target names column {named!r}, wanted one of {', '.join(header)}")
    preferred = TARGET if spec["task"] != SEGMENTATION and TARGET in header else "label"
    return images or ["image"], named or preferred


# ---- from entries to cases


def _cases(entries: list[_Entry], spec: dict, labels: dict, source: str, problems: list[str]) -> list[Case]:
    # Rows of a tree have whole paths.
    folder, table = ("", True) if tree_kind(spec) else (posixpath.dirname(source), source.endswith(".tsv"))
    drafts = []
    for entry in entries:
        try:
            images = tuple(_relative(path, folder, "image") for path in entry.images or [None])
            label = _label(entry.label, spec, labels, folder)
            if label is None and entry.subset != TEST:
                raise ValueError(f"no label, wanted one in a {entry.subset} entry")
            participant = bids_id("sub", entry.participant, "participant_id") if table or entry.participant else ""
            session = bids_id("ses", entry.session, "session_id") if entry.session else DEFAULT_SESSION
            name = given_name(entry.case) if entry.case else ""
        except ValueError as error:
            problems.append(f"{entry.where}: {error}")
            continue
        drafts.append((entry, images, label, participant, session, name))
    times = Counter((name or stem(images)).lower() for _, images, _, _, _, name in drafts)
    seen: dict[str, str] = {}
    cases = []
    for entry, images, label, participant, session, name in drafts:
        if not name:
            name = stem(images)
            if times[name.lower()] > 1:
                name = longer_name(name, images, f"{participant}_{session}" if participant else "")
        if (other := seen.setdefault(name.lower(), entry.where)) != entry.where:
            problems.append(
                f"{entry.where}: found case {name!r} again (first in {other}), wanted each once; drop the repeated entry, or tell the cases apart by 'case'"
            )
        participant = participant or "sub-" + (re.sub(r"[^A-Za-z0-9]", "", name) or "0")
        cases.append(Case(name, participant, session, images, label, entry.columns, entry.subset))
    return cases


def _list_path(path: str) -> str:
    return inside_data_root(path, "dataset.list", suffixes=LISTS)


def _test_list_path(path: str, dataset_spec: dict) -> str:
    return _list_path(path) if tree_kind(dataset_spec) is None else inside_data_root(path, "test group's list")


def inside_data_root(path: Any, what: str, folder: str = "", suffixes: tuple = ("",)) -> str:
    """``path`` as written below ``folder``, made relative to the data root, which it may not leave.

    Raises
    ------
    UserError
        If it is no such path, or ends in none of ``suffixes``.
    """
    try:
        return _relative(path, folder, what, suffixes)
    except ValueError as error:
        raise UserError(str(error)) from None


def _relative(path: Any, folder: str, what: str, suffixes: tuple = (".nii", ".nii.gz")) -> str:
    """``path`` as written in a list that lies in ``folder``, made relative to the data root."""
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"{what}: found {path!r}, wanted a path")
    path = path.strip()
    if path.startswith(("/", "~")) or "\\" in path or re.match(r"[A-Za-z]+:", path) or not path.isprintable():
        raise ValueError(f"{what}: found {path!r}, wanted a relative path with '/', inside the data folder")
    joined = posixpath.normpath(posixpath.join(folder, path))
    if joined.split("/")[0] == "..":
        raise ValueError(f"{what}: {path!r} leaves the data folder; move the file inside, or data_root up")
    if not joined.endswith(suffixes):
        raise ValueError(f"{what}: found {path!r}, wanted a file ending in {' or '.join(suffixes)}")
    return joined


def _label(label: Any, spec: dict, names: dict[int, str], folder: str) -> str | int | float | tuple[int, ...] | None:
    if label is None:
        return None
    if spec["task"] == SEGMENTATION:
        return _relative(label, folder, "label")
    if spec["task"] == REGRESSION:
        return _target(label)
    return labels_of_case(label, names) if is_multi_label(spec) else _class(label, names)


def _class(label: Any, names: dict[int, str]) -> int:
    indices = {name: i for i, name in names.items()}
    if isinstance(label, str):
        if label in indices:
            return indices[label]
        if re.fullmatch(r"-?[0-9]{1,9}(\.0*)?", label):
            return int(float(label))
    elif isinstance(label, int | float) and not isinstance(label, bool) and label == label // 1:
        return int(label)
    known = ", ".join(f"{i} {name}" for name, i in indices.items())
    several = "; where a case may have several classes, set dataset.multi_label" if isinstance(label, list) else ""
    raise ValueError(f"label: found {label!r:.200}, wanted a class index or name ({known}){several}")


def _target(found: Any) -> float:
    """The number that a regression learns, which single precision must hold."""
    written = isinstance(found, str) and len(found) <= LONGEST_NUMBER and _NUMBER.fullmatch(found)
    number = isinstance(found, int | float) and not isinstance(found, bool)
    try:
        value = float(found) if written or number else math.nan
    except OverflowError:
        value = math.inf
    if not abs(value) <= LARGEST_TARGET:
        raise ValueError(f"target: found {found!r:.80}, wanted a finite number, at most {LARGEST_TARGET:g} in size")
    return value


# ---- labels and channels


def _names(names: Any, what: str, source: str) -> dict[int, str]:
    """A map of indices to names, which must count up from 0."""
    example = 'wanted {"0": "background", "1": …} there or as dataset.labels in the configuration'
    if not isinstance(names, dict) or not names:
        raise UserError(f"{source}: found {what} {names!r}, {example}")
    try:
        result = {int(key): str(name) for key, name in names.items()}
    except ValueError:
        raise UserError(f"{source}: {what}: found keys {list(names)}, {example}") from None
    if sorted(result) != list(range(len(names))):
        raise UserError(f"{source}: {what}: found keys {sorted(result)}, wanted 0 to {len(names) - 1} without gaps")
    if len(set(result.values())) < len(result):
        raise UserError(f"{source}: {what}: found {list(result.values())}, wanted a different name for each")
    return dict(sorted(result.items()))


def _label_values(spec: dict, facts: dict, source: str) -> dict[str, dict[str, str]]:
    """What values in label files mean where they are no channels: the list's labels, if the configuration names the classes."""
    found = facts.get(LABEL_VALUES) or (facts.get("labels") if spec.get("labels") else None)
    if not found:
        return {}
    if not isinstance(found, dict) or not all(re.fullmatch("[0-9]{1,9}", str(key)) for key in found):
        raise UserError(f'{source}: found label values {found!r:.200}, wanted {{"0": "background", "1": …}}')
    return {LABEL_VALUES: {str(int(key)): str(name) for key, name in found.items()}}


def _modality(found: Any, channels: int, source: str) -> dict[int, str]:
    """Channel names: the list's own, or as many as the configuration (or a table's columns) say."""
    names = {}
    if found:
        pairs = found if isinstance(found, dict) else {"0": str(found)}
        # Two channels of one modality may share a name, so only the keys are checked.
        keys = _names({k: k for k in pairs}, "modality", source)
        names = {i: str(pairs[k]) for i, k in keys.items()}
    wanted = channels or len(names) or 1
    return {i: names.get(i, "image" if wanted == 1 else f"channel {i}") for i in range(wanted)}
