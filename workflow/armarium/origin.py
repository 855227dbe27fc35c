"""Where an archive comes from: the one that it was cloned from, by identity. No torch.

An archive's identity is a hash of its effective configuration and datalists, not its folder's name. A clone is the same
archive until one of these changes; then it notes what it was, and its manifest names that as its origin.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from . import layout
from .files import read_json, write_json
from .manifest import Manifest, read_manifest

Origin = dict[str, Any]


def describe(archive: str) -> Origin | None:
    """What an archive is by its manifest: ``identifier``, ``name``, and ``effective``, the SHA-256 of each part.

    None where there is no manifest, or one that does not say so.

    Raises
    ------
    UserError
        If the manifest is damaged.
    """
    if not os.path.isfile(layout.manifest(archive)):
        return None
    manifest = read_manifest(archive)
    paths = {part: os.path.relpath(layout.effective(archive, part), archive) for part in layout.EFFECTIVE}
    effective = {part: manifest.files[path][0] for part, path in paths.items() if path in manifest.files}
    if manifest.identifier is None or not effective:
        return None
    return {"identifier": manifest.identifier, "name": manifest.name, "effective": effective}


def note_origin(archive: str, adopted: Origin | None, effective: dict[str, str]) -> None:
    """Write ``config/origin.json`` once an adopted archive is another one than it was.

    Parameters
    ----------
    adopted:
        What it was when it was adopted, as :func:`describe` has it.
    effective:
        The text of each part of its configuration now.
    """
    if not adopted or all(_sha256(effective[part]) == digest for part, digest in adopted["effective"].items()):
        return
    if os.path.isfile(layout.origin(archive)) and adopted["name"] == _name(archive):
        return  # the archive itself, which was only forgotten here
    write_origin(archive, adopted)


def write_origin(archive: str, origin: Origin) -> None:
    """Write ``config/origin.json``, unless it says so."""
    wanted = {"identifier": origin["identifier"], "name": origin["name"]}
    if read_origin(archive) != wanted:
        write_json(layout.origin(archive), wanted)


def read_origin(archive: str) -> dict:
    """What ``config/origin.json`` says; nothing where there is none."""
    path = layout.origin(archive)
    found = read_json(path) if os.path.isfile(path) else {}
    return found if isinstance(found, dict) else {}


def is_clone(archive: str) -> bool:
    """Whether an archive was cloned: it says so itself, or its manifest is that of a folder of another name."""
    return bool(read_origin(archive)) or _is_renamed(archive, _manifest_of(archive))


def is_as_cloned(archive: str) -> bool:
    """Whether a clone still holds what it was cloned with: nothing was made in it since, so its manifest is the other's."""
    manifest = _manifest_of(archive)
    if manifest is None:
        return False
    return _is_renamed(archive, manifest) or read_origin(archive).get("identifier") == manifest.identifier


def _manifest_of(archive: str) -> Manifest | None:
    return read_manifest(archive) if os.path.isfile(layout.manifest(archive)) else None


def _is_renamed(archive: str, manifest: Manifest | None) -> bool:
    return manifest is not None and manifest.name is not None and manifest.name != _name(archive)


def _name(archive: str) -> str:
    return os.path.basename(os.path.abspath(archive))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
