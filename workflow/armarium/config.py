"""config.yaml: read, checked against the schema and completed with its defaults. No torch."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from .dataset import REGRESSION, SEGMENTATION, SOURCES
from .errors import Problems, UserError
from .home import WORKFLOW
from .multi_label import is_multi_label

LONGEST_SCALAR = 64
"""Characters of a number, a truth value or the like; a longer text is not parsed: YAML can refer to itself."""


@cache
def schema(name: str) -> dict:
    """The schema ``workflow/schemas/<name>.schema.yaml``."""
    import yaml

    return yaml.safe_load((WORKFLOW / "schemas" / f"{name}.schema.yaml").read_text(encoding="utf-8"))


@contextmanager
def quick_yaml() -> Iterator[None]:
    """While Snakemake reads a configuration file: by libyaml where PyYAML has it, four times as fast.

    Of a thousand archives it is most of what their being listed costs every other call.
    """
    import yaml

    slow = yaml.FullLoader
    yaml.FullLoader = getattr(yaml, "CFullLoader", slow)
    try:
        yield
    finally:
        yaml.FullLoader = slow


def nearest(word: Any, known: list[str]) -> str:
    """A hint naming the known words nearest to ``word`` (YAML has keys that are no words), or all of them."""
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"


def _resolve(node: dict, root: dict) -> dict:
    while "$ref" in node:
        target: Any = root
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    return node


def _object_form(node: dict, value: Any, root: dict) -> dict:
    """Of a ``oneOf`` the form that ``value`` can have."""
    node = _resolve(node, root)
    if "oneOf" in node and isinstance(value, dict):
        return next((_resolve(n, root) for n in node["oneOf"] if n.get("type") == "object"), node)
    return node


def fill_defaults(value: Any, node: dict, root: dict) -> Any:
    """A copy of ``value`` in which every key that the schema gives a default has a value."""
    node = _object_form(node, value, root)
    if not isinstance(value, dict):
        return copy.deepcopy(value)
    filled = {}
    properties = node.get("properties", {})
    for key, child in properties.items():
        child = _resolve(child, root)
        if key in value or "default" in child:
            filled[key] = fill_defaults(value.get(key, child.get("default")), child, root)
    others = node.get("additionalProperties")
    for key in (k for k in value if k not in properties):  # in order: a set's would change from run to run
        filled[key] = fill_defaults(value[key], others, root) if isinstance(others, dict) else value[key]
    return filled


def _message(error) -> str:
    where = ".".join(str(p) for p in error.absolute_path) or "top level"
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = [k for k in error.instance if k not in known]
        return "; ".join(f"{where}: unknown key '{k}'; {nearest(k, known)}" for k in unknown)
    if error.validator == "required":
        missing = [k for k in error.validator_value if k not in error.instance]
        return f"{where}: missing key {', '.join(missing)}; {error.schema['properties'][missing[0]].get('description', '')}"
    if error.validator in ("type", "oneOf"):
        wanted = error.validator_value if error.validator == "type" else [e.validator_value for e in error.context]
        wanted = " or ".join(wanted) if isinstance(wanted, list) else wanted
        return f"{where}: found {error.instance!r} ({type(error.instance).__name__}), wanted {wanted}"
    if error.validator == "enum":
        options = [str(v) for v in error.validator_value]
        return f"{where}: found {error.instance!r}; {nearest(str(error.instance), options)}"
    if error.validator == "propertyNames" or "propertyNames" in error.absolute_schema_path:
        return f"{where}: the name {error.instance!r} does not match {error.validator_value}"
    return f"{where}: found {error.instance!r}; {error.message}"


def _leaves(error) -> Iterator:
    inner = [e for e in error.context or () if e.validator != "type" or len(e.absolute_path) > len(error.absolute_path)]
    if not inner:
        yield error
    for e in inner:
        yield from _leaves(e)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@cache
def _validator() -> type:
    """JSON Schema, stricter in two things: 5.0 is no integer, and NaN and infinity are no numbers."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    checks = {"integer": lambda _, value: _is_integer(value), "number": lambda _, value: _is_number(value)}
    return extend(Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(checks))


def check(value: dict, name: str, source: str, optional: Collection[str] = ()) -> dict:
    """Check ``value`` against a schema and fill in its defaults.

    Parameters
    ----------
    value:
        What was read.
    name:
        Name of the schema: ``config`` or ``recipe``.
    source:
        The file it came from, for messages.
    optional:
        Keys that the schema requires, but that may be missing here.

    Raises
    ------
    Problems
        With every difference from the schema, unknown keys with the nearest right name.
    """
    root = schema(name)
    root = {**root, "required": [key for key in root.get("required", []) if key not in optional]}
    errors = [leaf for e in _validator()(root).iter_errors(value) for leaf in _leaves(e)]
    if errors:
        raise Problems(source, dict.fromkeys(_message(e) for e in errors))
    if name == "config" and (problems := list(_dataset_problems(value))):
        raise Problems(source, problems)
    return fill_defaults(value, root, root)


def _dataset_problems(config: dict) -> Iterator[str]:
    """Datasets that name no source or several, or a target, labels or several labels that their task has not."""
    for name, section in config.get("archives", {}).items():
        dataset = section["dataset"]
        given = [key for key in SOURCES if key in dataset]
        if len(given) != 1:
            yield f"archives.{name}.dataset: found {' and '.join(given) or 'none'} of {', '.join(SOURCES)}; wanted exactly one: a list, a BIDS dataset or a CAPS"
        elif dataset.get("synthesize") and given != ["list"]:
            yield f"archives.{name}.dataset: found synthesize, which makes a list, beside {given[0]}; leave one of them out"
        task = dataset.get("task", SEGMENTATION)
        if task == SEGMENTATION and "target" in dataset:
            yield f"archives.{name}.dataset.target: found {dataset['target']!r}, but a segmentation's labels are files; leave it out, or set task"
        if task == REGRESSION and is_multi_label(dataset):
            yield f"archives.{name}.dataset.multi_label: found true, but a regression has no classes; leave it out"
        if is_multi_label(dataset) and dataset.get("synthesize"):
            yield f"archives.{name}.dataset: found synthesize, which makes cases of one class each, beside multi_label; leave one of them out"
        if task == REGRESSION and dataset.get("labels"):
            yield f"archives.{name}.dataset.labels: found {dataset['labels']}, but a regression has no classes; leave it out"


def typed(name: str, value: Any, like: Any, source: str = "set") -> Any:
    """``value``, which may be a string from a command line, in the type of the variable ``name``.

    Parameters
    ----------
    name:
        An MMAR variable.
    value:
        The value given; strings are read as YAML scalars.
    like:
        The variable's present value: the type wanted where the schema knows no better.
    source:
        Where the value was given, for the message.

    Raises
    ------
    UserError
        If it cannot be read as that type.
    """
    import yaml

    wanted = schema("recipe")["properties"].get(name, {}).get("type")
    if wanted is None:
        wanted = {bool: "boolean", int: "integer", float: "number", str: "string"}.get(type(like), "any")
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted != ["string"] and isinstance(value, str) and len(value) <= LONGEST_SCALAR:
        try:
            read = yaml.safe_load(value)
            # YAML 1.1 takes 1e-3 for a word; null and true are no numbers.
            value = float(value) if "number" in wanted and read is not None and not isinstance(read, bool) else read
        except (ValueError, yaml.YAMLError):
            pass
    accepted = {
        "boolean": isinstance(value, bool),
        "integer": _is_integer(value),
        "number": _is_number(value),
        "string": isinstance(value, str),
        "null": value is None,
        "any": True,
    }
    if not any(accepted[w] for w in wanted):
        raise UserError(f"{source}: {name} is {value!r:.200}; wanted {' or '.join(wanted)}")
    return value


def archive_section(config: dict, name: str) -> dict:
    """The section of archive ``name`` with the file's global keys laid over it.

    ``n_splits`` asks for k-fold, ``splits`` names a file of given splits.
    """
    section = copy.deepcopy(config["archives"][name])
    splits, n_splits, file = section["splits"], config.get("n_splits"), config.get("splits")
    if n_splits is not None and file is not None:
        raise UserError(f"n_splits is {n_splits} and splits is {file!r}; give one of the two")
    if n_splits is not None:
        splits.update(method="kfold", n_splits=n_splits, file=None)
    if file is not None:
        splits.update(method="file", file=file)
    if splits["method"] == "file" and not splits["file"]:
        raise UserError(f"archives.{name}.splits: method is file but file is empty; name the file of splits")
    if splits["file"] and splits["method"] != "file":
        raise UserError(
            f"archives.{name}.splits: file is {splits['file']!r}, but method is {splits['method']}; set method: file, or leave file out"
        )
    return section
