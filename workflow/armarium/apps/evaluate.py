"""``python -m armarium.apps.evaluate``: reports or predictions of the published model, as the configuration asks."""

from __future__ import annotations

from pathlib import Path

from .. import layout
from ..config import typed
from ..contents import contents_of
from ..dataset import SEGMENTATION
from ..errors import UserError
from ..files import read_json
from . import Call, call_of, main, parser, run

CONFIGS = ("config_validation.json", "config_validation_ckpt.json", "config_inference.json")
PROCESSES = 2
"""With multi_gpu, where nothing says how many: as in an MMAR's own commands."""


def targets(archive: str, by: str, scores: bool, predictions: bool) -> list[str]:
    """Files of ``eval/`` (``by`` nothing: the TorchScript) or ``eval/ckpt/``: reports, and predictions by case.

    Raises
    ------
    UserError
        If the archive is configured to keep no predictions.
    """
    held, found = contents_of(archive), []
    if scores:
        found.append(layout.eval_metrics_csv(archive, by))
        found += layout.eval_dice_tables(archive, by) if held.task == SEGMENTATION else []
    if predictions and not held.predictions:
        raise UserError(f"{layout.archive_json(archive)}: predictions is false; set it to true to have predictions")
    if predictions:
        segments = held.task == SEGMENTATION
        found += _segmentations(archive, held.publish, by) if segments else [layout.eval_table(archive, held.task, by)]
    return found


def _segmentations(archive: str, publish: int, by: str) -> list[str]:
    """Each case that the published model may be scored on, once the splits are drawn."""
    from ..steps import published_cases

    whole = layout.eval_zip(archive, by)
    if not Path(layout.splits_json(archive)).is_file():
        return [whole]
    return [whole, *(layout.eval_segmentation(archive, c, by) for c in published_cases(archive, publish))]


def model_of(call: Call) -> str:
    """Whose results: "" of the TorchScript, ``layout.CKPT`` of the checkpoint, as the configuration or ``--set`` says.

    Raises
    ------
    UserError
        If both are to be loaded, or none.
    """
    conf = read_json(layout.mmar_config(call.archive, call.config_name))
    names = ("dont_load_ts_model", "dont_load_ckpt_model")
    script, checkpoint = (
        not call.variables.flag(n, typed(n, conf.get(n, True), True, call.config_name)) for n in names
    )
    if script == checkpoint:
        raise UserError(
            f"{', '.join(f'{n}={value}' for n, value in zip(names, (not script, not checkpoint), strict=True))}: wanted one of the two to be "
            "False: the TorchScript (eval/) or the checkpoint (eval/ckpt/)"
        )
    return layout.CKPT if checkpoint else ""


def program() -> None:
    call = call_of(parser("evaluate").parse_args())
    if call.config_name not in CONFIGS:
        raise UserError(f"-c {call.arguments.config_file}: wanted {', '.join(CONFIGS[:-1])} or {CONFIGS[-1]}")
    variables, infers = call.variables, call.config_name == "config_inference.json"
    by = model_of(call)
    scores = variables.flag("do_validation", not infers)
    predictions = variables.flag("output_infer_result", infers)
    if not scores and not predictions:
        raise UserError("do_validation and output_infer_result are False, so there is nothing to do; set one to True")
    copies = variables.folder("MMAR_EVAL_OUTPUT_PATH")
    variables.own("DATASET_JSON", "MMAR_CKPT", "MMAR_TORCHSCRIPT", "MMAR_CKPT_DIR")
    if variables.flag("multi_gpu", False):
        call.config["evaluation_processes"] = variables.text("processes") or str(
            variables.present.get("processes", PROCESSES)
        )
    variables.refuse_new("evaluation")
    wanted = targets(call.archive, by, scores, predictions)
    call.copy_to(copies, wanted)
    run(call, wanted)


if __name__ == "__main__":
    main(program)
