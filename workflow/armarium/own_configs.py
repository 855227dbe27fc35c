"""MMAR configurations that somebody wrote, beside those that follow from config_train.json: which they are, and what they change.

A ``config_validation.json`` of somebody's own decides how the published model is scored and predicts; the others that follow
from config_train.json are written anew whenever that changes. No torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from . import layout
from .files import read_json
from .mmar_configs import derived_configs
from .parent import Parent
from .recipe import POST_OURS, evaluation_settings

VALIDATION, INFERENCE = "config_validation.json", "config_inference.json"


def brought(files: dict[str, dict], task: str, parent: Parent | None = None) -> list[str]:
    """Of a recipe's files those that do not just follow from its config_train.json, and what its training starts from."""
    others = [name for name in layout.MMAR_CONFIGS[1:] if name in files]
    try:
        derived = derived_configs(files["config_train.json"], task, parent) if others else {}
    except (KeyError, TypeError, AttributeError):  # a configuration that is refused later, with its fault
        return others
    return [name for name in others if files[name] != derived[name]]


def edited(
    archive: str, known: list[str], files: dict[str, dict], task: str, parent: Parent | None = None
) -> list[str]:
    """Of an archive's files those that somebody wrote: ``known`` so far, and what is not as it was last written here."""
    record = Path(layout.written_configs(archive))
    if not record.is_file():
        return brought(files, task, parent)
    written, found = read_json(record), []
    for name in layout.MMAR_CONFIGS[1:]:
        path = Path(layout.mmar_config(archive, name))
        if not path.is_file():
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if name in known or (isinstance(written, dict) and written.get(name, digest) != digest):
            found.append(name)
    return found


def own_evaluation(files: dict[str, dict], own: list[str], settings: dict, archive: str) -> dict | None:
    """How the published model is evaluated, where a config_validation.json of somebody's own says it otherwise.

    The training's key metric is always among the metrics: the reports in ``eval/`` are by it.

    Raises
    ------
    UserError, Problems
        If that configuration is wrong.
    """
    if VALIDATION not in own:
        return None
    source = layout.mmar_config(archive, VALIDATION)
    found = evaluation_settings(files[VALIDATION], files["environment.json"], source)
    key = settings["validate"]["metrics"][0]
    if key["label"] not in [m["label"] for m in found["metrics"]]:
        found["metrics"].append(key)
    return None if _text(found) == _text(settings["validate"]) else found


def without_part(
    files: dict[str, dict], own: list[str], settings: dict, evaluated: dict | None, archive: str
) -> list[str]:
    """A line for each thing that a configuration of somebody's own says and that is done otherwise."""
    lines = []
    if INFERENCE in own:
        source, done = layout.mmar_config(archive, INFERENCE), evaluated or settings["validate"]
        conf = {**files[INFERENCE], "key_metric": {"name": "MeanDice"}, "metrics": None, "additional_metrics": None}
        found = evaluation_settings(conf, files["environment.json"], source)
        lines += [
            f"{INFERENCE}: {part} is not as in {VALIDATION}, by which cases are predicted too"
            for part in ("pre_transforms", "inferer", "post_transforms")
            if _of_images(found[part]) != _of_images(done[part])
        ]
    return lines


def _of_images(components: Any) -> str:
    """What is done to an image or a prediction, whatever the label gets too and the evaluation does by itself."""
    if isinstance(components, dict):
        return _text(components)
    return _text([_of_image(c) for c in components if c.get("name") not in POST_OURS])


def _of_image(component: dict) -> dict:
    keys = component["args"].get("keys")
    if not isinstance(keys, list):
        return component
    args = {k: v[0] if isinstance(v, list) and len(v) == len(keys) else v for k, v in component["args"].items()}
    return {**component, "args": args}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
