"""MMAR configurations: read, substitute variables, override, and say what they mean. No torch.

The format is NVIDIA Clara Train 4's ``config_train.json``: top-level variables, and the sections
``train`` and ``validate`` of components ``{"name", "args"}``. Nothing in a configuration is evaluated.
"""

from __future__ import annotations

import re
from typing import Any

from .config import check, nearest, typed
from .errors import Problems, UserError
from .forms import is_code, is_form, refuse_references, without_given
from .grammar import class_name, is_active, read_component, read_components, with_references
from .multi_label import is_multi_label
from .scoring import early_stopping, read_metrics

VARIABLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
RUNTIME_VARIABLES = ("iterations", "steps_per_epoch")
"""Known when training starts: optimizer steps in all and in an epoch."""

# What a recipe may not decide, because it must not change what an archive holds or where.
LOCATIONS = ("DATA_ROOT", "DATASET_JSON", "MMAR_EVAL_OUTPUT_PATH", "MMAR_CKPT_DIR", "MMAR_CKPT", "MMAR_TORCHSCRIPT")
SPEED_UPS = ("batched_augmentation", "channels_last", "compile", "cuda_graphs", "tf32")
"""Variables that make training faster and give other bytes, so the settings have them only where they are set."""
LONGEST_TEXT = 4096
"""Characters of a text with variables in it: a variable within texts within lists could else become any number."""
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
POST_OURS = {"SaveImaged", "SaveClassificationd", "Invertd"}
"""Post-transforms whose part the evaluation plays itself."""
ONLY_SHOW = {"ClassificationSaver", "SmartCacheHandler", "TensorBoardImageHandler"}
"""Handlers that change no result, and are not built: they show, save what is saved anyway, or serve another loader."""
ONLY_WATCH = {"GarbageCollector", "MarkHandler", "MetricLogger", "RangeHandler", "RangePopHandler", "RangePushHandler"}
"""Handlers that change no result; validation has no engine of its own to attach them to."""


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


def _forbid_code(value: Any, where: str, problems: list[str], key: str | None = None) -> None:
    if isinstance(value, dict):
        for name, child in value.items():
            if name == "_target_":
                problems.append(f'{where}: \'_target_\' is not read; write "name" and "args"')
            _forbid_code(child, f"{where}.{name}", problems, name)
    elif isinstance(value, list):
        for i, child in enumerate(value):
            _forbid_code(child, f"{where}[{i}]", problems, key)
    elif isinstance(value, str) and is_code(value) and not is_form(key, value):
        problems.append(f"{where}: {value!r} is code, which is never run; write the plain value")


def _handlers(section: dict, where: str) -> dict[str, dict]:
    merged: dict[str, dict] = {}
    for handler in read_components(section, "handlers", where):
        merged.setdefault(handler.get("name", handler.get("path", "")), {}).update(handler["args"])
    return merged


def _refuse_validation_handlers(validate: dict, source: str) -> None:
    known = OUR_HANDLERS | ONLY_SHOW | ONLY_WATCH
    foreign = [n for n in _handlers(validate, source) if n not in known]
    if foreign:
        raise UserError(
            f"{source} validate.handlers: {', '.join(foreign)} would not be called; validation takes only "
            f"{', '.join(sorted(known))}; leave it out, or attach it to train.handlers"
        )


def _built_handlers(train: dict, source: str) -> list[dict]:
    """Those that the trainer does not play itself, made of plain values, with the ``rank`` of the only process that has one."""
    found, where = [], f"{source} train.handlers"
    for raw in filter(is_active, train["handlers"]):
        handler = read_component(raw, where)
        if handler.get("name") in OUR_HANDLERS | ONLY_SHOW:
            continue
        refuse_references(handler["args"], f"{where} {class_name(handler)}")
        found.append(handler | ({"rank": typed("rank", raw["rank"], 0, where)} if "rank" in raw else {}))
    return found


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


PARTS = {
    "train": {
        "lr_scheduler",
        "dataset",
        "inferer",
        "post_transforms",
        "metrics",
        "key_metric",
        "additional_metrics",
        "trainer",
    },
    "validate": {"handlers", "metrics", "key_metric", "additional_metrics"},
}
"""What each section may have beside these."""
ENGINES = {"trainer": "SupervisedTrainer", "evaluator": "SupervisedEvaluator"}
"""The one that each engine is."""
DATASETS = {
    *("Dataset", "CacheDataset", "CacheNTransDataset", "LMDBDataset", "PersistentDataset", "SmartCacheDataset"),
    *("ArrayDataset", "GDSDataset"),
}
"""Datasets that hold the cases of a list as they are; how they keep them, the cache of prepared cases does instead."""


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
        known = keys.keys() | PARTS[section]
        if unknown := [k for k in found if k not in known]:
            raise UserError(
                f"{source}: section '{section}' has '{unknown[0]}', which nothing here does; {nearest(unknown[0], list(known))}"
            )


def _check_engines(sections: dict, source: str) -> None:
    """Refuse what would train, evaluate or read otherwise than is done here."""
    for section, parts in sections.items():
        for part, known in {**{k: {v} for k, v in ENGINES.items()}, "dataset": DATASETS}.items():
            component = parts.get(part)
            if not isinstance(component, dict) or not ({"name", "path"} & component.keys()):
                continue
            if (name := class_name(component)) not in known or "path" in component:
                raise UserError(
                    f"{source}: {f'{section}.{part}'.lstrip('.')} is {component.get('path', name)!r:.200}; wanted {' or '.join(sorted(known))}"
                )


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


def effective_variables(conf: dict, environment: dict, source: str) -> dict[str, Any]:
    """Every variable by name, typed, as it counts; without where things are."""
    variables = _variables(conf, environment, source)
    return {name: value for name, value in sorted(variables.items()) if name not in LOCATIONS}


def _no_code(conf: dict, source: str) -> None:
    problems: list[str] = []
    _forbid_code(conf, source, problems)
    if problems:
        raise Problems(source, problems)


def _counts(train: dict, dataloader: dict, handlers: dict[str, dict], variables: dict, source: str) -> dict:
    """Values that a component of the configuration may say otherwise than its variables do."""
    trainer = train.get("trainer") if isinstance(train.get("trainer"), dict) else {}
    engine = read_component({"name": "SupervisedTrainer", **trainer}, f"{source} train.trainer")["args"]
    loading = dataloader["args"]
    found = {
        "epochs": engine.get("max_epochs", variables["epochs"]),
        "amp": engine.get("amp", variables["amp"]),
        "batch_size": loading.get("batch_size", variables["batch_size"]),
        "num_workers": loading.get("num_workers", variables["num_workers"]),
        "save_interval": handlers.get("CheckpointSaver", {}).get("save_interval") or variables["save_interval"],
        "num_interval_per_valid": handlers.get("ValidationHandler", {}).get(
            "interval", variables["num_interval_per_valid"]
        ),
    }
    check(found, "recipe", f"{source} trainer, dataloader and handlers")
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
    sections = substitute(sections, variables, source)
    _no_code(sections, source)  # a variable's value is no more to be run
    _check_engines(sections, source)
    train, validate = sections["train"], sections["validate"]
    validate = with_references(validate, train, f"{source} validate")
    _refuse_validation_handlers(validate, source)
    handlers, validate_handlers = _handlers(train, source), _handlers(validate, source)
    schedule = handlers.get("LrScheduleHandler")
    dataloader = read_component(train["dataloader"], f"{source} train.dataloader")
    counts = _counts(train, dataloader, handlers, variables, source)
    stopping = handlers.get("EarlyStopHandler", validate_handlers.get("EarlyStopHandler"))
    scored = validation_settings(validate, f"{source} validate")
    settings = {
        **{k: variables[k] for k in ("seed", "deterministic", "threads", "clip_grad_norm", "clip_grad_value")},
        **{k: counts[k] for k in ("epochs", "amp", "batch_size", "num_workers", "save_interval")},
        "drop_last": typed(
            "drop_last", dataloader["args"].get("drop_last", False), False, f"{source} train.dataloader"
        ),
        **({"processes": variables["processes"]} if variables["multi_gpu"] and variables["processes"] > 1 else {}),
        **{k: variables[k] for k in SPEED_UPS if variables[k] or (k == "tf32" and variables[k] is False)},
        "validation_interval": counts["num_interval_per_valid"],
        "early_stopping": early_stopping(stopping, validate, source),
        "loss": read_component(train["loss"], f"{source} train.loss"),
        "optimizer": without_given(read_component(train["optimizer"], f"{source} train.optimizer")),
        "lr_scheduler": without_given(read_component(train["lr_scheduler"], f"{source} train.lr_scheduler"))
        if schedule is not None and train.get("lr_scheduler")
        else None,
        "lr_epoch_level": typed(
            "epoch_level", (schedule or {}).get("epoch_level", True), True, f"{source} LrScheduleHandler"
        ),
        "model": read_component(train["model"], f"{source} train.model"),
        "pre_transforms": read_components(train, "pre_transforms", f"{source} train"),
        "inferer": read_component(train.get("inferer", {"name": "SimpleInferer"}), f"{source} train.inferer"),
        "handlers": _built_handlers(train, source),
        "validate": scored,
    }
    for part in ("loss", "optimizer", "lr_scheduler", "model", "pre_transforms", "inferer"):
        refuse_references(settings[part], f"{source} train.{part}")
    _refuse_together(settings, source)
    return settings


def _refuse_together(settings: dict, source: str) -> None:
    if settings.get("cuda_graphs") and processes_of(settings) > 1:
        raise UserError(
            f"{source}: cuda_graphs is true, and multi_gpu too: what processes send one another cannot be recorded; set one of them to false"
        )


def validation_settings(section: dict, where: str) -> dict:
    """What scoring cases depends on, of a section whose variables and references are put in.

    Raises
    ------
    UserError
        For anything that is missing or not built from plain values.
    """
    settings = {
        "pre_transforms": read_components(section, "pre_transforms", where),
        "inferer": read_component(section.get("inferer", {"name": "SimpleInferer"}), f"{where}.inferer"),
        "post_transforms": read_components(section, "post_transforms", where),
        "metrics": read_metrics(section, where),
    }
    refuse_references(settings["pre_transforms"], f"{where}.pre_transforms")
    refuse_references(settings["inferer"], f"{where}.inferer")
    refuse_references(
        [c for c in settings["post_transforms"] if c.get("name") not in POST_OURS], f"{where}.post_transforms"
    )
    return settings


def evaluation_settings(conf: dict, environment: dict, source: str) -> dict:
    """As :func:`validation_settings`, of a ``config_validation.json``, which is one section with its variables.

    Raises
    ------
    UserError, Problems
        For anything that is missing, unknown or code.
    """
    if missing := [key for key in ("pre_transforms", "inferer", "post_transforms") if key not in conf]:
        raise UserError(f"{source}: lacks {', '.join(missing)}")
    section = {key: value for key, value in conf.items() if isinstance(value, dict | list) and key != "model"}
    _no_code(section, source)
    section = substitute(section, _variables(conf, environment, source), source)
    _no_code(section, source)
    _check_engines({"": section}, source)
    return validation_settings(section, source)


def processes_of(settings: dict) -> int:
    """How many processes train a split together; several decide the weights, so only then the settings say so."""
    return settings.get("processes", 1)


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
        "model": read_component(held["model"], f"{source} model"),
        "validate": {
            "inferer": read_component(validate.get("inferer"), f"{where}.inferer"),
            **{key: read_components(validate, key, where) for key in ("pre_transforms", "post_transforms")},
        },
    }
