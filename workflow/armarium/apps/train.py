"""``python -m armarium.apps.train``: all splits, their selected checkpoints, and the published model."""

from __future__ import annotations

from .. import layout
from ..contents import contents_of
from . import main, make, parser


def targets(archive: str, train_stats: bool) -> list[str]:
    """What a training leaves."""
    held = contents_of(archive)
    found = [layout.checkpoint_pt(layout.checkpoint_dir(archive, k, c)) for k in held.splits for c in held.checkpoints]
    found += [
        layout.published_model(archive),
        layout.published_final(archive),
        layout.published_ts(archive),
        layout.published_events(archive),
    ]
    return found + ([layout.train_stats(archive)] if train_stats else [])


def program() -> None:
    arguments = parser("train")
    arguments.add_argument("--write_train_stats", action="store_true", help="also write models/train_stats.json")
    given = arguments.parse_args()
    make(given, targets(given.mmar_root, given.write_train_stats))


if __name__ == "__main__":
    main(program)
