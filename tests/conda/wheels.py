"""Wheels of what is installed here, so that a channel has the very versions of the running environment, without a network."""

from __future__ import annotations

import importlib.metadata
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import yaml
from packaging.requirements import Requirement

PYPI = {"pytorch": "torch"}
"""Of PyPI, where a package of conda-forge has another name there."""
LEFT_OUT = {"..", "__pycache__", "include"}
OF_THE_INSTALLATION = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


def required_by(environments: Iterable[Path]) -> tuple[set[str], set[str]]:
    """What the files of envs/ ask of conda and of pip, with all that it needs: distributions by normal name.

    What pip brings along and conda does not have is pip's.
    """
    by_conda, by_pip = [], []
    for file in environments:
        for entry in yaml.safe_load(file.read_text())["dependencies"]:
            if isinstance(entry, dict):
                by_pip += entry["pip"]
            elif (name := re.split(r"[ =<>]", entry)[0]) != "python":
                by_conda.append(PYPI.get(name, name))
    conda = _with_dependencies(by_conda)
    return conda, _with_dependencies(by_pip) - conda


def _with_dependencies(requirements: Iterable[str]) -> set[str]:
    found: set[tuple[str, str]] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        asked = waiting.pop()
        for extra in ("", *asked.extras):
            key = (_normal(asked.name), extra)
            if key not in found:
                found.add(key)
                needed = map(Requirement, importlib.metadata.requires(asked.name) or ())
                waiting += [n for n in needed if n.marker is None or n.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def write_wheel(name: str, folder: Path) -> Path:
    """The wheel that an installed distribution came from, but for scripts, data files and headers, which no rule uses."""
    distribution = importlib.metadata.distribution(name)
    tag = re.search(r"^Tag: (.+)$", distribution.read_text("WHEEL"), re.M)[1]
    stem = f"{_normal(name).replace('-', '_')}-{distribution.version}"
    info = f"{stem}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as members:
        for file in distribution.files:
            if not LEFT_OUT.intersection(file.parts) and file.name not in OF_THE_INSTALLATION:
                first = info if file.parts[0].endswith(".dist-info") else file.parts[0]
                members.write(file.locate(), "/".join((first, *file.parts[1:])))
        members.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in (*members.namelist(), f"{info}/RECORD")))
    return wheel
