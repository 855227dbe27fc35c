"""What an archive lost since its manifest was written, where nothing else about it changed."""

from __future__ import annotations

import hashlib
import os
import platform
from fnmatch import fnmatch

from . import layout
from .adoption import is_source
from .circumstances import package_differences
from .environment import cpu_capability
from .errors import UserError
from .files import read_json
from .hashing import HashIndex
from .manifest import Manifest, read_manifest
from .provenance import code_sha256, read_sidecars


def lost_products(archive: str, workflow: str, hash_index: HashIndex) -> set[str]:
    """Products that are gone from an archive, where making them again gives the archive of the manifest.

    So it is where every file that is left is as the manifest says, and what made the lost ones is at hand: the same
    rules, code, Python, packages and, for what was computed, kind of processor. Then nothing that is left has to be
    made again. Nowhere else can that be known before: the result is empty. (Of lost configuration planning itself knows
    whether it comes back as it was.)

    Parameters
    ----------
    workflow:
        The text of the workflow that would make them.
    """
    try:
        manifest = read_manifest(archive)
        lost = _lost(archive, manifest)
        if lost and _same_workflow(archive, workflow, manifest) and _others_unchanged(archive, manifest, hash_index):
            return lost if _come_back_equal(archive, lost, manifest) else set()
    except UserError:  # no manifest, or a damaged one: it says nothing
        pass
    return set()


def _lost(archive: str, manifest: Manifest) -> set[str]:
    return {path for path in manifest.files if not os.path.exists(f"{archive}/{path}") and not is_source(archive, path)}


def _same_workflow(archive: str, workflow: str, manifest: Manifest) -> bool:
    copy = os.path.relpath(layout.workflow_copy(archive), archive)
    return manifest.files.get(copy, ("",))[0] == hashlib.sha256(workflow.encode()).hexdigest()


def _others_unchanged(archive: str, manifest: Manifest, hash_index: HashIndex) -> bool:
    """Whether the files that are left have the manifest's bytes; a step's record changes when the step is repeated."""
    records = layout.sidecar("", "*")
    expected = {
        f"{archive}/{path}": facts
        for path, facts in manifest.files.items()
        if not fnmatch(f"/{path}", records) and os.path.isfile(f"{archive}/{path}")
    }
    if any(os.path.getsize(path) != size for path, (_, size) in expected.items()):
        return False
    return all(expected[path][0] == digest for path, digest in hash_index.many(expected).items())


def _come_back_equal(archive: str, lost: set[str], manifest: Manifest) -> bool:
    """Whether each lost file was made, as the manifest has it, by what would make it now."""
    made = {path: step for step in read_sidecars(archive) for path in step["outputs"]}
    makers = {path: made.get(path) for path in lost}
    if any(s is None or s["outputs"][path]["sha256"] != manifest.files[path][0] for path, s in makers.items()):
        return False
    steps = {step["name"]: step for step in makers.values()}.values()
    computed = any("torch" in step["packages"] for step in steps)
    return all(map(_is_at_hand, steps)) and (not computed or _same_processor(archive))


def _is_at_hand(step: dict) -> bool:
    """Whether also what is older in its product was made by the code and the packages that are here."""
    makers = [step, *step.get("extends", [])]
    return all(m.get("code_sha256") == code_sha256() and not package_differences(m) for m in makers)


def _same_processor(archive: str) -> bool:
    """As the archive says of the training's; of a GPU's figures no byte is promised."""
    path = layout.host_json(archive)
    host = read_json(path) if os.path.isfile(path) else {}
    then = (host.get("machine"), host.get("cpu", {}).get("capability"), host.get("gpus"))
    return then == (platform.machine(), cpu_capability(), [])
