"""Build a recipe before it costs anything, and describe its network."""

from __future__ import annotations

import copy

import torch

from .components import build, build_lr_scheduler, substitute_runtime
from .dataset import REGRESSION
from .errors import UserError
from .evaluation import POST_OURS, Score
from .export import first_output
from .network import build_network, make_deterministic, one_number_a_case
from .transforms import build_transforms, split_at_first_random


def check_components(settings: dict, class_names: dict[int, str]) -> torch.nn.Module:
    """Build every component that a recipe names.

    Parameters
    ----------
    settings:
        The effective training configuration.
    class_names:
        The dataset's classes, which the network's output channels must match; a regression has none.

    Returns
    -------
    torch.nn.Module
        The network.

    Raises
    ------
    UserError
        For the first component that cannot be built, random validation transforms, or another
        number of output channels than classes.
    """
    make_deterministic(settings)
    allow, validate = settings["allow"], settings["validate"]
    network = build_network(settings)
    known = {"iterations": 100, "steps_per_epoch": 10}
    optimizer = build("optimizer", substitute_runtime(settings["optimizer"], known), allow, network.parameters())
    if settings["lr_scheduler"]:
        build_lr_scheduler(substitute_runtime(settings["lr_scheduler"], known), optimizer, allow)
    build("loss", settings["loss"], allow)
    build_transforms(settings["pre_transforms"], allow)
    _, random = split_at_first_random(build_transforms(validate["pre_transforms"], allow))
    if random:
        raise UserError(f"validate.pre_transforms: {type(random[0]).__name__} is random; validation must not be")
    build_transforms([c for c in validate["post_transforms"] if c.get("name") not in POST_OURS], allow)
    for kind, component in (
        ("inferer", settings["inferer"]),
        ("inferer", validate["inferer"]),
        *(("handler", h) for h in settings["handlers"]),
    ):
        build(kind, component, allow)
    for metric in validate["metrics"]:
        Score(metric, allow)
    _check_outputs(settings, class_names)
    return network.network


def _check_outputs(settings: dict, class_names: dict[int, str]) -> None:
    args = settings["model"]["args"]
    if settings["task"] == REGRESSION:
        return
    for key in ("out_channels", "num_classes"):
        if key in args and args[key] != len(class_names):
            raise UserError(
                f"train.model.args.{key} is {args[key]}, but the dataset has {len(class_names)} classes: {list(class_names.values())}"
            )


def check_regression(network: torch.nn.Module, input_shape: list[int]) -> None:
    """Refuse a network that gives other than one number a case.

    Computes shapes only (torch's meta device). A network that does not take such an input is left to training, which
    knows the images' grid and refuses it with its first batch.

    Parameters
    ----------
    network:
        The recipe's.
    input_shape:
        ``[1, channels, *grid]``.

    Raises
    ------
    UserError
        If its output has another shape.
    """
    shadow = copy.deepcopy(network).to("meta").eval()
    try:
        with torch.no_grad():
            output = first_output(shadow(torch.empty(input_shape, device="meta")))
    except Exception:  # whatever a network thinks of a grid that it was not made for
        return
    one_number_a_case(output.shape, 1)


def layer_table(network: torch.nn.Module) -> str:
    """One line per module with weights of its own: name, class, parameters; then the totals."""
    rows = [("layer", "type", "parameters")]
    for name, module in network.named_modules():
        count = sum(p.numel() for p in module.parameters(recurse=False))
        if count:
            rows.append((name or "(root)", type(module).__name__, str(count)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    total = sum(p.numel() for p in network.parameters())
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return "\n".join([*lines, "", f"parameters: {total}", f"trainable:  {trainable}"]) + "\n"
