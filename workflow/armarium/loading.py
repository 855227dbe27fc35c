"""Loading what computes with no more than is used of it: a step of a second would pay several for ``import monai``.

``import monai`` imports every module of MONAI that there is; these import pandas, scikit-learn and SciPy's signals for a
function each, and ignite, for a handler's sake, torch's distributed optimizers with half of torch's compiler and SymPy.
Meanwhile the garbage collector looks through a million objects again and again, of which none is garbage.
"""

from __future__ import annotations

import gc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from types import ModuleType
from typing import Any

ALLOWED = "ARMARIUM_ALLOW"
"""The variable by which planning tells the jobs which code from outside the user allows, as a JSON list."""
LATER = ("pandas", "sklearn", "scipy.signal")
"""What MONAI's modules import, if it is there, for functions that hardly anything calls."""
HOME_OF_IMPORTS = "monai.utils.module"
FIRST_OF_MONAI = "monai.apps"
"""Where MONAI itself begins: its packages import each other in a circle."""
DISTRIBUTED_OPTIMIZERS = "torch.distributed.optim"


def allowed_from_outside() -> list[str]:
    """Dotted paths of code from outside that the call which planned this job allows."""
    return json.loads(os.environ.get(ALLOWED, "[]"))


@contextmanager
def sparingly() -> Iterator[None]:
    """Import torch and MONAI inside, the first time in this process, and find the same names in what is imported.

    Modules of MONAI come when they are imported by name, packages of :data:`LATER` when something of them is used. Where
    the user allows code from outside, which may count on more, all is imported as ever.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with _without_what_is_unused():
            yield
    finally:
        gc.freeze()  # what was imported stays as long as the process: no collection is to look through it
        if collects:
            gc.enable()


@contextmanager
def _without_what_is_unused() -> Iterator[None]:
    if "monai" in sys.modules or allowed_from_outside():
        yield
        return
    hook = _ImportsOfMonai()
    sys.meta_path.insert(0, hook)
    sys.modules.setdefault(DISTRIBUTED_OPTIMIZERS, _DistributedOptimizers(DISTRIBUTED_OPTIMIZERS))
    try:
        yield
    finally:
        sys.meta_path.remove(hook)
        if isinstance(sys.modules[DISTRIBUTED_OPTIMIZERS], _DistributedOptimizers):
            del sys.modules[DISTRIBUTED_OPTIMIZERS]


# ---- MONAI


class _ImportsOfMonai:
    """Finds the module by which MONAI imports all else, to change what it does."""

    def find_spec(self, name, path=None, target=None):
        if name != HOME_OF_IMPORTS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _LoaderOfImports(name, spec.loader.path)
        return spec


class _LoaderOfImports(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        sys.modules["monai"].__getattr__ = _imported_by_name
        if callable(getattr(module, "load_submodules", None)):
            module.load_submodules = lambda *args, **kwargs: ([importlib.import_module(FIRST_OF_MONAI)], [])
        if callable(getattr(module, "optional_import", None)):
            module.optional_import = _postponing(module.optional_import)


def _imported_by_name(name: str) -> ModuleType:
    """A package of MONAI that is asked for as ``monai.<name>`` before anybody has imported it."""
    if name.startswith("_") or importlib.util.find_spec(f"monai.{name}") is None:
        raise AttributeError(f"module 'monai' has no attribute {name!r}")
    return importlib.import_module(f"monai.{name}")


def _postponing(optional_import: Callable[..., tuple[Any, bool]]) -> Callable[..., tuple[Any, bool]]:
    """MONAI's own function, but of what may come later something that imports it when it is used."""

    def imported(module: str, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        package = module.partition(".")[0]
        if not {package, module} & {*LATER} or importlib.util.find_spec(package) is None:
            return optional_import(module, *args, **kwargs)
        return _Postponed(lambda: optional_import(module, *args, **kwargs)[0]), True

    return imported


class _Postponed:
    """A module or function that is imported when something of it is asked for, or it is called."""

    def __init__(self, imported: Callable[[], Any]):
        self._imported = imported

    @cached_property
    def _itself(self) -> Any:
        return self._imported()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._itself, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._itself(*args, **kwargs)


# ---- ignite


class _OnlyIfImported(type):
    """What is an instance of a class tells itself: if nobody has imported that class, nothing is."""

    def __instancecheck__(cls, instance: object) -> bool:
        module = sys.modules.get(f"{DISTRIBUTED_OPTIMIZERS}.zero_redundancy_optimizer")
        return module is not None and isinstance(instance, module.ZeroRedundancyOptimizer)


class _DistributedOptimizers(ModuleType):
    """Stands for torch's distributed optimizers as long as ignite is imported, which asks of an object if it is one."""

    class ZeroRedundancyOptimizer(metaclass=_OnlyIfImported):
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        del sys.modules[DISTRIBUTED_OPTIMIZERS]
        return getattr(importlib.import_module(DISTRIBUTED_OPTIMIZERS), name)
