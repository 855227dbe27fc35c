"""MMAR configurations: read, substitute variables, override, and say what they mean. No torch.

The format is NVIDIA Clara Train 4's ``config_train.json``: top-level variables, and the sections
``train`` and ``validate`` of components ``{"name", "args"}``. Nothing in a configuration is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .config import check, nearest, typed
from .errors import Problems, UserError

VARIABLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
RUNTIME_VARIABLES = ("iterations", "steps_per_epoch")
"""Known when training starts: optimizer steps in all and in an epoch."""

# What a recipe may not decide, because it must not change what an archive holds or where.
LOCATIONS = ("DATA_ROOT", "DATASET_JSON", "MMAR_EVAL_OUTPUT_PATH", "MMAR_CKPT_DIR", "MMAR_CKPT", "MMAR_TORCHSCRIPT")
METRIC_NAME = re.compile(r"[A-Za-z0-9]+")
SMALLER_IS_BETTER = {
    "loss",
    "HausdorffDistance",
    "SurfaceDistance",
    "MeanSquaredError",
    "MeanAbsoluteError",
    "RootMeanSquaredError",
}
OUR_HANDLERS = {
    "CheckpointLoader",
    "CheckpointSaver",
    "EarlyStopHandler",
    "LrScheduleHandler",
    "StatsHandler",
    "TensorBoardStatsHandler",
    "ValidationHandler",
    "MetricsSaver",
}
"""Handlers whose part the trainer plays itself; their arguments are read, they are not built."""


def variables_of(conf: dict) -> dict[str, Any]:
    """The top-level variables of a configuration."""
    return {k: v for k, v in conf.items() if not isinstance(v, (dict, list))}


def override(conf: dict, environment: dict, changes: dict) -> tuple[dict, dict]:
    """Put ``changes`` where the variable lives: environment.json if it has it, else the configuration.

    So what is set stays visible in the archive's own files, and a later edit of them counts.

    Returns
    -------
    The new configuration and the new environment.

    Raises
    ------
    UserError
        If no such variable exists or the value is of another type.
    """
    conf, environment = dict(conf), dict(environment)
    known = {**check({}, "recipe", "recipe"), **variables_of(conf), **environment}
    for name, value in changes.items():
        if name in LOCATIONS:
            raise UserError(f"set: {name} cannot be set; use data_root for data, the archive's own layout is fixed")
        if name not in known:
            raise UserError(f"set: no variable '{name}' in the recipe; {nearest(name, list(known))}")
        home = environment if name in environment else conf
        home[name] = typed(name, value, known[name])
    return conf, environment


def substitute(value: Any, variables: dict, where: str) -> Any:
    """Replace ``{NAME}`` by the variable's value; a string that is only ``{NAME}`` takes its type."""
    if isinstance(value, dict):
        return {k: substitute(v, variables, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [substitute(v, variables, f"{where}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str):
        return value
    for name in VARIABLE.findall(value):
        if name not in variables and name not in RUNTIME_VARIABLES:
            raise UserError(f"{where}: no value for {{{name}}}; {nearest(name, list(variables))}")
    whole = VARIABLE.fullmatch(value)
    if whole:
        return variables.get(whole[1]) or value if whole[1] in RUNTIME_VARIABLES else variables[whole[1]]
    return VARIABLE.sub(lambda m: str(variables.get(m[1], m[0])), value)


def _forbid_code(value: Any, where: str, problems: list[str]) -> None:
    if isinstance(value, dict):
        for key, child in value.items():
            if key == "_target_":
                problems.append(f"{where}: '_target_' is not read; write \"name\" and \"args\"")
            _forbid_code(child, f"{where}.{key}", problems)
    elif isinstance(value, list):
        for i, child in enumerate(value):
            _forbid_code(child, f"{where}[{i}]", problems)
    elif isinstance(value, str) and (value.startswith(("$", "#")) or value.strip().startswith("lambda")):
        if value not in ("#@model.parameters()", "$@model.parameters()", "@model.parameters()"):
            problems.append(f"{where}: {value!r} is code, which is never run; write the plain value")


def _active(component: Any) -> bool:
    return not (isinstance(component, dict) and component.get("disabled") in (True, "true", "True"))


def _components(section: dict, key: str, where: str) -> list[dict]:
    listed = section.get(key, [])
    listed = listed if isinstance(listed, list) else [listed]
    return [_component(c, f"{where}.{key}") for c in listed if _active(c)]


def _component(value: Any, where: str) -> dict:
    if not isinstance(value, dict) or not ({"name", "path", "ref"} & value.keys()):
        raise UserError(f'{where}: found {value!r}; wanted a component {{"name": …, "args": {{…}}}}')
    args = value.get("args", {})
    if not isinstance(args, dict):
        raise UserError(f"{where}: args is {args!r}; wanted an object of named arguments")
    kept = {k: value[k] for k in ("name", "path", "ref") if k in value}
    return {**kept, "args": args}


def _by_reference(listed: list[dict], named: dict[str, dict], where: str) -> Iterator[dict]:
    for component in listed:
        if "ref" not in component:
            yield component
        elif component["ref"] in named:
            yield named[component["ref"]]
        else:
            raise UserError(f"{where}: ref '{component['ref']}' names no train component; {nearest(component['ref'], list(named))}")


def _handlers(section: dict, where: str) -> dict[str, dict]:
    merged: dict[str, dict] = {}
    for handler in _components(section, "handlers", where):
        merged.setdefault(handler.get("name", handler.get("path", "")), {}).update(handler["args"])
    return merged


def metric_name(component: dict) -> str:
    """A metric's name in tables and paths: its label if that has only letters and digits, else its class."""
    label = str(component.get("log_label", ""))
    name = label if METRIC_NAME.fullmatch(label) else component.get("name", component.get("path", "").rsplit(".")[-1])
    if not METRIC_NAME.fullmatch(name):
        raise UserError(f"metric '{name}': wanted letters and digits only (MAPS paths); give it such a log_label")
    return name


def _metrics(section: dict, where: str) -> list[dict]:
    keyed = section.get("key_metric", section.get("metrics"))
    if not keyed:
        raise UserError(f"{where}: no key_metric; checkpoints are selected by one")
    keyed = keyed if isinstance(keyed, list) else [keyed]
    extra = section.get("additional_metrics", [])
    found = []
    for raw in [*keyed, *(extra if isinstance(extra, list) else [extra])]:
        if not _active(raw):
            continue
        name = metric_name(raw)
        mode = raw.get("mode", "min" if name in SMALLER_IS_BETTER or raw.get("name") in SMALLER_IS_BETTER else "max")
        found.append({"label": name, "mode": mode, **_component(raw, where)})
    labels = [m["label"] for m in found]
    repeated = {x for x in labels if labels.count(x) > 1 or x == "loss"}
    if repeated:
        raise UserError(f"{where}: two metrics are named {sorted(repeated)}; give each its own log_label of letters and digits")
    return found


def training_settings(conf: dict, environment: dict, source: str) -> dict:
    """What a split's training depends on, with every variable substituted.

    Parameters
    ----------
    conf:
        A ``config_train.json``.
    environment:
        The ``environment.json`` beside it; its values go over the configuration's.
    source:
        Name of the file, for messages.

    Returns
    -------
    dict
        Plain settings and components; free of locations, so that moving data retrains nothing.

    Raises
    ------
    UserError, Problems
        For anything that is missing, unknown or code.
    """
    for section in ("train", "validate"):
        if not isinstance(conf.get(section), dict):
            raise UserError(f"{source}: no section '{section}'")
    problems: list[str] = []
    _forbid_code({k: conf[k] for k in ("train", "validate")}, source, problems)
    if problems:
        raise Problems(source, problems)
    variables = {**check(variables_of(conf), "recipe", source), **environment}
    variables = {k: typed(k, v, v) for k, v in variables.items()}
    conf = substitute({k: conf[k] for k in ("train", "validate")}, variables, source)
    train, validate = conf["train"], conf["validate"]
    for section, keys in (("train", ("loss", "optimizer", "model", "pre_transforms", "dataloader")), ("validate", ("pre_transforms", "post_transforms"))):
        missing = [k for k in keys if k not in conf[section]]
        if missing:
            raise UserError(f"{source}: section '{section}' lacks {', '.join(missing)}")
    train_pre = _components(train, "pre_transforms", f"{source} train")
    named = {c.get("name", ""): c for c in train_pre}
    validate_pre = list(_by_reference(_components(validate, "pre_transforms", f"{source} validate"), named, source))
    handlers, validate_handlers = _handlers(train, source), _handlers(validate, source)
    schedule = handlers.get("LrScheduleHandler")
    return {
        **{k: variables[k] for k in ("seed", "deterministic", "threads", "epochs", "amp", "clip_grad_norm", "clip_grad_value")},
        "batch_size": train["dataloader"].get("args", {}).get("batch_size", variables["batch_size"]),
        "drop_last": bool(train["dataloader"].get("args", {}).get("drop_last", False)),
        "num_workers": variables["num_workers"],
        "save_interval": handlers.get("CheckpointSaver", {}).get("save_interval") or variables["save_interval"],
        "validation_interval": handlers.get("ValidationHandler", {}).get("interval", variables["num_interval_per_valid"]),
        "early_stopping": handlers.get("EarlyStopHandler") or validate_handlers.get("EarlyStopHandler"),
        "loss": _component(train["loss"], f"{source} train.loss"),
        "optimizer": _component(train["optimizer"], f"{source} train.optimizer"),
        "lr_scheduler": _component(train["lr_scheduler"], f"{source} train.lr_scheduler") if schedule is not None and train.get("lr_scheduler") else None,
        "lr_epoch_level": bool((schedule or {}).get("epoch_level", True)),
        "model": _component(train["model"], f"{source} train.model"),
        "pre_transforms": train_pre,
        "inferer": _component(train.get("inferer", {"name": "SimpleInferer"}), f"{source} train.inferer"),
        "handlers": [h for h in _components(train, "handlers", source) if h.get("name") not in OUR_HANDLERS],
        "validate": {
            "pre_transforms": validate_pre,
            "inferer": _component(validate.get("inferer", {"name": "SimpleInferer"}), f"{source} validate.inferer"),
            "post_transforms": _components(validate, "post_transforms", f"{source} validate"),
            "metrics": _metrics(validate, f"{source} validate"),
        },
    }


def metric_names(settings: dict) -> list[str]:
    """All metrics of a training: the loss, the key metric, the others."""
    return ["loss", *(m["label"] for m in settings["validate"]["metrics"])]
