"""``python -m armarium.apps.export``: the published model as TorchScript."""

from __future__ import annotations

from pathlib import Path

from .. import layout
from ..errors import UserError
from . import main, make, parser


def check_paths(archive: str, model: str, output: str) -> None:
    """Refuse other files than the published model and its twin: every export is a named file of the archive.

    Raises
    ------
    UserError
        For another path.
    """
    for option, found, wanted in (
        ("--model_path", model, layout.published_model(archive)),
        ("--output_path", output, layout.published_ts(archive)),
    ):
        if Path(found).resolve() != Path(wanted).resolve():
            raise UserError(f"{option}: found {found}, wanted {wanted}; others lie beside their model.pt")


def program() -> None:
    arguments = parser("export")
    arguments.add_argument("--model_path", required=True)
    arguments.add_argument("--output_path", required=True)
    arguments.add_argument(
        "--input_shape", help="recorded for readers; the comparison with eager uses a prepared image"
    )
    given = arguments.parse_args()
    check_paths(given.mmar_root, given.model_path, given.output_path)
    make(given, [layout.published_ts(given.mmar_root)])


if __name__ == "__main__":
    main(program)
