"""Weights out of run.zip. Needs torch, not MONAI; nothing in a file is run."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from os import PathLike
from typing import IO, Any

import torch

from .clinicadl_weights import to_monai
from .errors import UserError
from .files import memory_bytes
from .run import finished_run, member_of_checkpoint
from .zips import checked, damaged, zip_member

_PER_TENSOR, _PER_FILE = 4096, 1 << 16
"""Bytes that a file of weights has beside its numbers."""


def load_plain(file: IO[bytes], source: str | PathLike) -> Any:
    """What torch saved of tensors and plain values.

    Raises
    ------
    UserError
        If there is anything else, which is not run, or if the file claims more than it holds.
    """
    try:
        checked(file)
        file.seek(0)
        return torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError:
        raise damaged(
            source, "it holds more than tensors and plain values, which might be code and was not run"
        ) from None
    except (zipfile.BadZipFile, struct.error, NotImplementedError) as error:
        raise damaged(source, f"no file of weights as torch saves it ({error})") from None
    except MemoryError:
        raise
    except Exception as error:  # whatever torch thinks of a damaged file
        raise damaged(source, f"no file of weights as torch saves it ({type(error).__name__}: {error})") from None


def load_weights(run_zip: str, epoch: int, most: int | None = None) -> dict[str, torch.Tensor]:
    """The weights of an epoch by the network's own names with ``network.`` before them.

    Parameters
    ----------
    most:
        Bytes that their file may have; by default what leaves memory for a copy.
    """
    name = member_of_checkpoint(epoch)
    data = zip_member(run_zip, name, memory_bytes() // 2 if most is None else most)
    weights = weights_in(data, f"{run_zip}: {name}")
    network = finished_run(run_zip).get("network")  # a run of before there was a choice of names has none
    return to_monai(network, weights) if network else weights


def weights_in(data: bytes, source: str) -> dict[str, torch.Tensor]:
    """The weights in a file of them, ``data``."""
    weights = load_plain(io.BytesIO(data), source)
    if not isinstance(weights, dict) or not all(map(_is_weight, weights.items())):
        raise damaged(source, "found something else than tensors by name")
    return weights


def _is_weight(item: tuple[Any, Any]) -> bool:
    key, value = item
    return isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided


def load_into(network: torch.nn.Module, run_zip: str, epoch: int) -> None:
    """Give a network the weights of an epoch.

    Raises
    ------
    UserError
        If they are those of another network.
    """
    weights = load_weights(run_zip, epoch, most_bytes(network))
    give(network, weights, f"{run_zip}, epoch {epoch}", "delete this file to have it trained again")


def most_bytes(network: torch.nn.Module) -> int:
    """Bytes that a file of a network's weights may have."""
    return sum(t.nbytes + _PER_TENSOR for t in network.state_dict().values()) + _PER_FILE


def give(network: torch.nn.Module, weights: dict[str, torch.Tensor], source: str, mend: str) -> None:
    """Give a network its weights.

    Raises
    ------
    UserError
        If they are those of another network; ``mend`` says what else to do than to restore the recipe.
    """
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise UserError(
            f"{source}: weights of another network than the recipe's ({reason}); restore the recipe, or {mend}"
        ) from None
