"""The files of a recipe or of an archive's ``config/``, read in the names of today's MONAI. No torch."""

from __future__ import annotations

from pathlib import Path

from . import clara, layout
from .errors import UserError
from .files import read_json, read_text

LARGEST_CONFIG = 1 << 20
"""Bytes of an MMAR configuration; a variable of it may be put in as often as it has room for."""


def recipe_files(folder: str, name: str, allow: list[str]) -> tuple[dict[str, dict], list[str]]:
    """A recipe's configurations in today's names, and what was translated."""
    base = Path(folder)
    base = base / "config" if (base / "config").is_dir() else base
    if not (base / "config_train.json").is_file():
        raise UserError(
            f"archives.{name}.recipe: no config_train.json in '{folder}'; wanted a folder with an MMAR's config/"
        )
    return translated_files({n: base / n for n in (*layout.MMAR_CONFIGS, "environment.json")}, allow)


def translated_files(paths: dict[str, Path], allow: list[str]) -> tuple[dict[str, dict], list[str]]:
    """Those of MMAR's files that exist, in today's names, and what was translated."""
    files, notes = {}, []
    for name, path in paths.items():
        if not path.is_file():
            continue
        if name == "environment.json":
            found, told = clara.read_environment(read_text(path, LARGEST_CONFIG), str(path))
            found, placed = clara.located(_an_object(found, path))
            told += placed
        else:
            found, told = clara.translated(read_object(path), str(path), allow)
            told = [line if name == "config_train.json" else f"{name}: {line}" for line in told]
        files[name] = found
        notes += told
    return files, notes


def read_object(path: str | Path) -> dict:
    """A JSON object from a file.

    Raises
    ------
    UserError
        If it is none.
    """
    return _an_object(read_json(path, LARGEST_CONFIG), path)


def _an_object(found: object, path: str | Path) -> dict:
    if not isinstance(found, dict):
        raise UserError(f"{path}: found a JSON {type(found).__name__}, wanted an object {{…}}")
    return found


def other_task(given: dict, spec: dict) -> list[str]:
    """A line where an environment.json names another task than the dataset's, which counts."""
    task = spec["dataset"]["task"]
    if given.get("PROCESSING_TASK", task) == task:
        return []
    return [f"environment.json: PROCESSING_TASK is {given['PROCESSING_TASK']!r:.80}; the dataset's task counts: {task}"]
