"""Build a recipe before it costs anything, and describe its network."""

from __future__ import annotations

import copy

import torch

from .components import build, build_lr_scheduler, build_optimizer, substitute_runtime
from .dataset import REGRESSION, SEGMENTATION
from .errors import UserError
from .evaluation import SET_METRICS, Score
from .export import first_output
from .network import build_network, make_deterministic, one_number_a_case
from .recipe import POST_OURS
from .transforms import build_transforms, components_at_work, split_at_first_random


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
    optimizer = build_optimizer(substitute_runtime(settings["optimizer"], known), network.parameters(), allow)
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


def check_regression(settings: dict, network: torch.nn.Module, input_shape: list[int]) -> None:
    """Refuse a recipe whose network gives other than one number a case, or whose loss or metrics take no such numbers.

    Parameters
    ----------
    settings:
        The effective training configuration.
    network:
        The recipe's.
    input_shape:
        ``[1, channels, *grid]``.

    Raises
    ------
    UserError
        For the first of them.
    """
    _check_one_output(network, input_shape)
    targets = torch.tensor([[0.5], [1.0], [2.5]])
    with components_at_work("train.loss, on one number a case"):
        _check_loss(build("loss", settings["loss"], settings["allow"]), targets)
    for metric in settings["validate"]["metrics"]:
        _check_metric(Score(metric, settings["allow"]), targets.double())


def _check_loss(loss: torch.nn.Module, targets: torch.Tensor) -> None:
    """Refuse a loss that is none of numbers: those of classes take them too, and then train to nothing."""
    least, *others = (loss(targets + error, targets) for error in (0.0, -0.5, 0.5))
    if least.shape != ():
        raise UserError(f"train.loss: gives {list(least.shape)} for a batch, wanted one value; set reduction to mean")
    if not all(least < other for other in others):
        raise UserError(
            f"train.loss: {type(loss).__name__} is not smallest where the network gives the targets; a regression "
            "takes MSELoss, L1Loss, SmoothL1Loss, HuberLoss or the like"
        )


def _check_metric(score: Score, targets: torch.Tensor) -> None:
    if type(score.function).__name__ in SET_METRICS:
        raise UserError(
            f"metric {score.label}: is of classes; a regression takes MeanAbsoluteError, MeanSquaredError, R2Score or the like"
        )
    with components_at_work(f"metric {score.label}, on one number a case"):
        for target in targets:
            score.add(target[None] + 0.5, target[None], target[None], ())
    score.of_set()


def _check_one_output(network: torch.nn.Module, input_shape: list[int]) -> None:
    """By shapes alone (torch's meta device).

    A network that does not take such an input is left to training, which knows the images' grid and refuses it with its
    first batch.
    """
    shadow = copy.deepcopy(network).to("meta").eval()
    try:
        with torch.no_grad():
            output = first_output(shadow(torch.empty(input_shape, device="meta")))
    except Exception:  # whatever a network thinks of a grid that it was not made for
        return
    one_number_a_case(output.shape, 1)


def check_multi_label(settings: dict) -> None:
    """Refuse a recipe that takes one class of several, where a case or a voxel may have them together.

    Raises
    ------
    UserError
        For the first part that does.
    """
    _check_decisions(settings)
    for where, component in (
        ("train.loss", settings["loss"]),
        *((f"metric {m['label']}", m) for m in settings["validate"]["metrics"]),
    ):
        if component["args"].get("include_background") is False:
            raise UserError(
                f"{where}: include_background is false, which leaves out the first class; with multi_label there is no background: set it to true"
            )
    loss = build("loss", settings["loss"], settings["allow"])
    with components_at_work("train.loss, on labels of several classes at once"):
        _check_independence(loss, settings["task"] == SEGMENTATION)


def _check_decisions(settings: dict) -> None:
    """By post-transforms of a sigmoid, and of a threshold where predictions are files; a softmax or argmax chooses one."""
    components = [c for c in settings["validate"]["post_transforms"] if c.get("name") not in POST_OURS]
    done = {key for c in components for key, value in c["args"].items() if key != "keys" and _of_prediction(value)}
    one = "takes one class of several, but with multi_label each is there or not by itself"
    for name in ("softmax", "argmax", "to_onehot"):
        if name in done:
            wanted = "Activationsd with sigmoid" if name == "softmax" else "AsDiscreted with threshold"
            raise UserError(f"validate.post_transforms: {name} {one}; use {wanted}")
    if "sigmoid" not in done:
        raise UserError(
            "validate.post_transforms: found no sigmoid, wanted Activationsd with sigmoid, as dataset.multi_label is true"
        )
    if settings["task"] == SEGMENTATION and "threshold" not in done:
        raise UserError(
            "validate.post_transforms: found no threshold, wanted AsDiscreted with threshold (0.5, say), as dataset.multi_label is true"
        )


def _of_prediction(value: object) -> object:
    return value[0] if isinstance(value, list) and value else value


def _check_independence(loss: torch.nn.Module, on_grid: bool) -> None:
    """Refuse a loss to which all classes being there or none is the same, as it is to a softmax over classes."""
    labels = torch.zeros((2, 3, 8, 8) if on_grid else (2, 3))
    labels[(slice(None), slice(None), slice(4)) if on_grid else 0] = 1
    right = 10 * labels - 5
    if not loss(right, labels) < loss(-right, labels):
        raise UserError(
            f"train.loss: {type(loss).__name__} takes one class of several (softmax, cross entropy), but with multi_label each is there "
            "or not by itself; use BCEWithLogitsLoss, or DiceLoss, DiceFocalLoss or the like with sigmoid: true"
        )


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
