"""``python -m armarium.apps.evaluate``: what the configuration asks for: reports, or predictions."""

from __future__ import annotations

from pathlib import Path

from .. import layout
from ..contents import contents_of
from ..dataset import SEGMENTATION
from ..errors import UserError
from . import main, make, parser


def targets(archive: str, config: str) -> list[str]:
    """Files that answer a configuration.

    Validation: the published TorchScript's reports in eval/. Validation of the checkpoint: the published
    split's tables beside its checkpoints. Inference: the evaluation that holds every prediction; where those are
    numbers, their table.
    """
    held = contents_of(archive)
    segmentation = held.task == SEGMENTATION
    if config == "config_validation.json":
        return [layout.eval_metrics_csv(archive), *(layout.eval_dice_tables(archive) if segmentation else [])]
    if config == "config_validation_ckpt.json":
        folders = [layout.checkpoint_dir(archive, held.publish, c) for c in held.checkpoints]
        return [table for folder in folders for table in layout.checkpoint_tables(folder)]
    if config == "config_inference.json":
        if not held.predictions:
            raise UserError(f"{layout.archive_json(archive)}: predictions is false; set it to true to have predictions")
        return _segmentations(archive, held.publish) if segmentation else [layout.eval_table(archive, held.task)]
    raise UserError(f"-c {config}: wanted config_validation.json, config_validation_ckpt.json or config_inference.json")


def _segmentations(archive: str, publish: int) -> list[str]:
    """Each case that the published model may be scored on, once the splits are drawn."""
    from ..steps import published_cases

    if not Path(layout.splits_json(archive)).is_file():
        return [layout.eval_zip(archive)]
    return [
        layout.eval_zip(archive),
        *(layout.eval_segmentation(archive, c) for c in published_cases(archive, publish)),
    ]


def program() -> None:
    given = parser("evaluate").parse_args()
    make(given, targets(given.mmar_root, Path(given.config_file).name))


if __name__ == "__main__":
    main(program)
