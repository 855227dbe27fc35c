"""Neuroimaging datasets as sources of cases: a BIDS tree, or Clinica's CAPS (which ClinicaDL reads). No torch.

Names are parsed by ancpbids; its index of a whole dataset is not made: it takes seconds for a thousand participants,
and planning reads this. Folders are those of the specification: ``sub-<label>[/ses-<label>]/<datatype>``.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from .dataset import (
    BIDS,
    CAPS,
    DEFAULT_SESSION,
    LISTS,
    MOST_FIELDS,
    SUBSETS,
    TEST,
    TRAINING,
    UNLABELLED,
    inside_data_root,
    tree_kind,
)
from .errors import UserError
from .files import read_json, read_text
from .naming import bids_id

DESCRIPTION = "dataset_description.json"
PARTICIPANTS = "participants.tsv"
EXTENSIONS = (".nii", ".nii.gz")
_OWN_COLUMNS = ("participant_id", "session_id", "case", "subset")
_PAIR = re.compile(r"[A-Za-z0-9]+-[A-Za-z0-9+]+")
_SHOWN = 5

Entities = dict[str, Any]
"""Of each entity its value, or a list of those allowed; None is for a name without it."""
Pair = tuple[str, str]
"""A participant and a session."""


class Row(NamedTuple):
    """A participant's session, as an entry of a list has it; ``where`` is how messages call it."""

    where: str
    subset: str
    images: list[str]
    label: str | None
    participant: str
    session: str
    case: str
    columns: dict[str, str]


@dataclass(frozen=True)
class FileType:
    """Files of a datatype's folder by suffix and entities."""

    datatype: str
    suffix: str
    entities: Entities

    def __str__(self) -> str:
        entities = [f"{key}: {' or '.join(v or 'none' for v in values)}" for key, values in self.entities.items()]
        return f"{self.datatype}/*_{self.suffix}.nii[.gz]" + (f" with {', '.join(entities)}" if entities else "")


_LINEAR: Entities = {"space": "MNI152NLin2009cSym", "desc": "Crop", "res": "1x1x1"}
PIPELINES = {
    "t1-linear": FileType("t1_linear", "T1w", _LINEAR),
    "flair-linear": FileType("flair_linear", "FLAIR", _LINEAR),
    "pet-linear": FileType("pet_linear", "pet", _LINEAR),
}
"""Clinica's pipelines, with the files that ``clinicadl.io.bids`` takes of each; cropped ones, unless ``desc`` says."""
NEEDED = {"pet-linear": ("trc", "suvr")}
"""Entities that a pipeline makes several files by."""


def tree_folder(spec: dict) -> str:
    """Folder of the tree, relative to the data root."""
    kind = tree_kind(spec)
    return inside_data_root(spec[kind]["folder"], f"dataset.{kind}.folder")


def tree_files(spec: dict, others: Iterable[str]) -> list[str]:
    """Files, relative to the data root, without which the tree, and what test groups name beside it, cannot be read."""
    folder, section = tree_folder(spec), spec[tree_kind(spec)]
    chosen = [_table_path(section, folder)] if section["participants"] else []
    beside = [path if path.endswith(LISTS) else posixpath.join(path, DESCRIPTION) for path in others]
    return [posixpath.join(folder, DESCRIPTION), *chosen, *beside]


def other_source(spec: dict, path: str, data_root: str) -> dict:
    """The section of what a test group names beside the tree of ``spec``.

    A folder is another tree, of which the same files are taken; a table without images chooses of this tree; anything
    else is a list. Columns, which group and stratify, are not taken over: test cases are not divided.
    """
    kind, others = tree_kind(spec), {k: v for k, v in spec.items() if k not in (BIDS, CAPS)}
    section = {**spec[kind], "columns": []}
    if not path.endswith(LISTS):
        return {**others, kind: {**section, "folder": path, "participants": None}}
    if path.endswith(".tsv"):
        header = read_text(Path(data_root, path)).removeprefix("\ufeff").split("\n", 1)[0].split("\t")
        if not any(name.strip().startswith("image") for name in header):
            chosen = posixpath.relpath(path, tree_folder(spec))
            return {**others, kind: {**section, "participants": chosen}}
    return {**others, "list": path}


def read_tree(spec: dict, data_root: str, problems: list[str]) -> tuple[list[Row], dict[str, Any], int]:
    """Rows of a tree by participant and session, what it says of itself, and the number of channels.

    Raises
    ------
    UserError
        If the folder is no such dataset, or has nothing of what is wanted.
    """
    kind, folder = tree_kind(spec), tree_folder(spec)
    section, where = spec[kind], f"dataset.{kind}"
    types, segmentation = _image_types(section, where), spec["task"] == "segmentation"
    if segmentation != ("label" in section):
        wanted = "label, which says where the label files are" if segmentation else "no label: the target is a column"
        raise UserError(f"{where}: task is {spec['task']}, wanted {wanted}")
    tree = _Tree(folder, data_root, kind)
    found = [tree.find(wanted, f"{where}.entities") for wanted in types]
    if not any(files.paths or files.misnamed for files in found):
        raise UserError(
            f"{folder}: found no {types[0]}; {tree.seen(types[0])}; mend {where}.datatype, suffix or entities"
        )
    labels = _label_files(section, types[0], folder, data_root, kind) if segmentation else None
    tables = _Tables(tree, section, where, problems)
    if not tables.choice:
        problems += tree.misnamed
    pairs = dict.fromkeys(pair for files in found for pair in (*files.paths, *files.misnamed))
    rows = []
    for pair in tables.chosen(pairs, types, problems):
        images = [files.one(pair, problems) for files in found]
        label = labels.one(pair, problems, may_lack=True) if labels else None
        if None not in images and not (labels and labels.several(pair)):
            rows.append((pair, images, label, tables.values(pair)))
    result = _labelled_rows(rows, labels, spec, where, problems)
    return result, {**tree.facts, "modality": {str(i): t.suffix for i, t in enumerate(types)}}, len(types)


def _labelled_rows(
    found: list[tuple[Pair, list[str], str | None, dict[str, str]]],
    labels: _Files | None,
    spec: dict,
    where: str,
    problems: list[str],
) -> list[Row]:
    """Rows with their label, file or target; only cases of the list ``test`` may lack one."""
    target = None if labels else spec.get("target") or "target"
    kept = _taken_columns([values for *_, values in found], target, spec[tree_kind(spec)]["columns"], where, problems)
    rows: list[Row] = []
    if kept is None:
        return rows
    for pair, images, file, values in found:
        label = file if labels else _given(values.get(target))
        subset = values.get("subset") or TRAINING
        if subset not in SUBSETS:
            problems.append(f"{_said(pair)}: found subset {subset!r}, wanted one of {', '.join(SUBSETS)}")
        elif label is None and SUBSETS[subset] != TEST:
            lacked = f"label file, {labels.wanted}" if labels else f"value in column {target!r}"
            problems.append(f"{_said(pair)}: found no {lacked}; add it, or choose others by {where}.participants")
        else:
            columns = {name: _given(values.get(name)) or "n/a" for name in kept}
            rows.append(Row(_said(pair), SUBSETS[subset], images, label, *pair, "_".join(pair), columns))
    return rows


def _taken_columns(
    rows: list[dict[str, str]], target: str | None, asked: list[str] | None, where: str, problems: list[str]
) -> list[str] | None:
    """Columns that are taken over of the tables' rows, not the target's; None where one is lacking."""
    known = dict.fromkeys(name for values in rows for name in values)
    wanted = {"dataset.target": [target] if target else [], f"{where}.columns": asked or []}
    lacking = {key: ", ".join(n for n in names if n not in known) for key, names in wanted.items() if rows}
    said = f"the columns {', '.join(known)}" if known else f"no table of participants as {where}.participants"
    problems += [f"{k}: found {said}, wanted {names}; name another, or add it" for k, names in lacking.items() if names]
    if any(lacking.values()):
        return None
    return [name for name in (known if asked is None else asked) if name not in (*_OWN_COLUMNS, target)]


def _given(value: str | None) -> str | None:
    return None if value in (None, *UNLABELLED) else value


# ---- which files


def _image_types(section: dict, where: str) -> list[FileType]:
    pipeline = section.get("preprocessing")
    given = [key for key in ("datatype", "suffix") if section.get(key) is not None]
    if pipeline and given:
        raise UserError(
            f"{where}: preprocessing {pipeline} says its files' {' and '.join(given)}; leave one of them out"
        )
    if not pipeline and len(given) < 2:
        raise UserError(f"{where}: wanted datatype and suffix" + (", or preprocessing" if where.endswith(CAPS) else ""))
    if not pipeline:
        suffixes = section["suffix"] if isinstance(section["suffix"], list) else [section["suffix"]]
        return [_file_type(section["datatype"], suffix, section["entities"], where) for suffix in suffixes]
    known = PIPELINES[pipeline]
    entities = {**known.entities, **section["entities"]}
    if lacking := [key for key in NEEDED.get(pipeline, ()) if key not in entities]:
        raise UserError(
            f"{where}.entities: {pipeline} needs {' and '.join(lacking)}, such as {{trc: 18FFDG, suvr: pons2}}"
        )
    return [_file_type(known.datatype, known.suffix, entities, where)]


def _file_type(datatype: str, suffix: str, entities: Entities, where: str) -> FileType:
    inside_data_root(datatype, f"{where}.datatype")
    if not suffix.isalnum():
        raise UserError(f"{where}.suffix: found {suffix!r}, wanted letters and digits, as in sub-01_T1w.nii.gz")
    listed = {key: value if isinstance(value, list) else [value] for key, value in entities.items()}
    return FileType(datatype, suffix, {key: [_comparable(key, v) for v in values] for key, values in listed.items()})


def _label_files(section: dict, image: FileType, folder: str, data_root: str, kind: str) -> _Files:
    """Label files of the tree itself, or of a folder of derivatives."""
    where, label = f"dataset.{kind}.label", section["label"]
    below = label["folder"]
    place = inside_data_root(below, f"{where}.folder", folder) if below else folder
    tree = _Tree(place, data_root, None if below else kind)
    wanted = _file_type(label["datatype"] or image.datatype, label["suffix"], label["entities"], where)
    return tree.find(wanted, f"{where}.entities")


@cache
def _reader() -> tuple[Callable[[str], dict | None], Callable[[str, Any], Any]]:
    """The parser of BIDS names, and what makes run-01 and run-1 the same."""
    try:
        import ancpbids
        from ancpbids.utils import parse_bids_name
    except ImportError:
        raise UserError(
            "dataset.bids and dataset.caps need ancpbids, which is not installed: pip install ancpbids"
        ) from None
    return parse_bids_name, ancpbids.model_latest.process_entity_value


def _comparable(key: str, value: str | int | None) -> str | None:
    return None if value is None else str(_reader()[1](key, str(value)))


def _entities(name: str) -> dict[str, str] | None:
    """Entities of a file's name; None where it is no BIDS name, to the letter."""
    parts = _reader()[0](name)
    if not parts or "sub" not in parts["entities"]:
        return None
    pairs = [f"{key}-{value}" for key, value in parts["entities"].items()]
    written = "_".join([*pairs, parts["suffix"]]) + parts["extension"]
    return parts["entities"] if written == name and all(map(_PAIR.fullmatch, pairs)) else None


# ---- a tree


@dataclass
class _Files:
    """Files of a type by participant and session: those that it has, and those whose names are no BIDS names of theirs."""

    wanted: FileType
    key: str
    paths: dict[Pair, list[str]] = field(default_factory=dict)
    misnamed: dict[Pair, list[str]] = field(default_factory=dict)

    def several(self, pair: Pair) -> bool:
        return len(self.paths.get(pair, ())) > 1

    def one(self, pair: Pair, problems: list[str], may_lack: bool = False) -> str | None:
        """The one file of a session, or None and what is wrong."""
        paths, misnamed = self.paths.get(pair, []), self.misnamed.get(pair, [])
        problems += [
            f"{path}: wanted a BIDS name of {_said(pair)}, such as {pair[0]}_…_{self.wanted.suffix}.nii.gz with key-value pairs "
            "of letters and digits; rename it"
            for path in misnamed
        ]
        if len(paths) == 1:
            return paths[0]
        if paths:
            names = ", ".join(posixpath.basename(p) for p in paths[:_SHOWN])
            problems.append(
                f"{_said(pair)}: found {len(paths)} files ({names}), wanted one {self.wanted}; tell them apart by {self.key} (null where a file must lack one)"
            )
        elif not misnamed and not may_lack:
            problems.append(f"{_said(pair)}: found no {self.wanted}; add it, or take the session away")
        return None


class _Tree:
    """Folders of a dataset; ``kind`` is what it must be, or None for either."""

    def __init__(self, folder: str, data_root: str, kind: str | None):
        self.folder, self.root = folder, data_root
        self.misnamed: list[str] = []
        description = self._description(kind)
        below = {"study": "sourcedata/raw"}.get(str(description.get("DatasetType")).lower(), "")
        self.base = posixpath.normpath(posixpath.join(folder, "subjects" if "CAPSVersion" in description else below))
        licence, name = description.get("License"), description.get("Name")
        self.facts = {"name": name if isinstance(name, str) and name else posixpath.basename(folder)}
        self.facts |= {"licence": licence} if isinstance(licence, str) and licence else {}

    def _description(self, kind: str | None) -> dict:
        path = posixpath.join(self.folder, DESCRIPTION)
        if not Path(self.root, path).is_file():
            what = "a CAPS" if kind == CAPS else "a BIDS dataset"
            raise UserError(
                f"{self.folder}: not {what} in {self.root}: found no {DESCRIPTION}; mend the folder or data_root, or write the file"
            )
        found = read_json(Path(self.root, path))
        if not isinstance(found, dict):
            raise UserError(f"{path}: found a JSON {type(found).__name__}, wanted an object with Name and BIDSVersion")
        if kind and (kind == CAPS) != ("CAPSVersion" in found):
            other = "no CAPS: no CAPSVersion; name it" if kind == CAPS else "a CAPS: it has a CAPSVersion; name it"
            raise UserError(f"{path}: {other} as dataset.{BIDS if kind == CAPS else CAPS}, or mend the file")
        return found

    def find(self, wanted: FileType, key: str) -> _Files:
        """Files of each participant and session; ``key`` of the configuration tells several apart."""
        files = _Files(wanted, key)
        for (participant, session), folder in self._sessions:
            pair = (participant, session or DEFAULT_SESSION)
            for name in self._candidates(folder, wanted):
                entities, path = _entities(name), f"{folder}/{wanted.datatype}/{name}"
                if entities is None or _strange((participant, session), entities):
                    files.misnamed.setdefault(pair, []).append(path)
                elif _has(entities, wanted.entities):
                    files.paths.setdefault(pair, []).append(path)
        return files

    def seen(self, wanted: FileType) -> str:
        """In words, what there is instead of ``wanted``."""
        folders = [f"{folder}/{wanted.datatype}" for _, folder in self._sessions]
        names = [name for folder in folders for name in self._names(folder) if name.endswith(EXTENSIONS)]
        if not folders:
            return f"{self.base} has no folder sub-*"
        return f"there are {', '.join(names[:_SHOWN])}" if names else f"no {wanted.datatype} folder has an image"

    def session_tables(self) -> Iterator[tuple[str, str]]:
        """Participant and path of every table of sessions."""
        for pair, folder in self._sessions:
            path = f"{folder}/{pair[0]}_sessions.tsv"
            if not pair[1] and os.path.isfile(self._at(path)):
                yield pair[0], path

    @cached_property
    def _sessions(self) -> list[tuple[Pair, str]]:
        """Every participant's folder, with an empty session, and those of the sessions below."""
        if not os.path.isdir(self._at(self.base)):
            raise UserError(f"{self.base}: no such folder in {self.root}, wanted the participants' sub-* in it")
        found = []
        for participant in self._labelled(self.base, "sub"):
            folder = posixpath.normpath(f"{self.base}/{participant}")
            found.append(((participant, ""), folder))
            found += [((participant, session), f"{folder}/{session}") for session in self._labelled(folder, "ses")]
        return found

    def _labelled(self, folder: str, prefix: str) -> list[str]:
        """Folders that are named after a participant or session; what is named otherwise is noted."""
        with os.scandir(self._at(folder)) as entries:
            names = sorted(e.name for e in entries if e.name.startswith(f"{prefix}-") and e.is_dir())
        found = []
        for name in names:
            try:
                found.append(bids_id(prefix, name, "folder"))
            except ValueError as error:
                self.misnamed.append(f"{folder}/{name}: {error}; rename it, or move it out of the dataset")
        return found

    def _candidates(self, folder: str, wanted: FileType) -> list[str]:
        ends = tuple(f"{lead}{wanted.suffix}{extension}" for lead in "_-" for extension in EXTENSIONS)
        return [n for n in self._names(f"{folder}/{wanted.datatype}") if n.endswith(ends) and n[0] != "."]

    def _at(self, path: str) -> str:
        return os.path.join(self.root, path)

    def _names(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(self._at(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return []


def _strange(pair: Pair, entities: dict[str, str]) -> bool:
    """Whether a file's name is another participant's or session's than its folder."""
    return f"sub-{entities['sub']}" != pair[0] or ("ses" in entities and f"ses-{entities['ses']}" != pair[1])


def _has(entities: dict[str, str], wanted: Entities) -> bool:
    return all(_comparable(key, entities.get(key)) in values for key, values in wanted.items())


def _said(pair: tuple[str, ...]) -> str:
    return " ".join(filter(None, pair))


# ---- tables


def _table_path(section: dict, folder: str) -> str:
    return inside_data_root(section["participants"] or PARTICIPANTS, "dataset participants", folder)


class _Participants:
    """A table of participants or, where it has the column ``session_id``, of sessions."""

    def __init__(self, path: str, root: str, problems: list[str]):
        self.path = path
        rows = _rows(path, root, "participant_id", problems)
        self.by_session = any("session_id" in row for _, row in rows)
        self.rows = _once(path, ("sub", "ses") if self.by_session else ("sub",), rows, problems)

    def key(self, pair: Pair) -> tuple[str, ...]:
        return pair if self.by_session else pair[:1]

    def values(self, pair: Pair) -> dict[str, str]:
        return self.rows.get(self.key(pair), {})


class _Tables:
    """The dataset's own participants.tsv, which must name all, another table, which chooses, and those of sessions."""

    def __init__(self, tree: _Tree, section: dict, where: str, problems: list[str]):
        own, chosen = posixpath.normpath(f"{tree.folder}/{PARTICIPANTS}"), _table_path(section, tree.folder)
        self.key = f"{where}.participants"
        if section["participants"] and not Path(tree.root, chosen).is_file():
            raise UserError(f"{self.key}: {chosen}: no such file in {tree.root}; mend the path")
        there = Path(tree.root, own).is_file()
        self.own = _Participants(own, tree.root, problems) if there else None
        self.choice = _Participants(chosen, tree.root, problems) if chosen != own else None
        self.sessions: dict[tuple[str, ...], dict[str, str]] = {}
        for participant, path in tree.session_tables():
            found = _once(path, ("ses",), _rows(path, tree.root, "session_id", problems), problems)
            self.sessions |= {(participant, session): row for (session,), row in found.items()}

    def chosen(self, pairs: Iterable[Pair], types: list[FileType], problems: list[str]) -> list[Pair]:
        """Of the participants and sessions with images those to take; what table and tree lack is a problem."""
        table = self.choice or self.own
        if table is None:
            return list(pairs)
        pairs = list(pairs)
        met = {table.key(pair) for pair in pairs}
        wanted = " and ".join(map(str, types))
        if not self.choice:
            problems += [
                f"{_said(pair)}: has images, but {table.path} has no row of it; add one, or choose by a table of your own as {self.key}"
                for pair in pairs
                if table.key(pair) not in table.rows
            ]
        problems += [
            f"{table.path}: {_said(key)}: found no image, wanted {wanted}; add it, or take the row out"
            + ("" if self.choice else f"; a table of your own as {self.key} may leave rows out")
            for key in table.rows
            if key not in met
        ]
        return [pair for pair in pairs if table.key(pair) in table.rows]

    def values(self, pair: Pair) -> dict[str, str]:
        """What the tables say of a session, the more particular over the more general."""
        tables = [table.values(pair) for table in (self.own, self.choice) if table]
        return {k: v for row in (*tables, self.sessions.get(pair, {})) for k, v in row.items()}


def _rows(path: str, root: str, needed: str, problems: list[str]) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a table of tab-separated values."""
    text = read_text(Path(root, path)).removeprefix("\ufeff")
    if text.count("\t") + 4 * text.count("\n") > MOST_FIELDS:
        raise UserError(f"{path}: found more than {MOST_FIELDS:,} fields; this is not the table that it should be")
    try:
        lines = enumerate(csv.reader(io.StringIO(text, newline=""), delimiter="\t"), 1)
        table = [(line, [field.strip() for field in row]) for line, row in lines if any(row)]
    except csv.Error as error:
        raise UserError(f"{path}: not a table of tab-separated values ({error})") from None
    header = table[0][1] if table else []
    if needed not in header or len({*header}) < len(header) or "" in header:
        raise UserError(f"{path}: found columns {', '.join(header) or '(none)'}; wanted {needed}, and each name once")
    problems += [
        f"{path}: line {line}: found {len(row)} fields, wanted {len(header)}, as in the header"
        for line, row in table[1:]
        if len(row) != len(header)
    ]
    return [(line, dict(zip(header, row, strict=True))) for line, row in table[1:] if len(row) == len(header)]


def _once(
    path: str, prefixes: tuple[str, ...], rows: list[tuple[int, dict[str, str]]], problems: list[str]
) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows by participant (``sub``) and session (``ses``); a repeated one is a problem."""
    names = {"sub": "participant_id", "ses": "session_id"}
    result: dict[tuple[str, ...], dict[str, str]] = {}
    lines: dict[tuple[str, ...], int] = {}
    for line, row in rows:
        try:
            key = tuple(bids_id(prefix, row[names[prefix]], names[prefix]) for prefix in prefixes)
        except ValueError as error:
            problems.append(f"{path}: line {line}: {error}")
            continue
        if key in result:
            problems.append(f"{path}: line {line}: {_said(key)} again (first in line {lines[key]}); take one out")
        else:
            result[key], lines[key] = row, line
    return result
