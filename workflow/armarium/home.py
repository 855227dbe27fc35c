"""Where the workflow lies: the checkout that this package is of, else the copy that an installed package has. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import UserError

PACKAGE = Path(__file__).resolve().parent
SNAKEFILE = "Snakefile"


def _root() -> Path:
    checkout = PACKAGE.parents[1]
    return checkout if (PACKAGE.parent / SNAKEFILE).is_file() else PACKAGE / "packaged"


ROOT = _root()
"""The folder that has ``workflow/``, ``profiles/`` and ``envs/``; setup.py puts them into an installed package."""
WORKFLOW, ENVS = ROOT / "workflow", ROOT / "envs"


def workflow_home() -> Path:
    """The Snakefile: that of $ARMARIUM_HOME, else of this package's own workflow.

    Raises
    ------
    UserError
        If there is none.
    """
    given = os.environ.get("ARMARIUM_HOME")
    home = Path(given) if given else ROOT
    for snakefile in (home / SNAKEFILE, home / "workflow" / SNAKEFILE):
        if snakefile.is_file():
            return snakefile
    raise UserError(
        f"no {SNAKEFILE} in {home}; set ARMARIUM_HOME to a checkout of Armarium, or unset it to use the installed package's own copy"
    )
