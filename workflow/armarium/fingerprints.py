"""What decides each costly product of an archive, by content: its fingerprint. No torch."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable
from pathlib import Path

from . import layout
from .changes import TESTED, is_of_list
from .dataset import SUBSETS, TEST
from .files import json_text
from .split_files import given_sides, own_groups, shared_groups, split_numbers, tested_on

DEPENDS_ON = {
    "splits": ("data", "split", "test", "files"),
    "training": ("data", "split", "train", "files"),
    "evaluation": ("data", "split", "train", "test", "files"),
    "export": ("data", "split", "train", "test", "export", "publish", "files"),
    "format": ("data", "split", "train", "test", "export", "publish", "files"),
    "published evaluation": ("data", "split", "train", "test", "predict", "export", "publish", "files"),
    "checkpoint evaluation": ("data", "split", "train", "test", "predict", "publish", "files"),
    "ensemble": ("data", "split", "train", "test", "export", "publish", "files"),
    "ensemble evaluation": ("data", "split", "train", "test", "predict", "export", "publish", "files"),
}
"""The parts of the effective configuration of which something decides each costly product.

Which checkpoints are selected decides none: a product that holds several says of which weights each is.
"""


def fingerprint(effective: dict[str, str], product: str, *which: str | int) -> str:
    """SHA-256 over the configuration that decides a product, by content.

    Of what tells products of a kind apart only its own counts: of given splits the split's own cases, of test groups
    the group's own. What it leaves out, torch's version and the CPU, is recorded in the product itself.

    Parameters
    ----------
    effective:
        Text of each part.
    product:
        A key of ``DEPENDS_ON``.
    which:
        The split; of an evaluation the group, then the split; of a format that.
    """
    parts = _DECIDED_BY[product](effective, *map(str, which))
    return hashlib.sha256("\0".join([product, *parts, *map(str, which)]).encode()).hexdigest()


def _splits(effective: dict[str, str]) -> list[str]:
    return [*(effective[part] for part in ("data", "split", "test")), _differences(effective["files"], None)]


def _training(effective: dict[str, str], split: str) -> list[str]:
    return [*_trained_by(effective, split), _differences(effective["files"], ())]


def _trained_by(effective: dict[str, str], split: str) -> list[str]:
    return [effective["data"], _sides_of(json.loads(effective["split"]), split), effective["train"]]


def _sides_of(part: dict, split: str) -> str:
    """What decides the cases that a split trains and validates on: where they are drawn, the whole draw."""
    if part["splits"]["method"] != "file":
        return json_text(part)
    sides = given_sides(part["given"])[int(split)]
    return json_text({side: entries for side, entries in sides.items() if side != "test"})


def _evaluation(effective: dict[str, str], group: str, split: str) -> list[str]:
    own = _groups_by_definition(effective, (group,))
    return [*_trained_by(effective, split), json_text(own), _differences(effective["files"], _lists(own))]


def _export(effective: dict[str, str], split: str) -> list[str]:
    return [*_exported_by(effective, split), _differences(effective["files"], ())]


def _exported_by(effective: dict[str, str], split: str) -> list[str]:
    # What is exported says whether the published model is meant for test cases or for its own validation cases.
    tested = json_text(bool(_published_groups(effective)))
    return [*_trained_by(effective, split), tested, effective["export"], effective["publish"]]


def _format(effective: dict[str, str], _: str) -> list[str]:
    return _export(effective, str(json.loads(effective["publish"])["publish"]))


def _ensemble(effective: dict[str, str], *_: str) -> list[str]:
    splits = map(str, split_numbers(json.loads(effective["split"])))
    return [text for split in splits for text in _export(effective, split)]


def _ensemble_evaluation(effective: dict[str, str], *_: str) -> list[str]:
    tested = _groups_by_definition(effective, shared_groups(json.loads(effective["test"])["groups"]))
    differences = _differences(effective["files"], _lists(tested))
    return [*_ensemble(effective), effective["predict"], json_text(tested), differences]


def _published_groups(effective: dict[str, str]) -> list[str]:
    groups = json.loads(effective["test"])["groups"]
    return tested_on(json.loads(effective["publish"])["publish"], groups, own_groups(groups))


def _published_evaluation(effective: dict[str, str], *_: str) -> list[str]:
    return [*_exported_by(effective, _published_split(effective)), *_scored_by(effective)]


def _checkpoint_evaluation(effective: dict[str, str], *_: str) -> list[str]:
    split = _published_split(effective)
    return [split, *_trained_by(effective, split), *_scored_by(effective)]


def _published_split(effective: dict[str, str]) -> str:
    return str(json.loads(effective["publish"])["publish"])


def _scored_by(effective: dict[str, str]) -> list[str]:
    """What decides on which cases the published model is scored, and what of it is kept."""
    tested = _groups_by_definition(effective, _published_groups(effective))
    return [effective["predict"], json_text(tested), _differences(effective["files"], _lists(tested))]


_DECIDED_BY = {
    "splits": lambda effective, *_: _splits(effective),
    "training": _training,
    "evaluation": _evaluation,
    "export": _export,
    "format": _format,
    "published evaluation": _published_evaluation,
    "checkpoint evaluation": _checkpoint_evaluation,
    "ensemble": _ensemble,
    "ensemble evaluation": _ensemble_evaluation,
}


def _groups_by_definition(effective: dict[str, str], names: Iterable[str]) -> list:
    """What decides the cases of test groups, each once; a group that is drawn has its name in it."""
    groups, part = json.loads(effective["test"])["groups"], json.loads(effective["split"])
    found = []
    for name in names:
        group = groups[name]
        if "given" in group:
            found.append([TEST, [given_sides(part["given"])[group.get("split", 0)].get("test")]])
        else:
            found.append([name, group, part] if takes_training_cases(group) else group)
    return sorted({json_text(group): group for group in found}.values(), key=json_text)


def _lists(groups: list) -> list[str]:
    """The lists of test cases that groups, as above, are made of."""
    found = []
    for group in groups:
        if isinstance(group, dict):
            named = group.get("from", TEST)
            found.append(posixpath.normpath(group["list"]) if "list" in group else SUBSETS.get(named, named))
    return found


def _differences(files: str, lists: Iterable[str] | None) -> str:
    """Of the files that ever changed those that differ from what was first checked: a revert leaves nothing.

    Of test cases only those of some ``lists``; None for all.
    """
    different = {name: now for name, (first, now) in json.loads(files).items() if now != first}
    read = {
        name: now
        for name, now in different.items()
        if lists is None or not name.startswith(TESTED) or any(is_of_list(name, of) for of in lists)
    }
    return json_text(read)


def fingerprint_on_disk(archive: str, product: str, *which: str | int) -> str:
    """The same from the files that planning wrote."""
    texts = {p: Path(layout.effective(archive, p)).read_text(encoding="utf-8") for p in DEPENDS_ON[product]}
    return fingerprint(texts, product, *which)


def takes_training_cases(group: dict) -> bool:
    """Whether a test group is taken out of the cases that are split."""
    return bool({"count", "fraction"} & group.keys()) or group.get("from") in ("training", "validation")
