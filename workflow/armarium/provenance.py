"""What ran, when, for how long and on what: one sidecar per step, the archive's only home of dates.

A sidecar is ``provenance/<step>.json``; the manifest is assembled from them. Files are named relative to
the archive, files of the dataset as ``data:<path relative to the data root>``, anything else as
``outside:<start of its SHA-256>/<file name>``: no path of this machine is kept.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from . import __version__, layout
from .errors import UserError
from .files import read_json, write_json
from .hashing import HashIndex, sha256
from .logs import configure_logging
from .rule_environment import rule_environment

LOG = logging.getLogger(__name__)

SIDECAR = "armarium-step/1"
"""The value of a sidecar's ``format`` key; other JSON files beside them are no sidecars."""

DATA = "data:"
OUTSIDE = "outside:"
LARGE = 32 << 20
"""Bytes from which a file's hash is remembered: a dozen steps read the same run.zip."""
PACKAGES = ("torch", "monai", "numpy", "nibabel", "pandas", "ignite")


@dataclass
class Step:
    """A running step; its body may add to every field.

    Attributes
    ----------
    inputs, outputs:
        Paths of files, absolute or relative to the working directory.
    parameters:
        What was asked for, as JSON values.
    resources:
        What it ran on, such as the GPU's name.
    data_inputs:
        Files of the dataset, relative to the data root, with their SHA-256.
    extends:
        Earlier versions of the output that it has parts of, the last one first; see :func:`recorded_of`.
    packages:
        Versions of packages that processes of its own imported; those of this process are known.
    """

    inputs: list[str]
    outputs: list[str]
    parameters: dict[str, Any]
    data_inputs: dict[str, str]
    resources: dict[str, Any] = field(default_factory=dict)
    extends: list[dict[str, Any]] = field(default_factory=list)
    packages: dict[str, str] = field(default_factory=dict)


@contextmanager
def step(
    archive: str,
    name: str,
    rule: str,
    inputs: list[str],
    outputs: list[str],
    parameters: dict[str, Any] | None = None,
    data_inputs: dict[str, str] | None = None,
    hash_index: HashIndex | None = None,
) -> Iterator[Step]:
    """Run the body as one step of ``archive`` and write its sidecar when it succeeds.

    Inputs are hashed before the body, as what it read; those that the body adds, and outputs, after it.

    Parameters
    ----------
    name:
        The step's own name, unique in the archive: the sidecar's name.
    rule:
        The rule that the step is a job of.
    hash_index:
        Where hashes of large files are remembered between steps.

    Raises
    ------
    FileNotFoundError
        If an input, or after the body an output, does not exist.
    """
    configure_logging(archive)
    LOG.debug("%s: begins", name)
    inputs = list(inputs)
    running = Step(list(inputs), list(outputs), dict(parameters or {}), dict(data_inputs or {}))
    read = _hashes(archive, running.inputs, hash_index)
    start, clock, cpu = datetime.now(UTC), time.perf_counter(), _cpu_seconds()
    yield running
    used = {
        "wall_seconds": round(time.perf_counter() - clock, 3),
        "cpu_seconds": round(_cpu_seconds() - cpu, 3),
        "peak_memory_bytes": _peak_memory(),
    }
    end = datetime.now(UTC)
    LOG.debug("%s: done in %s s", name, used["wall_seconds"])
    added = sorted(set(running.inputs).difference(inputs))
    data = {f"{DATA}{path}": {"sha256": digest} for path, digest in sorted(running.data_inputs.items())}
    write_json(
        layout.sidecar(archive, name),
        {
            "format": SIDECAR,
            "name": name,
            "rule": rule,
            "start": start.isoformat(timespec="microseconds"),
            "end": end.isoformat(timespec="microseconds"),
            "resources": used | running.resources,
            "host": platform.node(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "packages": package_versions() | running.packages,
            "armarium": __version__,
            "code_sha256": code_sha256(),
            "command": command_line(sys.argv, archive),
            "parameters": running.parameters,
            "inputs": read | _hashes(archive, added, hash_index) | data,
            "outputs": _hashes(archive, running.outputs, hash_index),
            **({"extends": running.extends} if running.extends else {}),
            **({"environment": environment} if (environment := rule_environment()) else {}),
        },
    )


def read_sidecars(archive: str) -> list[dict[str, Any]]:
    """The archive's sidecars in the order in which their steps ended.

    Raises
    ------
    UserError
        If a file among them is no JSON, or a damaged sidecar.
    """
    workflow = os.path.dirname(layout.workflow_copy(archive))
    found = []
    for folder, subfolders, names in os.walk(os.path.dirname(layout.sidecar(archive, "*"))):
        subfolders[:] = [s for s in subfolders if s[0] != "." and os.path.join(folder, s) != workflow]
        found += [read_sidecar(os.path.join(folder, name)) for name in names if name.endswith(".json")]
    return sorted(filter(None, found), key=lambda record: (record["end"], record["name"]))


def read_sidecar(path: str) -> dict[str, Any] | None:
    """A sidecar; None for another JSON file.

    Raises
    ------
    UserError
        If it is no JSON, or a damaged sidecar.
    """
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != SIDECAR:
        return None
    wrong = [key for key, kind in _KEYS.items() if not isinstance(record.get(key), kind)]
    wrong += [key for key in ("start", "end") if key not in wrong and not _is_time(record[key])]
    files = [entry for key in ("inputs", "outputs") if key not in wrong for entry in record[key].values()]
    wrong += ["sha256"] * any(not isinstance(f, dict) or not isinstance(f.get("sha256"), str) for f in files)
    extends = record.get("extends", [])
    wrong += ["environment"] * (not isinstance(record.get("environment", ""), str))
    wrong += ["extends"] * (not isinstance(extends, list) or not all(map(_is_of_earlier, extends)))
    if wrong:
        raise UserError(
            f"{path}: damaged record of a step: {', '.join(wrong)} missing or of the wrong kind; restore it from a copy, "
            "or delete it and what it recorded, and have that made again"
        )
    return record


_OF_EARLIER = ("start", "end", "host", "platform", "python", "packages", "armarium", "code_sha256")


def recorded_of(archive: str, name: str, output: str, last: str | os.PathLike) -> list[dict[str, Any]]:
    """What is known of the last version of a step's ``output``, which lies at ``last``, and of those that it extends.

    Returns
    -------
    list of dict
        Each with its ``sha256`` and, where that is recorded, when, where and by what it was made.
    """
    digest, path = sha256(last), layout.sidecar(archive, name)
    try:
        record = read_sidecar(path) if os.path.isfile(path) else None
    except UserError:
        record = None
    made = record["outputs"].get(os.path.relpath(output, archive), {}) if record else {}
    if made.get("sha256") != digest:
        return [{"sha256": digest}]
    return [{"sha256": digest, **{key: record[key] for key in _OF_EARLIER}}, *record.get("extends", [])]


def extended_by(steps: list[dict[str, Any]], digests: dict[str, str]) -> dict[str, set[str]]:
    """SHA-256 of the earlier versions whose parts files still have, so that what was cut out of those holds.

    Parameters
    ----------
    steps:
        Sidecars.
    digests:
        SHA-256 of the files as they are, by path.
    """
    found: dict[str, set[str]] = {}
    for record in steps:
        for path, facts in record["outputs"].items():
            if digests.get(path) == facts["sha256"]:
                found.setdefault(path, set()).update(e["sha256"] for e in record.get("extends", []))
    return found


def is_recorded(archive: str, name: str, output: str) -> bool:
    """Whether a step's sidecar says that it made ``output`` with the bytes that it has."""
    path = layout.sidecar(archive, name)
    try:
        record = read_sidecar(path) if os.path.isfile(path) else None
    except UserError:
        return False
    made = record["outputs"].get(os.path.relpath(output, archive), {}) if record else {}
    return made.get("sha256") == sha256(output)


def _is_of_earlier(entry: Any) -> bool:
    """Whether an entry is as :func:`recorded_of` makes it: a hash alone, or with all that was recorded."""
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        return False
    known = all(isinstance(entry.get(key), _KEYS[key]) for key in _OF_EARLIER)
    return len(entry) == 1 or (known and _is_time(entry["start"]) and _is_time(entry["end"]))


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text) is not None
    except ValueError:
        return False


_KEYS = {
    **dict.fromkeys(("name", "rule", "start", "end", "host", "platform", "python", "armarium", "code_sha256"), str),
    **dict.fromkeys(("resources", "packages", "parameters", "inputs", "outputs"), dict),
}
"""What the manifest takes from a sidecar."""


@functools.cache
def code_sha256() -> str:
    """SHA-256 over this package's Python files: their names and bytes, in sorted order."""
    package = os.path.dirname(os.path.abspath(__file__))
    digest = hashlib.sha256()
    for folder, subfolders, names in os.walk(package):
        subfolders.sort()
        for name in sorted(n for n in names if n.endswith(".py")):
            path = os.path.join(folder, name)
            digest.update(f"{os.path.relpath(path, package)}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def command_line(argv: list[str], archive: str) -> list[str]:
    """``argv`` without a path of this machine.

    A path below the working directory becomes relative to it, one of an archive elsewhere relative to
    the archive's parent; of any other only the last name is kept, as ``.../name``.
    """
    program, *arguments = argv
    folder, script = os.path.split(program)
    if script == "__main__.py":
        head = ["python", "-m", os.path.basename(folder)]
    else:
        head = [script]
    return head + [_ABSOLUTE.sub(lambda m: _without_machine(m[1], archive), a) for a in arguments]


_ABSOLUTE = re.compile(r"(?:\bfile://|(?<![\w./~-]))(/(?!/)[^\s,;:\"'\]})]*)")


def _without_machine(path: str, archive: str) -> str:
    for base in (os.getcwd(), os.path.dirname(os.path.abspath(archive))):
        inside = os.path.relpath(path, base)
        if not _leaves(inside) and (base == os.getcwd() or not _leaves(os.path.relpath(path, archive))):
            return inside
    return f".../{os.path.basename(path.rstrip('/'))}"


def _leaves(relative: str) -> bool:
    return relative == ".." or relative.startswith(f"..{os.sep}")


def _hashes(archive: str, paths: list[str], index: HashIndex | None) -> dict[str, dict[str, Any]]:
    large = [path for path in paths if index and os.path.getsize(path) >= LARGE]
    remembered = index.many(large) if index and large else {}
    digests = {path: remembered.get(path) or sha256(path) for path in paths}
    found = {}
    for path, digest in digests.items():
        name = os.path.relpath(path, archive)
        if _leaves(name):
            name = f"{OUTSIDE}{digest[:12]}/{os.path.basename(path)}"
        found[name] = {"sha256": digest, "size": os.path.getsize(path)}
    return found


def _cpu_seconds() -> float:
    """Processor time of this process and of its finished children."""
    return sum(os.times()[:4])


def _peak_memory() -> int:
    """Largest resident memory of this process or of any one finished child, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(peaks) * unit


def package_versions() -> dict[str, str]:
    """Versions of the packages that this process has imported, and only those."""
    loaded = {name: getattr(sys.modules.get(name), "__version__", None) for name in PACKAGES}
    return {name: str(version) for name, version in loaded.items() if version is not None}
