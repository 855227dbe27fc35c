"""What decides what a chain of transforms makes of a case: classes, arguments, code from outside, versions, processor."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from monai.utils import ensure_tuple

COMPUTES = ("monai", "torch", "numpy", "scipy", "nibabel", "itk", "scikit-image", "cupy", "cucim")
"""Packages by which MONAI reads and transforms; of those that are not installed, there is no version."""
INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def recipe_key(components: Sequence[dict], transforms: Sequence[Any], form: int) -> str:
    """SHA-256 of what decides what the transforms make of given files.

    Parameters
    ----------
    components:
        As configured: ``{"name" or "path", "args"}``.
    transforms:
        What was built from them, in the same order.
    form:
        Number of the form in which the result is kept.
    """
    steps = [_step(c, type(t)) for c, t in zip(components, transforms, strict=True)]
    # Vector instructions round differently, and so would another machine that shares the cache.
    told = [form, versions(), torch.backends.cpu.get_cpu_capability(), steps]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {}
    for name in COMPUTES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _step(component: dict, made: type) -> list:
    """A transform with all of its arguments, those by default too; where the recipe names it by path, with its code."""
    try:
        bound = inspect.signature(made).bind(**component["args"])
        bound.apply_defaults()
        args = dict(bound.arguments)
    except ValueError:  # a class that does not say what it takes
        args = component["args"]
    if "keys" in args:
        args["keys"] = ensure_tuple(args["keys"])
    by_path = "path" in component and "name" not in component
    return [made.__module__, made.__qualname__, _plain(args), code_of(made) if by_path else None]


def _plain(value: Any) -> Any:
    """Arguments as JSON: MONAI's names for modes are texts, what is a type or a function goes by its name."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    if hasattr(value, "value"):
        return _plain(value.value)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{type(value).__module__}.{type(value).__qualname__} {value}"


def code_of(made: type) -> dict[str, str]:
    """SHA-256 of the code of a class from outside: its module, and those modules of its author's that this uses.

    Found is what a module's names lead to; what is only imported within a function, or read from a file, is not.
    """
    found: dict[str, str] = {}
    todo = [sys.modules[made.__module__], *(sys.modules.get(base.__module__) for base in made.__mro__)]
    own = made.__module__.partition(".")[0]
    while todo:
        module = todo.pop()
        path = getattr(module, "__file__", None)
        if not path or module.__name__ in found or not _is_outside(module, path, own):
            continue
        found[module.__name__] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        todo += _used_by(module)
    return found


def _is_outside(module: ModuleType, path: str, own: str) -> bool:
    """Whether a module is the author's: of the class's own package, or in no place where packages are installed."""
    return module.__name__.partition(".")[0] == own or not path.startswith(INSTALLED)


def _used_by(module: ModuleType) -> Iterator[ModuleType]:
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value
        elif (name := getattr(value, "__module__", None)) and isinstance(name, str) and name in sys.modules:
            yield sys.modules[name]
