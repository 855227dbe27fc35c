"""What a fine-tuned archive's training starts from: the files of ``resources/parent/``. No torch.

They are a source: given once, hashed, in the manifest, made again by nobody. Their SHA-256 are part of the effective
configuration, so that other weights are another training.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from . import layout
from .errors import UserError
from .files import read_json
from .hashing import HashIndex

TRANSFER, CONTINUE = "transfer", "continue"
MODES = {
    TRANSFER: "the layers that fit are taken, the others are new",
    CONTINUE: "weights, optimizer and history are taken, and the epochs after that are trained",
}
EVERY_SPLIT = "*"
"""Stands for the splits where all start from one file."""


@dataclass(frozen=True)
class Parent:
    """What ``parent.json`` says.

    Attributes
    ----------
    mode:
        A key of ``MODES``.
    file:
        The file that was asked for, relative to its archive; of one without an archive its name.
    name, identifier:
        The archive that it is of: its folder's name, if it is of one, and its identity; else the file's SHA-256.
    starts:
        File of ``resources/parent/`` by split; one for all under ``EVERY_SPLIT``.
    files:
        SHA-256 of those files as they were given.
    validated:
        To continue: by split, SHA-256 over how and on what it was validated.
    """

    mode: str
    file: str
    name: str | None
    identifier: str
    starts: dict[str, str]
    files: dict[str, str]
    validated: dict[str, str] = field(default_factory=dict)

    def start_of(self, split: str | int) -> str | None:
        """The file that a split starts from; None if there is none for it."""
        return self.starts.get(str(split), self.starts.get(EVERY_SPLIT))

    def __str__(self) -> str:
        whose = f"{self.file} of {self.name}" if self.name else self.file
        return f"{whose} ({self.identifier}; {self.mode}: {MODES[self.mode]})"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_parent(archive: str) -> Parent | None:
    """What an archive's training starts from; None where it starts from nothing.

    Raises
    ------
    UserError
        If ``resources/parent/`` has something else than was put there for it.
    """
    folder, path = layout.parent_dir(archive), layout.parent_json(archive)
    if not os.path.isfile(path):
        if os.path.isdir(folder) and os.listdir(folder):
            raise UserError(
                f"{folder}: found {', '.join(sorted(os.listdir(folder))[:3])} and no {os.path.basename(path)}, which says what they are; "
                f"start the fine-tuning anew ({layout.command(archive, 'finetune.sh')}), or delete this folder"
            )
        return None
    said = read_json(path)
    try:
        parent = Parent(**said)
    except TypeError:
        raise _not_ours(path) from None
    texts = (parent.mode, parent.file, parent.identifier, *_items(parent.starts, path), *_items(parent.files, path))
    if not all(isinstance(t, str) for t in (*texts, *_items(parent.validated, path))) or parent.mode not in MODES:
        raise _not_ours(path)
    if (
        not isinstance(parent.name, str | None)
        or not parent.starts
        or set(parent.starts.values()) != parent.files.keys()
    ):
        raise _not_ours(path)
    for name in parent.files:
        if os.path.basename(name) != name or not os.path.isfile(layout.parent_file(archive, name)):
            raise UserError(
                f"{layout.parent_file(archive, name)}: file not found, and {path} says that training starts from it; put back a "
                f"copy, or start the fine-tuning anew ({layout.command(archive, 'finetune.sh')})"
            )
    return parent


def _items(value: Any, path: str) -> list[Any]:
    if not isinstance(value, dict):
        raise _not_ours(path)
    return [*value.keys(), *value.values()]


def _not_ours(path: str) -> UserError:
    return UserError(f"{path}: not as fine-tuning writes it; put back a copy, or delete its folder and fine-tune anew")


def start_in_configuration(archive: str, index: HashIndex) -> dict[str, Any] | None:
    """What of the parent decides a training: its mode, and the SHA-256 of the files as they lie there, by split."""
    parent = read_parent(archive)
    if parent is None:
        return None
    paths = {split: layout.parent_file(archive, name) for split, name in parent.starts.items()}
    hashes = index.many(set(paths.values()))
    return {"mode": parent.mode, "weights": {split: hashes[path] for split, path in sorted(paths.items())}}


def parent_inputs(archive: str, split: str | int) -> list[str]:
    """The files of ``resources/parent/`` that a split's training reads."""
    parent = read_parent(archive)
    if parent is None:
        return []
    start = parent.start_of(split)
    names = [layout.parent_file(archive, start)] if start else []
    cases = layout.parent_cases(archive)
    return [layout.parent_json(archive), *names, *([cases] if os.path.isfile(cases) else [])]


def refuse_seen(archive: str, split: str, scored: dict[str, str]) -> None:
    """Refuse to score a model on cases that its parent was trained on.

    Parameters
    ----------
    scored:
        SHA-256 of the images by the names of the cases that the split is validated and tested on.

    Raises
    ------
    UserError
        If there is one.
    """
    path = layout.parent_cases(archive)
    if read_parent(archive) is None or not os.path.isfile(path):
        return
    said = read_json(path)
    if not isinstance(said, dict) or not all(isinstance(v, list) for v in said.values()):
        raise _not_ours(path)
    seen = set(said.get(split, said.get(EVERY_SPLIT, [])))
    if both := sorted(case for case, digest in scored.items() if digest in seen):
        raise UserError(
            f"split {split}: the weights that it starts from were trained on {len(both)} of the {len(scored)} cases that it is "
            f"validated and tested on ({', '.join(both[:3])}{', …' if len(both) > 3 else ''}); its scores would mean nothing; "
            "keep the parent's splits and test groups, or take other cases for them"
        )
