"""What the published model is exported to on request, beside TorchScript: ONNX and torch.export. No torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec

from .errors import UserError

PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "pt2": ()}
"""What each format needs beside torch; the extra ``onnx`` of this package brings it."""
REPORT = "report.json"
"""The member of an export's zip that says how it was made, or why it cannot be."""


def model_member(format: str) -> str:
    """The member of an export's zip that is the model."""
    return f"model.{format}"


def require_packages(formats: Iterable[str], where: str) -> None:
    """Refuse, before anything is computed, a format whose packages this Python lacks.

    Raises
    ------
    UserError
        If one is missing; ``where`` says who asks for the format.
    """
    for name in formats:
        if missing := [package for package in PACKAGES[name] if find_spec(package) is None]:
            raise UserError(
                f"{where}: the format {name} needs {', '.join(missing)}, which {sys.executable} does not have; "
                f"run: {sys.executable} -m pip install {' '.join(missing)}; or do not ask for {name}"
            )
