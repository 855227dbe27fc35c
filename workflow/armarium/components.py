"""From ``{"name", "args"}`` to an object: only public classes of MONAI, torch and ignite.

A configuration is data. A name is looked up in the modules of its kind; a dotted ``path`` is followed
only when the user's own config.yaml allows exactly that path.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

from .config import nearest
from .errors import UserError
from .loading import sparingly

MODULES = {
    "loss": ("monai.losses", "torch.nn"),
    "optimizer": ("torch.optim", "monai.optimizers"),
    "lr_scheduler": ("torch.optim.lr_scheduler", "monai.optimizers"),
    "model": ("monai.networks.nets",),
    "transform": ("monai.transforms",),
    "inferer": ("monai.inferers",),
    "handler": ("monai.handlers", "ignite.handlers"),
    "metric": ("monai.handlers", "ignite.metrics", "ignite.metrics.regression"),
}
"""Where a component of a kind may come from, first match first."""
IMPORTED_ARGS = {"reader": ("NibabelReader", "ITKReader"), "writer": (), "merger_cls": ("AvgMerger",)}
"""Arguments that MONAI follows as dotted paths, to any function there is, and what is let through.

Not its NumpyReader, which unpickles whatever it is given, and not what writes to a path of its own.
"""
FILE_ARGUMENT = re.compile(r"(?:^|_)(?:dir|dirname|path|uri|url|filename|store|save_handler)$|^path_or_|^pretrained$")
"""Constructors' arguments that lead to files or addresses (or, for ``pretrained``, may do so)."""
REACHES_OUT = re.compile(r"TorchIO|TorchVision|CuCIM|MLFlow|ClearML|PerceptualLoss|\w+Logger$")
"""Classes that do so by default, or run what other packages have by a name."""
KEEPS_TO_ITSELF = {"MetricLogger", "TorchVisionFCModel"}


def _public_class(kind: str, name: str, where: str) -> type:
    candidates: list[str] = []
    for module_name in MODULES[kind]:
        module = importlib.import_module(module_name)
        found = getattr(module, name, None) if name.isidentifier() and not name.startswith("_") else None
        if inspect.isclass(found) and found.__module__.split(".")[0] in ("monai", "torch", "ignite"):
            return found
        candidates += [n for n, v in vars(module).items() if inspect.isclass(v) and not n.startswith("_")]
    raise UserError(
        f"{where}: no {kind} '{name}' in {' or '.join(MODULES[kind])}; {_nearest_component(name, candidates)}"
    )


def _nearest_component(name: str, candidates: list[str]) -> str:
    hint = nearest(name, candidates)
    return hint if hint.startswith("did you mean") else "see MONAI's documentation for the names"


def _allowed_class(path: str, allow: Iterable[str], where: str) -> type:
    if path not in allow:
        raise UserError(
            f"{where}: path '{path}' is not allowed; code named by a recipe runs only if config.yaml lists it under the archive's 'allow'"
        )
    module, _, name = path.rpartition(".")
    if os.getcwd() not in sys.path:  # last, so that nothing there takes the place of something installed
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: cannot import '{path}' ({error})") from None


def component_class(kind: str, component: dict, allow: Iterable[str], where: str) -> type:
    """The class that a component names."""
    if "path" in component and "name" not in component:
        return _allowed_class(component["path"], allow, where)
    return _public_class(kind, component["name"], where)


def build(kind: str, component: dict, allow: Iterable[str] = (), /, *leading: Any, **extra: Any) -> Any:
    """Make the object that a component describes.

    Parameters
    ----------
    kind:
        A key of ``MODULES``.
    component:
        ``{"name": class}`` or ``{"path": dotted path}``, with ``args``.
    allow:
        Dotted paths the user allows.
    leading, extra:
        Arguments that the caller adds: parameters for an optimizer, an optimizer for a schedule.

    Raises
    ------
    UserError
        If the name is unknown, the path not allowed, or the arguments do not fit.
    """
    name = component.get("name", component.get("path"))
    where = f"{kind} {name}"
    cls = component_class(kind, component, allow, where)
    args = {**component["args"], **extra}
    if "name" in component:
        _refuse_files(cls, component["args"], where)
    _refuse_imports(component["args"], where)
    try:
        return cls(*leading, **args)
    except Exception as error:  # whatever a constructor thinks of what a recipe gives it
        raise UserError(f"{where}: args {component['args']} do not fit: {error}") from None


def _refuse_files(cls: type, args: dict, where: str) -> None:
    """Refuse what would read or write files of its own: a recipe says what is computed, not where."""
    problem = f"is not built by name: it may reach files or addresses outside the archive; if you want it, name it by path '{cls.__module__}.{cls.__name__}' and list that under 'allow'"
    if REACHES_OUT.search(cls.__name__) and cls.__name__ not in KEEPS_TO_ITSELF:
        raise UserError(f"{where} {problem}")
    try:
        parameters = inspect.signature(cls).parameters
    except ValueError:  # a class of torch's own making, which takes no files
        return
    for name, parameter in parameters.items():
        given = args.get(name, None if parameter.default is parameter.empty else parameter.default)
        required = parameter.default is parameter.empty
        if FILE_ARGUMENT.search(name) and (required or (given and not isinstance(given, bool))):
            raise UserError(f"{where} {problem} ({name} {given!r:.80})")


def _refuse_imports(args: dict, where: str) -> None:
    for key, known in IMPORTED_ARGS.items():
        for name in args[key] if isinstance(args.get(key), list) else [args.get(key)]:
            if name is not None and name not in known:
                raise UserError(f"{where}: {key} is {name!r:.80}; wanted {' or '.join(known) or 'none'}")


def substitute_runtime(value: Any, known: dict[str, int]) -> Any:
    """Replace the variables that only a started training knows, such as ``{iterations}``."""
    if isinstance(value, dict):
        return {k: substitute_runtime(v, known) for k, v in value.items()}
    if isinstance(value, list):
        return [substitute_runtime(v, known) for v in value]
    if isinstance(value, str) and value.startswith("{") and value[1:-1] in known:
        return known[value[1:-1]]
    return value


def build_optimizer(component: dict, parameters: Iterable, allow: Iterable[str] = ()):
    """An optimizer of ``parameters``."""
    with sparingly():  # the first one of a process loads torch's compiler
        return build("optimizer", component, allow, parameters)


def build_lr_scheduler(component: dict, optimizer, allow: Iterable[str] = ()):
    """A learning-rate schedule; ``schedulers`` in its args are built first, for SequentialLR and its like."""
    if component.get("name") == "ReduceLROnPlateau":
        raise UserError(
            "lr_scheduler ReduceLROnPlateau: it waits for a validation value, which no step gives it; use a schedule of epochs or iterations"
        )
    args = dict(component["args"])
    listed = args.pop("schedulers", None)
    if listed is None:
        return build("lr_scheduler", component, allow, optimizer)
    if not isinstance(listed, list) or not all(isinstance(c, dict) and {"name", "path"} & c.keys() for c in listed):
        raise UserError(
            f"lr_scheduler {component.get('name')}: schedulers is {listed!r:.80}; wanted a list of components"
        )
    inner = [build_lr_scheduler({"args": {}, **c}, optimizer, allow) for c in listed]
    leading = (optimizer, inner) if "milestones" in args else (inner,)
    return build("lr_scheduler", {**component, "args": args}, allow, *leading)
