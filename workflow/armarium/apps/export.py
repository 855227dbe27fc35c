"""``python -m armarium.apps.export``: the published model as TorchScript, compared with it on an input of a given shape."""

from __future__ import annotations

import json
from pathlib import Path

from .. import layout
from ..bundle_metadata import input_shape
from ..errors import UserError
from . import call_of, main, parser, run


def copy_of(archive: str, model: str, output: str) -> Path | None:
    """Where else than at its own place the TorchScript is wanted.

    Raises
    ------
    UserError
        For another model than the published one, or another place in the archive: each of its files is made by a rule.
    """
    wanted = layout.published_model(archive)
    if Path(model).resolve() != Path(wanted).resolve():
        raise UserError(f"--model_path: found {model}, wanted {wanted}; others have their model.ts beside them")
    own, found = Path(layout.published_ts(archive)).resolve(), Path(output).resolve()
    if found != own and found.is_relative_to(Path(archive).resolve()):
        raise UserError(f"--output_path: found {output}, wanted {own}, or a file outside the archive, for a copy")
    return None if found == own else found


def shape_in(text: str, archive: str) -> list[int]:
    """A network's input ``[batch, channels, *grid]`` from ``--input_shape``.

    Raises
    ------
    UserError
        If it is no such list, or of other channels or axes than the archive's network.
    """
    like = input_shape(archive)
    try:
        shape = json.loads(text)
    except ValueError:
        shape = None
    whole = isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
    if not whole or len(shape) != len(like) or shape[1] != like[1]:
        raise UserError(f"--input_shape: found {text}, wanted whole numbers [batch, channels, *grid], such as {like}")
    return shape


def program() -> None:
    arguments = parser("export")
    arguments.add_argument("--model_path", required=True)
    arguments.add_argument("--output_path", required=True)
    arguments.add_argument("--input_shape", help="of an input that the TorchScript is compared with its checkpoint on")
    call = call_of(arguments.parse_args())
    given, archive = call.arguments, call.archive
    targets = [layout.published_ts(archive)]
    if elsewhere := copy_of(archive, given.model_path, given.output_path):
        call.copies.append((targets[0], elsewhere))
    if given.input_shape:
        targets.append(layout.export_parity(archive, "x".join(map(str, shape_in(given.input_shape, archive)))))
    call.variables.own(*("DATASET_JSON", "MMAR_CKPT", "MMAR_TORCHSCRIPT", "MMAR_CKPT_DIR", "MMAR_EVAL_OUTPUT_PATH"))
    call.variables.flag("multi_gpu", False)
    call.variables.refuse_new("export")
    run(call, targets)


if __name__ == "__main__":
    main(program)
