"""Checkpoints as TorchScript, compared with eager, the same bytes every time.

``torch.jit`` is deprecated upstream, but TorchScript is what MMAR and the MONAI Bundle ask for.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence

import torch

from .errors import UserError
from .files import json_text
from .network import build_network, make_deterministic
from .parts import PARITY, SCRIPT, SCRIPTED, Part
from .run import epoch_of, finished_run
from .transforms import components_at_work
from .weights import load_into
from .zips import zipped_again

LARGEST_INPUT = 1 << 30
"""Values of an input that is made up to compare two networks."""
CONSTANTS = re.compile(rb"(?:^  \w+ : Final\[.*\n)+", re.M)
"""A class's constants in TorchScript's code: written in the order of a set, so of Python's hash seed."""
EXPORTED_ROOT = "model"
"""The folder that a TorchScript file's members lie in: its name without the suffix, as torch has it."""


def network_input_shape(settings: dict, info: dict) -> list[int]:
    """``[1, channels, *grid]`` as the network meets it: the inferer's window, else a whole prepared image.

    Raises
    ------
    UserError
        If the window does not fit the images, or no such input fits into memory.
    """
    window = settings["validate"]["inferer"]["args"].get("roi_size")
    channels, grid = info["input_shape"][0], info["input_shape"][1:]
    if window:
        window = [window] * len(grid) if isinstance(window, int) else window
        if len(window) != len(grid) or not all(isinstance(w, int) for w in window):
            raise UserError(f"validate.inferer: roi_size is {window!r:.80}; wanted {len(grid)} whole numbers")
        grid = [w if w > 0 else n for w, n in zip(window, grid, strict=True)]
    if math.prod([channels, *grid]) > LARGEST_INPUT:
        raise UserError(
            f"the network's input is {[1, channels, *grid]}, wanted at most {LARGEST_INPUT:,} values; set roi_size in validate.inferer"
        )
    return [1, channels, *grid]


def to_torchscript(network: torch.nn.Module, example: torch.Tensor) -> tuple[torch.jit.ScriptModule, str]:
    """Script the network, or trace it where scripting cannot express it; and which it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.jit.script(network), SCRIPTED
        except Exception as error:  # torch.jit raises many kinds
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        with torch.no_grad(), components_at_work(f"network: TorchScript by script ({reason}) and by trace"):
            return torch.jit.trace(network, example), f"trace (script failed: {reason})"


def deterministic_bytes(module: torch.jit.ScriptModule, extra: dict[str, str]) -> bytes:
    """A module's file without what differs from process to process.

    ``*.debug_pkl`` embed absolute paths and ``serialization_id`` is a hash over them; the rest is zipped
    again in the order torch wrote it. Tensors stay aligned to 64 bytes, which readers that map the file want.
    """
    saved = io.BytesIO()
    torch.jit.save(module, saved, _extra_files=extra)
    return zipped_again(saved, _same_member)


def _same_member(name: str, data: bytes) -> tuple[str, bytes] | None:
    if name.endswith(".debug_pkl"):
        return None
    if name.endswith(".py"):
        data = CONSTANTS.sub(lambda found: b"".join(sorted(found[0].splitlines(keepends=True))), data)
    return f"{EXPORTED_ROOT}/{name.partition('/')[2]}", data


def first_output(output):
    return output[0] if isinstance(output, (list, tuple)) else output


def parity(network: torch.nn.Module, data: bytes, example: torch.Tensor) -> float:
    """Largest difference between eager and the saved TorchScript on ``example``."""
    loaded = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
    with torch.no_grad():
        return float((first_output(network(example)) - first_output(loaded(example))).abs().max())


def export_checkpoints(
    settings: dict, run_zip: str, checkpoints: Sequence[str], tolerance: float, extra: dict[str, str]
) -> dict[str, Part]:
    """Export checkpoints of a split.

    Parameters
    ----------
    settings:
        The effective training configuration.
    run_zip:
        Where the weights are.
    checkpoints:
        Names such as ``best-loss``.
    tolerance:
        Largest difference allowed between eager and TorchScript.
    extra:
        Texts that the TorchScript files carry, by name.

    Returns
    -------
    dict
        By checkpoint: the TorchScript file, and how it was made and differs from eager.

    Raises
    ------
    UserError
        If the two differ by more.
    """
    make_deterministic(settings)
    info = finished_run(run_zip, "input_shape")
    shape = network_input_shape(settings, info)
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made: dict[str, Part] = {}
    for checkpoint in checkpoints:
        data, how = _export_one(settings, run_zip, epoch_of(info, checkpoint), example, tolerance, extra)
        made[checkpoint] = {SCRIPT: data, PARITY: json_text({"input_shape": shape, **how})}
    return made


def export_again(settings: dict, run_zip: str, checkpoint: str, tolerance: float, extra: dict[str, str]) -> bytes:
    """The TorchScript that :func:`export_checkpoints` makes of one checkpoint."""
    make_deterministic(settings)
    info = finished_run(run_zip, "input_shape")
    example = torch.randn(network_input_shape(settings, info), generator=torch.Generator().manual_seed(0))
    return _export_one(settings, run_zip, epoch_of(info, checkpoint), example, tolerance, extra)[0]


def _export_one(
    settings: dict, run_zip: str, epoch: int, example: torch.Tensor, tolerance: float, extra: dict[str, str]
) -> tuple[bytes, dict]:
    model = build_network(settings)
    load_into(model, run_zip, epoch)
    network = model.network.eval()
    script, how = to_torchscript(network, example)
    data = deterministic_bytes(script, extra)
    difference = parity(network, data, example)
    if not difference <= tolerance:
        raise UserError(
            f"{run_zip}, epoch {epoch}: TorchScript ({how}) differs from eager by {difference:.3g} on input {list(example.shape)}; "
            f"wanted at most {tolerance:g}; raise export.tolerance if that is acceptable"
        )
    return data, {"method": how, "max_abs_difference": difference, "tolerance": tolerance}
