"""The software that a step used beside that which ``env/`` describes: what was made again in another environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from . import layout

DISTRIBUTIONS = {"ignite": "pytorch-ignite"}
"""Packages whose distribution has another name."""


def normal_name(name: str) -> str:
    """A project's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def described_software(archive: str, environment: str | None) -> dict[str, str | None] | None:
    """Versions by name that ``env/`` has of Python and every package; None where it has no description.

    Parameters
    ----------
    environment:
        That of envs/ which rules ran in, which has a folder of its own if it is not the training's; None: no such one.

    Returns
    -------
    dict of str to str, or None
        The version is None of a package that came from an address.
    """
    folder = f"{environment}/" if environment in layout.OTHER_ENVIRONMENTS else ""
    own = Path(layout.environment_file(archive, f"{folder}{layout.ENVIRONMENT[0]}"))
    path = own if own.is_file() else Path(layout.environment_txt(archive))
    if not path.is_file():
        return None
    text = path.read_text(errors="replace")
    found: dict[str, str | None] = {}
    for name, version in re.findall(r"^([A-Za-z0-9][\w.-]*)(?:==(\S+)| @ .*)$", text, re.M):
        found[normal_name(name)] = version or None
    python = re.search(r"^# python_version: (\S+)$", text, re.M)
    return found | {"python": python and python[1]}


def other_software(step: dict[str, Any], described: dict[str, str | None]) -> list[str]:
    """What a step used in another version than is described, each as ``numpy 2.1.0 for 2.0.2``."""
    used = {"python": step["python"], **step["packages"]}
    found = []
    for name, version in used.items():
        wanted = described.get(normal_name(DISTRIBUTIONS.get(name, name)), "none")
        if wanted is not None and wanted != version:
            found.append(f"{name} {version} for {wanted}")
    return found
