"""The forms of Python that MMAR configurations write in texts, recognised as forms. Nothing is evaluated. No torch.

Clara Train 4 evaluates texts that start with ``#`` or ``lambda``, MONAI those with ``$``. Real configurations use them for
a handful of things: what of the engine's output a metric or handler takes, which metric decides on stopping, and the
network's parameters for the optimizer. Here these are patterns; whatever else looks like code is refused.
"""

from __future__ import annotations

import re
from typing import Any

from .errors import UserError

PARAMETERS = {"#@model.parameters()", "$@model.parameters()", "@model.parameters()"}
"""The network's parameters, which the trainer gives the optimizer by itself."""
GIVEN = {"params": PARAMETERS, "optimizer": {"@optimizer"}}
"""Arguments that the trainer gives, and how a configuration asks for them."""
METRIC_INPUT = ("pred", "label")

_KEY = r"""(?:'(\w+)'|"(\w+)")"""
_LAMBDA = re.compile(r"lambda\s+([A-Za-z_]\w*)\s*:\s*(.*)", re.DOTALL)
_FROM_ENGINE = re.compile(
    rf"[#$]\s*(?:monai\.handlers\.)?from_engine\(\s*[\[(]?\s*({_KEY}(?:\s*,\s*{_KEY})*)\s*,?\s*[\])]?"
    r"\s*(?:,\s*(?:first\s*=\s*)?(?:True|False)\s*)?\)"
)
_NOTHING = re.compile(r"[#$]\s*(?:monai\.handlers\.)?ignore_data")
_STOP_BY_METRIC = re.compile(rf"[#$]\s*(?:monai\.handlers\.)?stopping_fn_from_metric\(\s*{_KEY}\s*\)")
_STOP_BY_LOSS = re.compile(r"[#$]\s*(?:monai\.handlers\.)?stopping_fn_from_loss\(\s*\)")


def _keys(text: str) -> tuple[str, ...]:
    return tuple(a or b for a, b in re.findall(_KEY, text))


def _item(variable: str) -> str:
    """``x['k']``, ``x[0]['k']`` and ``[i['k'] for i in x]``."""
    v = re.escape(variable)
    return rf"(?:{v}(?:\[0\])?\[\s*{_KEY}\s*\]|\[\s*(\w+)\[\s*{_KEY}\s*\]\s+for\s+\w+\s+in\s+{v}\s*\])"


def picked(text: Any) -> tuple[str, ...] | None:
    """The items that a form takes out of the engine's output or batch; None if it is no such form.

    >>> picked("lambda x: (x['pred'], x['label'])")
    ('pred', 'label')
    >>> picked("#monai.handlers.from_engine(['loss'], first=True)")
    ('loss',)
    >>> picked("lambda x: None")
    ()
    """
    if not isinstance(text, str):
        return None
    text = text.strip()
    if _NOTHING.fullmatch(text):
        return ()
    if found := _FROM_ENGINE.fullmatch(text):
        return _keys(found[1])
    if not (found := _LAMBDA.fullmatch(text)):
        return None
    variable, body = found[1], found[2].strip()
    if body == "None":
        return ()
    item = _item(variable)
    if re.fullmatch(item, body) or re.fullmatch(rf"[(\[]\s*{item}(?:\s*,\s*{item})*\s*,?\s*[)\]]", body):
        return _keys(body)
    return None


def stops_by(text: Any) -> str | None:
    """The log label of the metric that a ``score_function`` takes, ``loss`` for the loss; None if it is no such form."""
    if not isinstance(text, str):
        return None
    text = text.strip()
    if _STOP_BY_LOSS.fullmatch(text):
        return "loss"
    if found := _STOP_BY_METRIC.fullmatch(text):
        return found[1] or found[2]
    if (found := _LAMBDA.fullmatch(text)) and (
        metric := re.fullmatch(rf"{re.escape(found[1])}\.state\.metrics\[\s*{_KEY}\s*\]", found[2].strip())
    ):
        return metric[1] or metric[2]
    return None


def is_form(key: str | None, text: str) -> bool:
    """Whether ``text`` is one of the forms that the argument ``key`` may have."""
    if key == "params":
        return text in PARAMETERS
    if key == "score_function":
        return stops_by(text) is not None
    return key in ("output_transform", "batch_transform") and picked(text) is not None


def is_code(text: str) -> bool:
    """Whether Clara or MONAI would evaluate ``text``."""
    return text.startswith(("$", "#", "%")) or text.strip().startswith("lambda")


def without_given(component: dict) -> dict:
    """An optimizer or schedule without the arguments that the trainer gives it; of listed schedules each."""
    args = {k: v for k, v in component["args"].items() if not (isinstance(v, str) and v in GIVEN.get(k, ()))}
    if isinstance(args.get("schedulers"), list):
        args["schedulers"] = [
            without_given(c) if isinstance(c, dict) and isinstance(c.get("args"), dict) else c
            for c in args["schedulers"]
        ]
    return {**component, "args": args}


def without_output_transform(component: dict, where: str) -> dict:
    """A metric without the form that takes prediction and label out of the engine's output: it is given these two.

    Raises
    ------
    UserError
        If the form takes anything else.
    """
    args = dict(component["args"])
    text = args.pop("output_transform", None)
    if text is not None and picked(text) != METRIC_INPUT:
        raise UserError(
            f"{where}: output_transform is {text!r:.200}; a metric is given the prediction and the label: write "
            "lambda x: (x['pred'], x['label']), or leave it out"
        )
    return {**component, "args": args}


def refuse_references(value: Any, where: str) -> None:
    """Refuse what stands for an object of the running engine, where a component is built from values alone.

    Raises
    ------
    UserError
        For the first ``@reference`` or form.
    """
    if isinstance(value, dict):
        for key, child in value.items():
            refuse_references(child, f"{where}.{key}")
    elif isinstance(value, list):
        for i, child in enumerate(value):
            refuse_references(child, f"{where}[{i}]")
    elif isinstance(value, str) and (re.fullmatch(r"@[A-Za-z_][\w.#]*(?:\(\))?", value) or is_code(value)):
        raise UserError(
            f"{where} is {value!r:.200}; this component is built from plain values alone; write one, or leave it out"
        )
