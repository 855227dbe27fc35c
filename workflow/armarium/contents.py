"""What an archive's effective configuration says that it holds: splits, checkpoints, test groups. No torch.

Asked by programs that run before planning, so of an archive that nobody has looked at yet: names become parts
of paths, and are taken only if they are names.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import layout
from .boundary import check_boundary
from .configure import read_effective
from .dataset import TASKS
from .errors import UserError
from .naming import CHECKPOINT, GROUP
from .split_files import own_groups, split_numbers


@dataclass(frozen=True)
class Contents:
    """What a complete archive has.

    Attributes
    ----------
    task:
        segmentation, classification or regression.
    splits, publish:
        The splits' numbers, and that of the published one.
    checkpoints, groups:
        Selected checkpoints, best first, and test groups.
    predictions:
        Whether predictions are kept.
    own_groups:
        Of test groups that a single split is tested on, that split.
    """

    task: str
    splits: list[int]
    publish: int
    checkpoints: list[str]
    groups: list[str]
    predictions: bool
    own_groups: dict[str, int]


def contents_of(archive: str) -> Contents:
    """Read an archive's contents.

    Raises
    ------
    UserError
        If the archive was never planned, or its effective configuration is not as planning writes it.
    """
    check_boundary(archive)
    parts = ("train", "split", "select", "test", "predict", "publish")
    train, split, select, test, predict, publish = (read_effective(archive, part) for part in parts)
    try:
        found = Contents(
            str(train["task"]),
            split_numbers(split),
            publish["publish"],
            list(select["checkpoints"]),
            list(test["groups"]),
            bool(predict["predictions"]),
            own_groups(test["groups"]),
        )
        named = all(map(CHECKPOINT.fullmatch, found.checkpoints)) and all(map(GROUP.fullmatch, found.groups))
        numbered = set(found.own_groups.values()) <= set(found.splits)
        if named and numbered and found.task in TASKS and found.checkpoints and found.publish in found.splits:
            return found
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError):
        pass
    raise UserError(
        f"{layout.effective(archive, 'select')} and those beside it: not as planning writes them; "
        f"ask Snakemake for any file of the archive, which writes them anew"
    )
