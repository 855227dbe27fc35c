"""Components of MMAR's sections: read, left out where disabled, and put in where a reference names one. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .config import nearest
from .errors import UserError

CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DOTTED_PATH = re.compile(rf"{CLASS_NAME.pattern}(\.{CLASS_NAME.pattern})+")


def is_active(component: Any) -> bool:
    """Whether a component is not disabled; its variables are put in."""
    return not (isinstance(component, dict) and component.get("disabled") in (True, "true", "True"))


def read_components(section: dict, key: str, where: str) -> list[dict]:
    """The components of a list that are not disabled, as :func:`read_component` gives them."""
    listed = section.get(key, [])
    if not isinstance(listed, list):
        raise UserError(f"{where}.{key} is {listed!r:.80}; wanted a list of components")
    found = [(is_active(c), read_component(c, f"{where}.{key}")) for c in listed]
    return [component for active, component in found if active]


def read_component(value: Any, where: str) -> dict:
    """A component's ``name`` or ``path``, and its ``args``.

    Raises
    ------
    UserError
        If it has neither name nor path, or they are none.
    """
    if not isinstance(value, dict) or not ({"name", "path"} & value.keys()):
        raise UserError(f'{where}: found {value!r}; wanted a component {{"name": …, "args": {{…}}}}')
    args = value.get("args", {})
    if not isinstance(args, dict):
        raise UserError(f"{where}: args is {args!r}; wanted an object of named arguments")
    kept = {k: value[k] for k in ("name", "path") if k in value}
    if not all(isinstance(v, str) for v in kept.values()):
        raise UserError(f"{where}: found {kept!r}; wanted a text for the name")
    if not CLASS_NAME.fullmatch(kept.get("name", "_")) or not DOTTED_PATH.fullmatch(kept.get("path", "_._")):
        raise UserError(f"{where}: found {kept!r}; wanted the name of a class, or the dotted path of one")
    return {**kept, "args": args}


def class_name(component: dict) -> str:
    """The name of the class that a component asks for."""
    return component.get("name") or str(component["path"]).rpartition(".")[2]


def _referable(train: dict) -> dict[str, dict[str, dict]]:
    """By part, the training components that a reference may mean, by class name; of several of one name the last."""
    parts = {key: value if isinstance(value, list) else [value] for key, value in train.items()}
    return {
        key: {str(class_name(c)): c for c in listed if isinstance(c, dict) and (c.get("name") or c.get("path"))}
        for key, listed in parts.items()
    }


def _by_reference(listed: list, part: str, named: dict[str, dict[str, dict]], where: str) -> Iterator[Any]:
    """The components with those that references mean put in: of the same part of the training, else of any."""
    known = {name: c for other in named.values() for name, c in other.items()} | named.get(part, {})
    for component in listed:
        if not isinstance(component, dict) or "ref" not in component:
            yield component
        elif not is_active(component):
            continue
        elif str(component["ref"]) in known:
            yield {**known[str(component["ref"])], **{k: v for k, v in component.items() if k == "disabled"}}
        else:
            raise UserError(
                f"{where}.{part}: ref '{component['ref']}' names no train component; {nearest(component['ref'], list(known))}"
            )


def with_references(validate: dict, train: dict, where: str) -> dict:
    """A section with every ``{"ref": name}`` replaced by the training component of that name.

    Raises
    ------
    UserError
        If there is none.
    """
    named, resolved = _referable(train), dict(validate)
    for key, value in validate.items():
        if isinstance(value, list):
            resolved[key] = list(_by_reference(value, key, named, where))
        elif isinstance(value, dict) and "ref" in value:
            resolved[key] = next(_by_reference([value], key, named, where), None)
    return resolved
