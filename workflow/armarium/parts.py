"""Zips that hold something of several checkpoints: what the last version has stays, only what is new is made. No torch.

Each part is known by the weights that it was made of, so also one checkpoint's part serves another of the same epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from . import layout
from .errors import UserError
from .files import memory_bytes
from .provenance import recorded_of
from .run import epoch_of, run_info, weights_of
from .zips import damaged, member_bytes, opened

LOG = logging.getLogger(__name__)
SCRIPT, PARITY = ".ts", ".parity.json"
"""What a checkpoint's members in exports.zip end in."""
SCRIPTED = "script"
"""The ``method`` that the second of them states where the network was not traced."""
Part = dict[str, bytes | str]
"""A checkpoint's members, by what follows its name in theirs."""


class Parts:
    """What a zip is to hold.

    Parameters
    ----------
    decided:
        What the zip says of all that decided it but the weights.
    run, source:
        What run.zip says of itself, and its path.
    checkpoints:
        Those that the zip has a part of, in whatever order.

    Attributes
    ----------
    says:
        What the zip says of itself.
    """

    def __init__(self, decided: dict[str, str], run: dict, source: str, checkpoints: Sequence[str]):
        self.decided, self.weights = decided, weights_of(run, sorted(checkpoints))
        for checkpoint in checkpoints:
            if epoch_of(run, checkpoint) and checkpoint not in self.weights:
                raise damaged(source, f"it does not hold {checkpoint}")
        self.says: dict[str, Any] = {**decided, "weights": self.weights}
        self._made: dict[str, Part] = {}

    @property
    def missing(self) -> list[str]:
        """Checkpoints whose part is to be made; of those of the same weights one."""
        first = {digest: c for c, digest in reversed(self.weights.items()) if digest not in self._made}
        return [c for c in self.weights if c in first.values()]

    def add(self, made: dict[str, Part]) -> None:
        """Take in parts, by checkpoint."""
        self._made |= {self.weights[c]: part for c, part in made.items()}

    def members(self) -> Part:
        """The zip's members."""
        return {f"{c}{end}": data for c, digest in self.weights.items() for end, data in self._made[digest].items()}

    def take_from_last(self, archive: str, name: str, output: str, ends: Iterable[str]) -> list[dict]:
        """Take what is current from the last version of ``output``, which the step ``name`` made.

        A last version of just these parts is one that was asked for anew: nothing of it is taken.

        Returns
        -------
        list of dict
            What is recorded of that version, if anything was taken.
        """
        last = layout.held_version(archive, output)
        says = run_info(last) or {}
        held = says.get("weights")
        if not isinstance(held, dict) or any(says.get(key) != value for key, value in self.decided.items()):
            return []
        if held == self.weights or not same_where_both(held, self.weights):
            return []
        try:
            with opened(last) as members:
                for checkpoint, digest in held.items():
                    if digest in self.weights.values():
                        read = {e: member_bytes(members, f"{checkpoint}{e}", last, memory_bytes() // 2) for e in ends}
                        self._made[digest] = read
        except UserError as error:
            LOG.warning(f"{error}; all of it is made anew")
            self._made.clear()
        return recorded_of(archive, name, output, last) if self._made else []

    def told(self, what: str) -> dict[str, list[str]]:
        """Which checkpoints are kept and which are to be computed; said too where any is kept."""
        kept = [c for c, digest in self.weights.items() if digest in self._made]
        if not kept:
            return {}
        computed = [c for c in self.weights if c not in kept]
        LOG.info(f"{what}: {len(kept)} checkpoints kept, {len(computed)} computed")
        return {"kept": kept, "computed": computed}


def same_where_both(a: dict[str, str], b: dict[str, str]) -> bool:
    """Whether no name stands for two things."""
    return all(a[name] == b[name] for name in a.keys() & b.keys())
