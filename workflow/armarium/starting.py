"""Where a fine-tuning starts: a parent's weights, or all that its training left. Needs torch; nothing in a file is run.

Transfer. A layer whose name and shape are those of the parent's is taken. A convolution that the images go into, of another
number of channels, is resized: of more channels here the parent's are repeated in turn, each divided among its repetitions;
of fewer, those of the parent that fall on one are added. So images whose channels are equal give the parent's activations
(timm's ``adapt_input_conv`` does the same for one channel). Any other, such as the last one of other classes, is new: as
the recipe's seed draws it.

Continue. Network, optimizer's moments and history are the parent's, and the next epoch is the one after its last. The
optimizer's and schedule's constants are the recipe's, the schedule being taken to where the parent stopped: one that does
not depend on the length of training goes on as if it had never been interrupted, a longer one as if it had been the
longer one from the beginning.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch

from . import layout
from .errors import UserError
from .files import memory_bytes, read_bytes
from .history import Progress
from .network import Network
from .parent import CONTINUE, Parent, read_parent
from .run import TRAINING_LOSS, finished_run, lacking, member_of_checkpoint
from .tables import UNDEFINED, read_tsv, tsv
from .weights import load_plain, load_weights, most_bytes, weights_in
from .zips import damaged, opened, zip_member

if TYPE_CHECKING:
    from .training import SplitTraining

MEMBER = "starting_weights.tsv"
"""Of run.zip: the table of layers, under the name that it has beside it."""
TAKEN, RESIZED, NEW, LEFT = "taken", "resized", "new", "left out"
COLUMNS = ("layer", "shape_in_parent", "shape_here", "what")
PREFIX = "network."
_WRAPPED = ("model", "state_dict", "network", "net")
"""Under which name a file may keep the weights, as Clara Train and others do."""
_PREFIXES = ("", PREFIX, "module.", "model.", "net.")


@dataclass(frozen=True)
class Layer:
    """What became of a layer: its shapes (None where there is none) and one of TAKEN, RESIZED, NEW, LEFT."""

    name: str
    parent: tuple[int, ...] | None
    here: tuple[int, ...] | None
    what: str


# ---- transfer


def read_weights(path: str | PathLike, most: int | None = None) -> dict[str, torch.Tensor]:
    """The weights of a file that somebody gave, whatever they are wrapped in.

    Raises
    ------
    UserError
        If it has none, anything that might be code, or numbers that are none.
    """
    data = read_bytes(path, memory_bytes() // 2 if most is None else most)
    held = load_plain(io.BytesIO(data), path)
    if isinstance(held, dict) and (name := next((n for n in _WRAPPED if isinstance(held.get(n), dict)), None)):
        held = held[name]
    if not isinstance(held, dict) or not held or not all(map(_is_weight, held.items())):
        raise UserError(
            f"{path}: found something else than tensors by name; wanted the weights of a network, such as an archive's models/model.pt"
        )
    if bad := [n for n, t in held.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]:
        raise UserError(f"{path}: {bad[0]} has values that are no numbers; training cannot start from these weights")
    return held


def _is_weight(item: tuple[Any, Any]) -> bool:
    name, value = item
    return (
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
    )


def fitted(
    network: torch.nn.Module, weights: Mapping[str, torch.Tensor], channels: int, source: str
) -> tuple[dict[str, torch.Tensor], list[Layer]]:
    """What a network takes of a parent's weights.

    Parameters
    ----------
    network:
        Freshly made; its names start with ``network.``.
    weights:
        The parent's, with or without such a prefix.
    channels:
        Of the images here.
    source:
        The parent's file, for messages.

    Returns
    -------
    The network's new state, and what became of each layer: the network's in its order, then the parent's others.

    Raises
    ------
    UserError
        If no layer fits.
    """
    here = network.state_dict()
    given = _by_our_names(weights, here)
    state, layers = {}, []
    for name, own in here.items():
        theirs = given.get(name)
        found, what = _of_parent(network, name, own, theirs, channels)
        state[name] = found
        layers.append(Layer(name.removeprefix(PREFIX), _shape(theirs), tuple(own.shape), what))
    others = [Layer(n.removeprefix(PREFIX), tuple(t.shape), None, LEFT) for n, t in given.items() if n not in here]
    if not any(layer.what in (TAKEN, RESIZED) and len(layer.here) > 1 for layer in layers):
        shown = ", ".join(f"{n} {list(t.shape)}" for n, t in list(weights.items())[:3])
        wanted = ", ".join(f"{layer.name} {list(layer.here)}" for layer in layers[:3])
        raise UserError(
            f"{source}: no layer of it fits this network: found {shown}, …, wanted {wanted}, …; take train.model from the "
            "parent's configuration, or a parent of the same kind of network"
        )
    return state, layers + others


def _by_our_names(weights: Mapping[str, torch.Tensor], here: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the names of the network here, whichever prefix the parent's have: the one by which most are known."""

    def renamed(prefix: str) -> dict[str, torch.Tensor]:
        return {PREFIX + n.removeprefix(prefix): t for n, t in weights.items()}

    return max(map(renamed, _PREFIXES), key=lambda found: len(found.keys() & here.keys()))


def _shape(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _of_parent(
    network: torch.nn.Module, name: str, own: torch.Tensor, theirs: torch.Tensor | None, channels: int
) -> tuple[torch.Tensor, str]:
    if theirs is None:
        return own, NEW
    if theirs.shape == own.shape:
        return theirs.to(own.dtype), TAKEN
    if _is_of_input(network, name, channels) and _differ_in_channels_alone(theirs.shape, own.shape):
        return _resized(theirs, own.shape[1]).to(own.dtype), RESIZED
    return own, NEW


def _is_of_input(network: torch.nn.Module, name: str, channels: int) -> bool:
    """Whether a weight is the kernel of a convolution that takes as many channels as the images have."""
    module = network.get_submodule(name.rpartition(".")[0])
    return (
        isinstance(module, torch.nn.modules.conv._ConvNd)
        and not module.transposed
        and module.groups == 1
        and module.in_channels == channels
    )


def _differ_in_channels_alone(theirs: Sequence[int], own: Sequence[int]) -> bool:
    return len(theirs) == len(own) > 2 and (*theirs[:1], *theirs[2:]) == (*own[:1], *own[2:]) and theirs[1] > 0


def _resized(kernel: torch.Tensor, channels: int) -> torch.Tensor:
    """``[out, theirs, *size]`` to ``[out, channels, *size]``; over the channels the sum stays the same."""
    theirs = kernel.shape[1]
    if channels < theirs:
        smaller = torch.zeros_like(kernel[:, :channels])
        return smaller.index_add_(1, torch.arange(theirs) % channels, kernel)
    turn = torch.arange(channels) % theirs
    times = torch.bincount(turn)[turn].view(1, -1, *[1] * (kernel.ndim - 2))
    return kernel[:, turn] / times


def table_of(layers: Sequence[Layer]) -> str:
    """The table of layers as text."""
    return tsv(COLUMNS, (_row(layer) for layer in layers))


def _row(layer: Layer) -> dict[str, str]:
    return dict(zip(COLUMNS, (layer.name, _size(layer.parent), _size(layer.here), layer.what), strict=True))


def _size(shape: tuple[int, ...] | None) -> str:
    return UNDEFINED if shape is None else "x".join(map(str, shape)) or "scalar"


def counted(layers: Sequence[Layer]) -> str:
    """How many layers became what, in words."""
    kinds = [layer.what for layer in layers]
    return ", ".join(f"{kinds.count(what)} {what}" for what in (TAKEN, RESIZED, NEW, LEFT) if what in kinds)


def check_start(archive: str, settings: dict, network: torch.nn.Module, channels: int) -> None:
    """Refuse, before anything is trained, a parent that a network can take nothing of.

    Parameters
    ----------
    settings:
        The effective training configuration.
    network:
        The recipe's, without prefix.
    channels:
        Of the images.

    Raises
    ------
    UserError
        If the parent is damaged or nothing of it fits or, to continue, not all, or it was trained for as many epochs.
    """
    parent = read_parent(archive)
    for name in parent.files if parent else ():
        path = layout.parent_file(archive, name)
        _taken(Network(network), parent, path, channels)
        if parent.mode == CONTINUE:
            _refuse_no_more_epochs(settings, path, finished_run(path)["epochs"])


def _refuse_no_more_epochs(settings: dict, path: str, done: int) -> None:
    if done >= settings["epochs"]:
        raise UserError(
            f"epochs is {settings['epochs']}, and the parent ({path}) was trained for {done}; epochs counts from the beginning: "
            f"set it to more than {done}"
        )


# ---- a training's beginning


def begin(training: SplitTraining) -> int:
    """Give a training what it starts from, and tell it; the epochs that are then behind it.

    Raises
    ------
    UserError
        If what it starts from is damaged, or does not fit.
    """
    start = _start(training)
    if start is None:
        return 0
    parent, path = start
    layers = _layers(training, parent, path, give=True)
    print(f"split {training.split}: {_told(parent, layers)}", file=sys.stderr)
    for layer in layers:
        if layer.what != TAKEN:
            print(
                f"  {layer.what}: {layer.name}, {_size(layer.parent)} there, {_size(layer.here)} here", file=sys.stderr
            )
    return _go_on(training, parent, path) if parent.mode == CONTINUE else 0


def starting_members(training: SplitTraining) -> dict[str, str]:
    """The table of layers as a member of run.zip; none of a training that starts from nothing."""
    start = _start(training)
    return {MEMBER: table_of(_layers(training, *start))} if start else {}


def starting_summary(training: SplitTraining) -> list[str]:
    """The same in a line."""
    start = _start(training)
    return [f"Started: {_told(start[0], _layers(training, *start))}"] if start else []


def _told(parent: Parent, layers: Sequence[Layer]) -> str:
    whose = f"{parent.file} of {parent.name}" if parent.name else parent.file
    return f"{parent.mode} from {whose} ({parent.identifier[:19]}…): layers: {counted(layers)}"


def _start(training: SplitTraining) -> tuple[Parent, str] | None:
    """The parent, and the file that the split starts from."""
    archive = training.workspace.archive
    if training.settings.get("start") is None:
        return None
    parent = read_parent(archive)
    name = parent.start_of(training.split) if parent else None
    if name is None:
        raise UserError(
            f"{layout.parent_json(archive)}: no weights for split {training.split} to start from; fine-tune anew "
            f"({layout.command(archive, 'finetune.sh')}), or restore splits"
        )
    return parent, layout.parent_file(archive, name)


def _layers(training: SplitTraining, parent: Parent, path: str, give: bool = False) -> list[Layer]:
    channels = training.scorer.prepared.get(training.validation[0])["image"].shape[0]
    state, layers = _taken(training.network, parent, path, int(channels))
    if give:
        training.network.load_state_dict(state)
    return layers


def _taken(
    network: torch.nn.Module, parent: Parent, path: str, channels: int
) -> tuple[dict[str, torch.Tensor], list[Layer]]:
    if parent.mode == CONTINUE:
        weights = load_weights(path, finished_run(path)["epochs"], 2 * most_bytes(network))
    else:
        weights = read_weights(path)
    state, layers = fitted(network, weights, channels, path)
    if parent.mode == CONTINUE and (other := [layer for layer in layers if layer.what != TAKEN]):
        raise UserError(
            f"{path}: to continue, the network must be the parent's; {other[0].name} is {_size(other[0].parent)} there and "
            f"{_size(other[0].here)} here ({counted(layers)}); restore train.model, or start from models/model.pt (transfer)"
        )
    return state, layers


# ---- continue


def validation_digest(settings: dict, cases: list[dict]) -> str:
    """SHA-256 over how, and on what, a split is validated: where it is the same, the parent's history goes on."""
    told = [settings["validate"], settings["loss"], settings["task"], [case["sha256"] for case in cases]]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _go_on(training: SplitTraining, parent: Parent, path: str) -> int:
    info = finished_run(path, "checkpoints")
    done = info["epochs"]
    _refuse_no_more_epochs(training.settings, path, done)
    if gone := lacking(info, training.settings["keep_epochs"]):
        raise UserError(
            f"split {training.split}: epoch {gone[0]} was trained in the parent, which did not keep it; take it out of select.epochs"
        )
    losses = _losses(path)
    _take_up_schedule(training, done, len(losses))
    _take_up_optimizer(training, path)
    if parent.validated.get(training.split) == validation_digest(training.settings, training.validation):
        training.progress = _history(training, path, info, losses)
        _keep_checkpoints(training, path, info)
    else:
        print(
            f"split {training.split}: validated otherwise than the parent: its scores do not count here, the best epoch is one "
            f"after {done}",
            file=sys.stderr,
        )
        training.progress = Progress(epoch=done)
    return done


def _losses(path: str) -> list[list]:
    rows = read_tsv(zip_member(path, TRAINING_LOSS).decode(errors="replace"), f"{path}: {TRAINING_LOSS}")
    return _numbers(rows, ("epoch", "batch"), f"{path}: {TRAINING_LOSS}")


def _numbers(rows: list[dict[str, str]], whole: Sequence[str], source: str) -> list[list]:
    """The rows of a table of numbers, as training has them."""
    try:
        return [[int(v) if k in whole else _float(v) for k, v in row.items()] for row in rows]
    except ValueError:
        raise damaged(source, "found a cell that is no number") from None


def _float(text: str) -> float:
    return float("nan") if text == UNDEFINED else float(text)


def _take_up_schedule(training: SplitTraining, epochs: int, steps: int) -> None:
    """Take the schedule to where the parent stopped, without a step of the optimizer."""
    if training.schedule is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer made none
        for _ in range(epochs if training.settings["lr_epoch_level"] else steps):
            training.schedule.step()


def _take_up_optimizer(training: SplitTraining, path: str) -> None:
    """The parent's moments; its groups' settings, such as the learning rate, are the recipe's."""
    member = "state/final.pt"
    state = load_plain(io.BytesIO(zip_member(path, member, memory_bytes() // 2)), f"{path}: {member}")
    optimizer, own = training.optimizer, type(training.optimizer).__name__
    with opened(path) as members:
        rates = [n for n in members.namelist() if n.startswith(_RATES)]
    theirs = rates[0].removeprefix(_RATES).removesuffix(".tsv") if rates else "unknown"
    if theirs != own:
        raise UserError(
            f"{path}: to continue, the optimizer must be the parent's: found {theirs} there, {own} here; restore train.optimizer, "
            "or start from models/model.pt (transfer)"
        )
    try:
        groups = optimizer.state_dict()["param_groups"]
        found = [[*map(int, group["params"])] for group in state["optimizer"]["param_groups"]]
        if found != [group["params"] for group in groups]:
            raise ValueError("other groups of parameters")
        optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        _check_moments(optimizer)
        if training.scaler.is_enabled() and state["scaler"]:
            training.scaler.load_state_dict(state["scaler"])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise damaged(path, f"{member}: not the state of this optimizer ({type(error).__name__}: {error})") from None


_RATES = "logs/learning_rates/"


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                raise ValueError(f"{name} has the shape {list(value.shape)}, its parameter {list(parameter.shape)}")


def _history(training: SplitTraining, path: str, info: dict, losses: list[list]) -> Progress:
    """What the parent's training remembered at its end, out of its tables."""
    rates = zip_member(path, f"{_RATES}{type(training.optimizer).__name__}.tsv").decode(errors="replace")
    progress = Progress(epoch=info["epochs"], losses=losses)
    progress.rates = _numbers(read_tsv(rates, path), ("epoch", "batch"), path)
    for table in progress.history:
        name = f"validation_metrics/{table}.tsv"
        rows = read_tsv(zip_member(path, name).decode(errors="replace"), f"{path}: {name}")
        progress.history[table] = [_typed(row, table, f"{path}: {name}") for row in rows]
    known = training._modes()
    best = {n: b for n, b in info["best"].items() if n in known}
    progress.best = {
        n: {**b, "value": float("nan") if b["value"] is None else float(b["value"])} for n, b in best.items()
    }
    progress.warnings = _warnings(training, path)
    before, training.progress = training.progress, progress
    for row in progress.history["aggregated"]:
        training._decide_early_stop({k: v for k, v in row.items() if k != "epoch"})
    training.progress = before
    if progress.stopped_early:  # more was asked for
        progress.stopped_early, progress.without_gain = False, 0
    return progress


def _typed(row: dict[str, str], table: str, source: str) -> dict:
    """A row as training had it: the scores of a set are compared, the others only written again."""
    try:
        others = {k: _float(v) if table == "aggregated" else v for k, v in row.items() if k != "epoch"}
        return {"epoch": int(row["epoch"]), **others}
    except (KeyError, ValueError):
        raise damaged(source, "found a cell that is no number") from None


def _warnings(training: SplitTraining, path: str) -> list[str]:
    from .maps import not_rebuilt

    lines = zip_member(path, "warning.log").decode(errors="replace").splitlines()
    return [line for line in lines if line not in not_rebuilt(training.settings)]


def _keep_checkpoints(training: SplitTraining, path: str, info: dict) -> None:
    """The parent's weights of epochs that may still be selected."""
    progress = training.progress
    for epoch in sorted(progress.epochs_to_keep(training.settings["keep_epochs"])):
        if str(epoch) not in info["checkpoints"]:
            raise damaged(path, f"it does not hold its epoch {epoch}")
        data = zip_member(path, member_of_checkpoint(epoch), 2 * most_bytes(training.network))
        weights_in(data, f"{path}: {member_of_checkpoint(epoch)}")
        training.workspace.keep_file(epoch, data)
