"""How far costly products are what the configuration asks for: by content, before planning. No torch.

A product that holds something of several checkpoints says of which weights each part is, so that what it has stays
while something is added.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import lru_cache, partial

from . import layout
from .configure import Configured, epochs_listed
from .errors import UserError
from .files import read_json
from .parts import same_where_both
from .run import finished_run, lacking, run_info, weights_of
from .split_files import cases_unseen, read_splits


@dataclass(frozen=True)
class Standing:
    """How a product stands to the configuration.

    Attributes
    ----------
    path:
        The product.
    exists:
        Whether there is a whole one.
    current:
        Whether nothing about it would change.
    kept:
        The checkpoints whose part would not change; of a run, those that it holds.
    lost_run:
        Where it is current but for the run that it is made from, which is gone: that run's path.
    """

    path: str
    exists: bool = True
    current: bool = False
    kept: frozenset[str] = frozenset()
    lost_run: str | None = None


def standing(held: Configured, product: str, *which: str) -> Standing:
    """How a product stands; ``product`` and ``which`` as for :func:`~armarium.fingerprints.fingerprint`."""
    path = _PATHS[product](held.archive, *which)
    says = _said_by(path)
    if says is None:
        return Standing(path, exists=False)
    if says.get("fingerprint") != held.fingerprint(product, *which):
        return Standing(path)
    if product == "splits":
        return Standing(path, current=True)
    if product == "training":
        return _standing_of_run(held, path)
    return _standing_of_parts(held, product, which, path, says)


def _standing_of_run(held: Configured, path: str) -> Standing:
    try:
        info = finished_run(path, "checkpoints")
    except UserError:
        return Standing(path)
    kept = weights_of(info, held.exported)
    return Standing(path, current=not lacking(info, epochs_listed(held.checkpoints)), kept=frozenset(kept))


def _standing_of_parts(held: Configured, product: str, which: tuple[str, ...], path: str, says: dict) -> Standing:
    names, wanted = [], {}
    for split, of_run in _runs_of(held, product, which).items():
        run = layout.run_zip(held.archive, split)
        info = run_info(run)
        if info is None:
            return Standing(path, lost_run=run)
        if info.get("fingerprint") != held.fingerprint("training", split):
            return Standing(path)
        try:
            found = weights_of(finished_run(run, "checkpoints"), of_run.values())
        except UserError:
            return Standing(path)
        names += of_run
        wanted |= {name: found[checkpoint] for name, checkpoint in of_run.items() if checkpoint in found}
    cases = _cases_now(held, product, which)
    if cases is not None and says.get("cases") != cases:
        return Standing(path)
    parts = says.get("weights") if isinstance(says.get("weights"), dict) else {}
    if not same_where_both(parts, wanted):
        return Standing(path)
    kept = frozenset(parts.keys() & wanted.keys())
    return Standing(path, current=kept == set(names) == parts.keys(), kept=kept)


def _runs_of(held: Configured, product: str, which: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """By split whose run a product is made from: the checkpoints that it has a part of, by the part's name."""
    best = held.published_checkpoint
    if product in ("ensemble", "ensemble evaluation"):
        return {str(k): {member_of_ensemble(k): best} for k in held.split_numbers}
    if product in ("format", "published evaluation", "checkpoint evaluation"):
        return {str(held.spec["publish"]): {best: best}}
    checkpoints = held.checkpoints if product == "evaluation" else held.exported
    return {which[-1]: {c: c for c in checkpoints}}


def member_of_ensemble(split: str | int) -> str:
    """What a split's model is called in what an ensemble says of itself."""
    return f"split-{split}"


_PATHS = {
    "splits": layout.splits_json,
    "training": layout.run_zip,
    "evaluation": layout.evaluation_zip,
    "export": layout.exports_zip,
    "published evaluation": layout.eval_zip,
    "format": layout.further_export_zip,
    "ensemble": lambda archive: layout.further_export_zip(archive, layout.ENSEMBLE),
    "ensemble evaluation": lambda archive: layout.eval_zip(archive, layout.OF_ENSEMBLE),
    "checkpoint evaluation": partial(layout.eval_zip, by=layout.CKPT),
}


def _said_by(path: str) -> dict | None:
    """What a product says of how it came about; None where there is no whole product."""
    if path.endswith(".zip"):
        return run_info(path)
    try:
        says = read_json(path)
    except (OSError, UserError):
        return None
    return says if isinstance(says, dict) and "fingerprint" in says else None


# ---- the cases that were tested


def cases_sha256(cases: list[dict], named: bool) -> str:
    """SHA-256 over cases as evaluation takes them: whose, their files and contents and, if ``named``, their names.

    A fingerprint tells only how cases are chosen, and what changed since they were last checked.
    """
    told = [{k: v for k, v in case.items() if named or k != "case"} for case in cases]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _cases_now(held: Configured, product: str, which: tuple[str, ...]) -> str | None:
    """The same of the cases that were last chosen; None where that is not known, or where no case is tested."""
    if product in ("export", "format", "ensemble"):
        return None
    paths = layout.splits_json(held.archive), layout.cases_tsv(held.archive)
    if not all(map(os.path.isfile, paths)):
        return None
    tested = _tested_cases(held.archive, held.spec["publish"], *(os.stat(path).st_mtime_ns for path in paths))
    name = {"evaluation": which[:1], "published evaluation": ("",), "checkpoint evaluation": ("",)}.get(
        product, (UNSEEN,)
    )[0]
    return None if tested is None else tested.get(name, "no such group")


UNSEEN = "unseen by all splits"
"""The name of an ensemble's cases among those of test groups; no group's name has a blank."""


@lru_cache(maxsize=32)
def _tested_cases(archive: str, publish: int, *_times: int) -> dict[str, str] | None:
    """By test group; of the published model under no name, of the ensemble under ``UNSEEN``."""
    from .steps import cases_of, published_cases

    try:
        splits = read_splits(layout.splits_json(archive))
        found = {
            group: cases_sha256(cases_of(archive, names), named=False) for group, names in splits["groups"].items()
        }
        for name, cases in (("", published_cases(archive, publish)), (UNSEEN, cases_unseen(splits))):
            found[name] = cases_sha256(cases_of(archive, cases), named=True)
        return found
    except UserError:  # damaged: they are made again, and tell nothing until then
        return None
