"""What a configuration says that has no part in what is done here: told, and not passed over in silence. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .grammar import class_name
from .recipe import ONLY_SHOW, ONLY_WATCH, VARIABLE

READ = {"train", "validate"}
"""The lists and objects of the top level that are read."""
IN_TRAINING = "metrics of the training batches are not computed; those of validate are, in every validated epoch"
VARIABLES = {
    "use_gpu": (False, "the device is chosen by device in config.yaml"),
    "cudnn_benchmark": (True, "deterministic false lets cuDNN choose its algorithms"),
}
"""Clara's variables: the value that asks for something that is not done by it, and what does it."""


def without_effect(conf: dict) -> list[str]:
    """A line for each thing in a ``config_train.json`` that changes nothing here.

    Parameters
    ----------
    conf:
        One that :func:`~armarium.recipe.training_settings` takes.
    """
    train, validate = conf["train"], conf["validate"]
    return list(
        dict.fromkeys(
            f"{where}: {words}"
            for where, words in (
                *_top(conf),
                *_training(train),
                *_handlers("train", train),
                *_handlers("validate", validate),
            )
        )
    )


def _top(conf: dict) -> Iterator[tuple[str, str]]:
    for name, value in conf.items():
        if isinstance(value, dict | list) and name not in READ:
            yield name, "is not read; the top level has variables and the sections train and validate"
    for name, (value, words) in VARIABLES.items():
        if conf.get(name) is value:
            yield name, f"has no effect; {words}"


def _enabled(components: Any) -> Iterator[dict]:
    for component in components if isinstance(components, list) else [components]:
        if isinstance(component, dict) and component.get("disabled") not in (True, "true", "True"):
            yield component


def _training(train: dict) -> Iterator[tuple[str, str]]:
    for key in ("metrics", "key_metric", "additional_metrics"):
        if list(_enabled(train.get(key))):
            yield f"train.{key}", IN_TRAINING
    handlers = {class_name(h) for h in _enabled(train["handlers"]) if {"name", "path"} & h.keys()}
    if train.get("lr_scheduler") and "LrScheduleHandler" not in handlers:
        yield "train.lr_scheduler", "has no effect without a LrScheduleHandler in train.handlers"
    loading = train["dataloader"].get("args", {})
    if loading.get("shuffle") is False:
        yield "train.dataloader", "shuffle false has no effect; cases are shuffled anew each epoch"
    if extra := [k for k in ("sampler", "batch_sampler", "collate_fn") if loading.get(k) is not None]:
        yield "train.dataloader", f"{', '.join(extra)} has no effect; cases are shuffled anew each epoch"
    for name, of in (("max_epochs", "epochs"), ("amp", "amp")):
        value = _args(train.get("trainer")).get(name)
        if value is not None and not (isinstance(value, str) and VARIABLE.search(value)):
            yield f"train.trainer.{name}", f"is {value!r:.40}, over the variable {of}; write {{{of}}} to have it decide"


def _args(component: Any) -> dict:
    args = component.get("args") if isinstance(component, dict) else None
    return args if isinstance(args, dict) else {}


def _handlers(section: str, parts: dict) -> Iterator[tuple[str, str]]:
    unbuilt = ONLY_SHOW if section == "train" else ONLY_SHOW | ONLY_WATCH
    for handler in _enabled(parts.get("handlers", [])):
        if handler.get("name") in unbuilt:
            yield f"{section}.handlers", f"{handler['name']} is left out; it changes no result"
