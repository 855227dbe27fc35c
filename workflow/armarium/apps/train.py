"""``python -m armarium.apps.train``: all splits, their selected checkpoints, and the published model."""

from __future__ import annotations

from pathlib import Path

from .. import layout
from ..contents import contents_of
from ..errors import UserError
from . import Call, call_of, main, parser, run

FINETUNE = "config_finetune.json"


def targets(archive: str, train_stats: bool) -> list[str]:
    """What a training leaves; of an archive that was complete, all that follows from it."""
    if Path(layout.manifest(archive)).is_file():
        return [layout.manifest(archive)]
    held = contents_of(archive)
    folders = [layout.checkpoint_dir(archive, k, c) for k in held.splits for c in held.checkpoints]
    return [*map(layout.checkpoint_pt, folders), *published(archive, train_stats)]


def published(archive: str, train_stats: bool) -> list[str]:
    """The files in models/."""
    files = (layout.published_model, layout.published_final, layout.published_ts, layout.published_events)
    return [path(archive) for path in files] + ([layout.train_stats(archive)] if train_stats else [])


def start(call: Call) -> None:
    """See to what training starts from: random weights, or those that fine-tuning is given.

    Raises
    ------
    UserError
        If the configuration named is of the one and the variables of the other.
    """
    finetunes = call.config_name == FINETUNE
    if call.config_name not in ("config_train.json", FINETUNE):
        raise UserError(f"-c {call.arguments.config_file}: wanted config_train.json or {FINETUNE}")
    if call.variables.flag("dont_load_ckpt_model", not finetunes) == finetunes:
        raise UserError(
            "--set dont_load_ckpt_model=True: fine-tuning starts from weights; to start from none: commands/train.sh"
            if finetunes
            else "--set dont_load_ckpt_model=False: to start from weights, in a clone: commands/finetune.sh MMAR_CKPT=…"
        )
    if finetunes:
        from ..finetune import prepare

        prepare(call.archive, call.variables.text("MMAR_CKPT"))


def program() -> None:
    arguments = parser("train")
    arguments.add_argument("--write_train_stats", action="store_true", help="also write models/train_stats.json")
    given = arguments.parse_args()
    call = call_of(given)
    call.copy_to(call.variables.folder("MMAR_CKPT_DIR"), published(call.archive, given.write_train_stats))
    start(call)
    call.variables.own("MMAR_CKPT", "MMAR_TORCHSCRIPT", "MMAR_EVAL_OUTPUT_PATH")
    call.datalist = call.variables.datalist()
    run(call, targets(call.archive, given.write_train_stats))


if __name__ == "__main__":
    main(program)
