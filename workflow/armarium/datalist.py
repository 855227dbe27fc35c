"""DATASET_JSON of a command: a datalist that divides an archive's cases, in place of what its configuration says. No torch.

As Clara Train's data split files (``dataset_0.json``, ``plco.json``): lists ``training``, ``validation`` and, perhaps,
``test`` of entries with an image. The archive keeps a copy, as of any given splits.
"""

from __future__ import annotations

from . import layout
from .files import read_json

DATALIST = "DATASET_JSON"


def divided_by(archive: str, spec: dict, files: dict, given: str | None) -> tuple[dict, dict]:
    """An archive's spec and configuration files, where a datalist divides its cases.

    Parameters
    ----------
    given:
        The list's path; None for the copy that the archive has.

    Raises
    ------
    UserError
        If there is no such file, or it is no JSON.
    """
    listed = read_json(layout.given_splits(archive) if given is None else given)
    return {**spec, "splits": {**spec["splits"], "method": "file", "file": "splits.json"}}, {
        **files,
        "splits.json": listed,
    }
