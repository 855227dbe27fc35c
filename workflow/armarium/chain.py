"""The chain of products: what made each file from what, and whether that still holds.

Asked are the steps' records, what costly products say of themselves, and the zip files that others are taken
from. No torch.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from . import layout
from .adoption import is_fingerprinted
from .configure import epochs_listed, published_checkpoint
from .errors import UserError
from .files import read_json
from .findings import Finding
from .fingerprints import DEPENDS_ON, fingerprint_on_disk
from .parts import same_where_both
from .provenance import DATA, OUTSIDE, extended_by
from .run import epoch_of, lacking, member_of_checkpoint, run_info, weights_of
from .scan import Scan
from .split_files import own_groups, tested_on
from .standing import member_of_ensemble
from .zips import opened

NOT_UNDERSTOOD = (UserError, KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What reading a file of an unexpected form raises."""


@dataclass
class Evidence:
    """An archive as it lies.

    Attributes
    ----------
    archive:
        Its folder.
    found:
        What lies there.
    steps:
        The records of steps that can be trusted.
    expected:
        SHA-256 by path: of the bytes found or, where those are spoilt, of those that belong there.
    spoilt:
        Files whose bytes are not what they should be; nothing is concluded from them.
    """

    archive: str
    found: Scan
    steps: list[dict[str, Any]]
    expected: dict[str, str]
    spoilt: set[str]

    def inside(self, path: str) -> str:
        return os.path.relpath(path, self.archive)

    def sound(self, path: str) -> bool:
        """Whether a file, by its full path, is there with the bytes that belong there."""
        name = self.inside(path)
        return name in self.found.files and name not in self.spoilt

    def json(self, path: str) -> Any:
        """A JSON file of the archive, by its full path.

        Raises
        ------
        UserError
            If it is not there with the bytes that belong there, or cannot be understood.
        """
        if not self.sound(path):
            raise UserError(f"{path}: missing or damaged")
        return read_json(path)

    def held_by(self, path: str) -> dict:
        """What a product says of itself; nothing where that cannot be understood."""
        try:
            held = run_info(path) if self.sound(path) and path.endswith(".zip") else self.json(path)
        except (*NOT_UNDERSTOOD, OSError):
            return {}
        return held if isinstance(held, dict) else {}

    def current(self, step: dict) -> list[str]:
        """The files that a step made and that are still there as it made them."""
        return [path for path, facts in step["outputs"].items() if self.expected.get(path) == facts["sha256"]]

    def splits(self) -> list[int]:
        """The splits that lie in the archive."""
        pattern = re.compile(re.escape(layout.split_dir("", "")[1:]) + r"(0|[1-9][0-9]*)/")
        return sorted({int(match[1]) for match in map(pattern.match, self.found.files) if match})


# ---- what each step read


def older_inputs(evidence: Evidence) -> Iterator[Finding]:
    """Products made from another version of an input than the one that is there."""
    extended = extended_by(evidence.steps, evidence.expected)
    for step in evidence.steps:
        made, read = evidence.current(step), step["inputs"].items()
        others = [
            path
            for path, facts in read
            if not path.startswith((DATA, OUTSIDE))
            and evidence.expected.get(path) != facts["sha256"]
            and facts["sha256"] not in extended.get(path, ())
        ]
        if others:
            note = f"from {', '.join(others[:3])}{' and others' if len(others) > 3 else ''}"
            for path in made:
                yield Finding("earlier copy" if is_fingerprinted("", path) else "older input", path, note)


# ---- what products say of themselves


def other_origins(evidence: Evidence) -> Iterator[Finding]:
    """Products of another configuration, and those of another training than the one that is there."""
    archive = evidence.archive
    parts = [layout.effective(archive, part) for part in ("test", "select", "train", "publish")]
    if not all(map(evidence.sound, parts)):
        return
    try:
        groups, own, chosen, best, publish = _selected(*map(evidence.json, parts))
    except NOT_UNDERSTOOD as error:
        yield Finding("configuration", evidence.inside(parts[0]), f"{type(error).__name__}: {error}")
        return
    exported = list(dict.fromkeys([*chosen, best]))
    yield from _origin(evidence, layout.splits_json(archive), "splits")
    for k in evidence.splits():
        run = layout.run_zip(archive, k)
        yield from _origin(evidence, run, "training", k)
        yield from _without_epochs(evidence, run, chosen)
        yield from _origin(evidence, layout.exports_zip(archive, k), "export", k, run=run, of=exported)
        yield from _tested(evidence, k, tested_on(k, groups, own), chosen)
    run = layout.run_zip(archive, publish)
    for by, product in (("", "published evaluation"), (layout.CKPT, "checkpoint evaluation")):
        yield from _origin(evidence, layout.eval_zip(archive, by), product, run=run, of=[best])
    for name in layout.FORMATS:
        yield from _origin(evidence, layout.further_export_zip(archive, name), "format", name, run=run, of=[best])
    yield from _of_ensemble(evidence, best)


def _of_ensemble(evidence: Evidence, best: str) -> Iterator[Finding]:
    """The ensemble and its evaluation, each made from the published checkpoint of every split."""
    archive = evidence.archive
    products = {
        layout.further_export_zip(archive, layout.ENSEMBLE): "ensemble",
        layout.eval_zip(archive, layout.OF_ENSEMBLE): "ensemble evaluation",
    }
    for path, product in products.items():
        found = list(_origin(evidence, path, product))
        yield from found
        held = evidence.held_by(path).get("weights") if evidence.sound(path) and not found else None
        for split in evidence.splits() if isinstance(held, dict) else ():
            run = layout.run_zip(archive, split)
            if not evidence.sound(run):
                continue
            one = {"weights": {best: held.get(member_of_ensemble(split))}}
            yield from _other_weights(evidence, evidence.inside(path), one, evidence.held_by(run), [best])


def _selected(
    test: dict, select: dict, train: dict, publish: dict
) -> tuple[list[str], dict[str, int], list[str], str, int]:
    """Test groups, the splits of those of a single one, selected checkpoints, the published checkpoint and split."""
    groups, chosen = test["groups"], list(map(str, select["checkpoints"]))
    return list(groups), own_groups(groups), chosen, published_checkpoint(train), publish["publish"]


def _without_epochs(evidence: Evidence, run: str, chosen: list[str]) -> Iterator[Finding]:
    """Selected epochs that a run reached and does not hold."""
    try:
        missing = lacking(evidence.held_by(run), epochs_listed(chosen))
    except NOT_UNDERSTOOD:
        return  # told as of another configuration, or as damaged
    if missing:
        yield Finding("other configuration", evidence.inside(run), f"which does not select epoch {missing[0]}")


def _tested(evidence: Evidence, split: int, groups: list[str], chosen: list[str]) -> Iterator[Finding]:
    """Tests of a split, also on groups that the configuration no longer has for it."""
    run = layout.run_zip(evidence.archive, split)
    before, after = layout.evaluation_zip("", "*", split)[1:].split("*")
    for name in evidence.found.files:
        group = name.removeprefix(before).removesuffix(after)
        if name != f"{before}{group}{after}":
            continue
        path = layout.evaluation_zip(evidence.archive, group, split)
        if group in groups:
            yield from _origin(evidence, path, "evaluation", group, split, run=run, of=chosen)
        elif evidence.sound(path):
            yield Finding("other configuration", name, f"which has no group {group} for split {split}")


def _origin(
    evidence: Evidence, path: str, product: str, *which: str | int, run: str | None = None, of: Iterable[str] = ()
) -> Iterator[Finding]:
    """``of``: the checkpoints of ``run`` that it should have a part of."""
    parts = [layout.effective(evidence.archive, part) for part in DEPENDS_ON[product]]
    if not evidence.sound(path) or not all(map(evidence.sound, parts)):
        return
    name, held = evidence.inside(path), evidence.held_by(path)
    try:
        wanted = fingerprint_on_disk(evidence.archive, product, *which)
    except NOT_UNDERSTOOD as error:
        yield Finding("configuration", name, f"{type(error).__name__}: {error}")
        return
    if held.get("fingerprint") != wanted:
        yield Finding("other configuration", name, "" if held else "it does not say which")
    elif run and evidence.sound(run):
        yield from _other_weights(evidence, name, held, evidence.held_by(run), list(of))


def _other_weights(evidence: Evidence, name: str, held: dict, run: dict, of: list[str]) -> Iterator[Finding]:
    """Whether a product was made from the weights that a run holds, of the checkpoints that it should have."""
    try:
        weights, wanted = dict(held.get("weights", {})), weights_of(run, of)
    except NOT_UNDERSTOOD:
        return  # the run is told as one that does not say what it is
    if not same_where_both(weights, wanted):
        yield Finding("other run", name, "not from the weights that are there")
    elif weights.keys() != wanted.keys():
        yield Finding("other configuration", name, f"of the checkpoints {', '.join(weights) or 'none'}")


# ---- what was taken out of zip files


def is_copy(path: str) -> bool:
    """Whether a file is one whose CRC-32 is compared with a zip file's."""
    return path.endswith((".pt", ".ts", ".gz", *(f".{name}" for name in layout.FORMATS)))


def other_sources(evidence: Evidence) -> Iterator[Finding]:
    """Weights, TorchScript and predictions that differ from those in the zip file they were taken from."""
    for source, taken in _taken_from(evidence).items():
        if not evidence.sound(source):
            continue
        try:
            with opened(source) as members:
                held = {info.filename: (info.file_size, info.CRC) for info in members.infolist()}
        except (UserError, OSError):
            continue  # a product that does not say what decided it, told as such
        for target, member in taken.items():
            name = evidence.inside(target)
            if evidence.sound(target) and member in held:
                there = evidence.found.files[name]
                if (there.size, there.crc32) != held[member]:
                    yield Finding("other source", name, f"not {member} of {evidence.inside(source)}")


def _taken_from(evidence: Evidence) -> dict[str, dict[str, str]]:
    """Targets and the members that they are, by zip file."""
    archive, taken = evidence.archive, defaultdict(dict)
    try:
        chosen = [str(name) for name in evidence.json(layout.effective(archive, "select"))["checkpoints"]]
        published = published_checkpoint(evidence.json(layout.effective(archive, "train")))
        publish = evidence.json(layout.effective(archive, "publish"))["publish"]
    except NOT_UNDERSTOOD:
        return {}
    for k in evidence.splits():
        run, exports = layout.run_zip(archive, k), layout.exports_zip(archive, k)
        info = evidence.held_by(run)
        for checkpoint in chosen:
            folder = layout.checkpoint_dir(archive, k, checkpoint)
            taken[exports][layout.checkpoint_ts(folder)] = f"{checkpoint}.ts"
            try:
                taken[run][layout.checkpoint_pt(folder)] = member_of_checkpoint(epoch_of(info, checkpoint))
            except NOT_UNDERSTOOD:
                continue
    taken[layout.exports_zip(archive, publish)][layout.published_ts(archive)] = f"{published}.ts"
    for name in layout.FORMATS:
        taken[layout.further_export_zip(archive, name)][layout.published_format(archive, name)] = f"model.{name}"
    taken[layout.further_export_zip(archive, layout.ENSEMBLE)][layout.ensemble_ts(archive)] = "ensemble.ts"
    for name in evidence.found.files:
        case = os.path.basename(os.path.dirname(name))
        for by in ("", layout.CKPT, layout.OF_ENSEMBLE):
            if f"/{name}" == layout.eval_segmentation("", case, by):
                taken[layout.eval_zip(archive, by)][f"{archive}/{name}"] = f"predictions/{case}.nii.gz"
    return taken
