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
from .multi_label import is_multi_label

VARIABLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
RUNTIME_VARIABLES = ("iterations", "steps_per_epoch")
"""Known when training starts: optimizer steps in all and in an epoch."""

# What a recipe may not decide, because it must not change what an archive holds or where.
LOCATIONS = ("DATA_ROOT", "DATASET_JSON", "MMAR_EVAL_OUTPUT_PATH", "MMAR_CKPT_DIR", "MMAR_CKPT", "MMAR_TORCHSCRIPT")
METRIC_NAME = re.compile(r"[A-Za-z0-9]+")
CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DOTTED_PATH = re.compile(rf"{CLASS_NAME.pattern}(\.{CLASS_NAME.pattern})+")
LONGEST_TEXT = 4096
"""Characters of a text with variables in it: a variable within texts within lists could else become any number."""
SMALLER_IS_BETTER = {
    "loss",
    "CalibrationError",
    "HausdorffDistance",
    "SurfaceDistance",
    "MeanSquaredError",
    "MeanAbsoluteError",
    "RootMeanSquaredError",
    "CanberraMetric",
    "FractionalAbsoluteError",
    "GeometricMeanAbsoluteError",
    "GeometricMeanRelativeAbsoluteError",
    "ManhattanDistance",
    "MaximumAbsoluteError",
    "MeanAbsoluteRelativeError",
    "MedianAbsoluteError",
    "MedianAbsolutePercentageError",
    "MedianRelativeAbsoluteError",
    "WaveHedgesDistance",
}
BEST_NEAR_ZERO = {"FractionalBias", "MeanError", "MeanNormalizedBias"}
"""Signed errors, of which neither the smallest nor the largest is best."""
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
    length = len(value) + sum(len(str(variables.get(name, ""))) for name in VARIABLE.findall(value))
    if "{" in value and length > LONGEST_TEXT:
        raise UserError(f"{where}: with its variables a text of {length:,} characters, wanted at most {LONGEST_TEXT}")
    return VARIABLE.sub(lambda m: str(variables.get(m[1], m[0])), value)


def _forbid_code(value: Any, where: str, problems: list[str]) -> None:
    if isinstance(value, dict):
        for key, child in value.items():
            if key == "_target_":
                problems.append(f'{where}: \'_target_\' is not read; write "name" and "args"')
            _forbid_code(child, f"{where}.{key}", problems)
    elif isinstance(value, list):
        for i, child in enumerate(value):
            _forbid_code(child, f"{where}[{i}]", problems)
    elif isinstance(value, str) and (value.startswith(("$", "#", "%")) or value.strip().startswith("lambda")):
        if value not in ("#@model.parameters()", "$@model.parameters()", "@model.parameters()"):
            problems.append(f"{where}: {value!r} is code, which is never run; write the plain value")


def _active(component: Any) -> bool:
    return not (isinstance(component, dict) and component.get("disabled") in (True, "true", "True"))


def _components(section: dict, key: str, where: str, named_by: tuple[str, ...] = ("name", "path")) -> list[dict]:
    listed = section.get(key, [])
    if not isinstance(listed, list):
        raise UserError(f"{where}.{key} is {listed!r:.80}; wanted a list of components")
    found = [(_active(c), _component(c, f"{where}.{key}", named_by)) for c in listed]
    return [component for active, component in found if active]


def _component(value: Any, where: str, named_by: tuple[str, ...] = ("name", "path")) -> dict:
    if not isinstance(value, dict) or not (set(named_by) & value.keys()):
        raise UserError(f'{where}: found {value!r}; wanted a component {{"name": …, "args": {{…}}}}')
    args = value.get("args", {})
    if not isinstance(args, dict):
        raise UserError(f"{where}: args is {args!r}; wanted an object of named arguments")
    kept = {k: value[k] for k in named_by if k in value}
    if not all(isinstance(v, str) for v in kept.values()):
        raise UserError(f"{where}: found {kept!r}; wanted a text for the name")
    if not CLASS_NAME.fullmatch(kept.get("name", "_")) or not DOTTED_PATH.fullmatch(kept.get("path", "_._")):
        raise UserError(f"{where}: found {kept!r}; wanted the name of a class, or the dotted path of one")
    return {**kept, "args": args}


def class_name(component: dict) -> str:
    """The name of the class that a component asks for."""
    return component.get("name") or component["path"].rpartition(".")[2]


def _by_reference(listed: list[dict], named: dict[str, dict], where: str) -> Iterator[dict]:
    for component in listed:
        if "ref" not in component:
            yield component
        elif component["ref"] in named:
            yield named[component["ref"]]
        else:
            raise UserError(
                f"{where}: ref '{component['ref']}' names no train component; {nearest(component['ref'], list(named))}"
            )


def _handlers(section: dict, where: str) -> dict[str, dict]:
    merged: dict[str, dict] = {}
    for handler in _components(section, "handlers", where):
        merged.setdefault(handler.get("name", handler.get("path", "")), {}).update(handler["args"])
    return merged


def _refuse_validation_handlers(validate: dict, source: str) -> None:
    foreign = [n for n in _handlers(validate, source) if n not in OUR_HANDLERS]
    if foreign:
        raise UserError(
            f"{source} validate.handlers: {', '.join(foreign)} would not be called; validation takes only "
            f"{', '.join(sorted(OUR_HANDLERS))}; leave it out, or attach it to train.handlers"
        )


def metric_name(component: dict) -> str:
    """A metric's name in tables and paths: its label if that has only letters and digits, else its class."""
    label = str(component.get("log_label", ""))
    name = label if METRIC_NAME.fullmatch(label) else component.get("name", component.get("path", "").rsplit(".")[-1])
    if not METRIC_NAME.fullmatch(name):
        raise UserError(f"metric '{name}': wanted letters and digits only (MAPS paths); give it such a log_label")
    return name


def _metric(raw: Any, where: str) -> dict:
    component = _component(raw, f"{where}.key_metric")
    name = metric_name(raw)
    if "mode" not in raw and raw.get("name") in BEST_NEAR_ZERO:
        raise UserError(
            f"{where}: metric {name}: its best value is 0, so neither the smallest nor the largest is kept; take an error "
            "without sign, or say min or max as its mode"
        )
    mode = raw.get("mode", "min" if {name, raw.get("name")} & SMALLER_IS_BETTER else "max")
    if mode not in ("min", "max"):
        raise UserError(f"{where}: metric {name}: mode is {mode!r}; wanted min or max")
    return {"label": name, "mode": mode, **component}


def _metrics(section: dict, where: str) -> list[dict]:
    keyed, extra = section.get("key_metric", section.get("metrics")) or [], section.get("additional_metrics") or []
    keyed, extra = ([m for m in (part if isinstance(part, list) else [part]) if _active(m)] for part in (keyed, extra))
    if not keyed:
        raise UserError(f"{where}: no key_metric; checkpoints are selected by one")
    found = [_metric(raw, where) for raw in (*keyed, *extra)]
    labels = [m["label"] for m in found]
    repeated = {x for x in labels if labels.count(x) > 1 or x == "loss"}
    if repeated:
        raise UserError(
            f"{where}: two metrics are named {sorted(repeated)}; give each its own log_label of letters and digits"
        )
    return found


def _early_stopping(args: dict | None, labels: list[str], source: str) -> dict | None:
    """What an EarlyStopHandler asks for, checked before anything is trained."""
    if args is None:
        return None
    where = f"{source} EarlyStopHandler"
    patience = typed("patience", args.get("patience"), 1, where)
    margin = typed("min_delta", args.get("min_delta", 0.0), 0.0, where)
    if patience < 1 or margin < 0:
        raise UserError(f"{where}: patience is {patience}, min_delta is {margin}; wanted at least 1 and at least 0")
    if args.get("metric") and args["metric"] not in labels:
        raise UserError(f"{where}: no metric {args['metric']!r}; {nearest(args['metric'], labels)}")
    return {**args, "patience": patience, "min_delta": margin}


SECTIONS = {
    "train": {
        "loss": dict,
        "optimizer": dict,
        "model": dict,
        "pre_transforms": list,
        "dataloader": dict,
        "handlers": list,
    },
    "validate": {
        "pre_transforms": list,
        "dataset": dict,
        "dataloader": dict,
        "inferer": dict,
        "post_transforms": list,
        "evaluator": dict,
    },
}
"""What the MMAR format has in each section, and as what."""


def _check_sections(conf: dict, source: str) -> None:
    for section, keys in SECTIONS.items():
        found = conf.get(section)
        if not isinstance(found, dict):
            raise UserError(f"{source}: no section '{section}'")
        missing = [k for k in keys if k not in found]
        if missing:
            raise UserError(f"{source}: section '{section}' lacks {', '.join(missing)}")
        for key, kind in keys.items():
            if not isinstance(found[key], kind):
                wanted = "a list of components" if kind is list else "an object"
                raise UserError(f"{source}: {section}.{key} is {found[key]!r:.80}; wanted {wanted}")


def _variables(conf: dict, environment: dict, source: str) -> dict:
    """The variables, environment.json's over the configuration's, typed and within the schema's bounds."""
    own = check(variables_of(conf), "recipe", source)
    for where, variables in ((source, own), (f"environment.json beside {source}", environment)):
        if wrong := [k for k, v in variables.items() if isinstance(v, dict | list) or len(str(v)) > LONGEST_TEXT]:
            raise UserError(
                f"{where}: {wrong[0]} is {variables[wrong[0]]!r:.80}; wanted a number or a text of at most {LONGEST_TEXT} characters"
            )
    given = {k: typed(k, v, own.get(k, v), f"environment.json beside {source}") for k, v in environment.items()}
    return check({**own, **given}, "recipe", f"environment.json beside {source}")


def _no_code(conf: dict, source: str) -> None:
    problems: list[str] = []
    _forbid_code(conf, source, problems)
    if problems:
        raise Problems(source, problems)


def _counts(dataloader: dict, handlers: dict[str, dict], variables: dict, source: str) -> dict:
    """Numbers that a component of the configuration may say otherwise than its variables do."""
    found = {
        "batch_size": dataloader["args"].get("batch_size", variables["batch_size"]),
        "save_interval": handlers.get("CheckpointSaver", {}).get("save_interval") or variables["save_interval"],
        "num_interval_per_valid": handlers.get("ValidationHandler", {}).get(
            "interval", variables["num_interval_per_valid"]
        ),
    }
    check(found, "recipe", f"{source} dataloader and handlers")
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
    _check_sections(conf, source)
    sections = {k: conf[k] for k in ("train", "validate")}
    _no_code(sections, source)
    variables = _variables(conf, environment, source)
    if variables["multi_gpu"]:
        raise UserError(f"{source}: multi_gpu is true; this version trains a split on one device; set it to false")
    sections = substitute(sections, variables, source)
    _no_code(sections, source)  # a variable's value is no more to be run
    train, validate = sections["train"], sections["validate"]
    train_pre = _components(train, "pre_transforms", f"{source} train")
    named = {c.get("name", ""): c for c in train_pre}
    validate_pre = list(
        _by_reference(
            _components(validate, "pre_transforms", f"{source} validate", ("name", "path", "ref")), named, source
        )
    )
    _refuse_validation_handlers(validate, source)
    handlers, validate_handlers = _handlers(train, source), _handlers(validate, source)
    schedule = handlers.get("LrScheduleHandler")
    dataloader = _component(train["dataloader"], f"{source} train.dataloader")
    counts = _counts(dataloader, handlers, variables, source)
    metrics = _metrics(validate, f"{source} validate")
    stopping = handlers.get("EarlyStopHandler", validate_handlers.get("EarlyStopHandler"))
    return {
        **{
            k: variables[k]
            for k in ("seed", "deterministic", "threads", "epochs", "amp", "clip_grad_norm", "clip_grad_value")
        },
        "batch_size": counts["batch_size"],
        "drop_last": typed(
            "drop_last", dataloader["args"].get("drop_last", False), False, f"{source} train.dataloader"
        ),
        "num_workers": variables["num_workers"],
        "save_interval": counts["save_interval"],
        "validation_interval": counts["num_interval_per_valid"],
        "early_stopping": _early_stopping(stopping, ["loss", *(m["label"] for m in metrics)], source),
        "loss": _component(train["loss"], f"{source} train.loss"),
        "optimizer": _component(train["optimizer"], f"{source} train.optimizer"),
        "lr_scheduler": _component(train["lr_scheduler"], f"{source} train.lr_scheduler")
        if schedule is not None and train.get("lr_scheduler")
        else None,
        "lr_epoch_level": typed(
            "epoch_level", (schedule or {}).get("epoch_level", True), True, f"{source} LrScheduleHandler"
        ),
        "model": _component(train["model"], f"{source} train.model"),
        "pre_transforms": train_pre,
        "inferer": _component(train.get("inferer", {"name": "SimpleInferer"}), f"{source} train.inferer"),
        "handlers": [h for h in _components(train, "handlers", source) if h.get("name") not in OUR_HANDLERS],
        "validate": {
            "pre_transforms": validate_pre,
            "inferer": _component(validate.get("inferer", {"name": "SimpleInferer"}), f"{source} validate.inferer"),
            "post_transforms": _components(validate, "post_transforms", f"{source} validate"),
            "metrics": metrics,
        },
    }


def metric_names(settings: dict) -> list[str]:
    """All metrics of a training: the loss, the key metric, the others."""
    return ["loss", *(m["label"] for m in settings["validate"]["metrics"])]


def prediction_settings(held: Any, source: str) -> dict:
    """What a prediction needs of an archive's effective training configuration, whoever wrote that.

    Parameters
    ----------
    held:
        What ``config/effective/train.json`` has.
    source:
        The file, for messages.

    Raises
    ------
    UserError
        If something is missing or of another kind.
    """
    wanted = {"task": str, "deterministic": bool, "threads": int, "allow": list, "model": dict, "validate": dict}
    held = held if isinstance(held, dict) else {}
    if wrong := [key for key, kind in wanted.items() if type(held.get(key)) is not kind]:
        raise UserError(
            f"{source}: {', '.join(wrong)} missing or of another kind; ask Snakemake for any file of the archive, which writes it anew"
        )
    validate, where = held["validate"], f"{source} validate"
    return {
        **{key: held[key] for key in ("task", "deterministic", "allow")},
        "multi_label": is_multi_label(held),
        "threads": check({"threads": held["threads"]}, "recipe", source)["threads"],
        "model": _component(held["model"], f"{source} model"),
        "validate": {
            "inferer": _component(validate.get("inferer"), f"{where}.inferer"),
            **{key: _components(validate, key, where) for key in ("pre_transforms", "post_transforms")},
        },
    }
