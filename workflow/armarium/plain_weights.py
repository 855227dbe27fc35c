"""Weights out of run.zip as the bundle and MMAR want them: the network's own names, no prefix.

A file of weights is a zip of the tensors' bytes and of a pickle that names them. Only names differ, so only they are
written anew: without torch, and nothing in the file is run.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator

from .clinicadl_weights import PREFIX, monai_name, turned_kernels
from .files import memory_bytes
from .run import finished_run, member_of_checkpoint
from .zips import checked, damaged, zip_member, zipped_again

_NAMED = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}
_PICKLE = "data.pkl"
_TEXT, _GLOBAL = "BINUNICODE", "GLOBAL"
"""By which opcodes torch's pickles (protocol 2) have texts and what is to be called."""


def plain_weights(run_zip: str, epoch: int) -> bytes:
    """A file of an epoch's weights under MONAI's names.

    Raises
    ------
    UserError
        If run.zip has no such file of weights as torch saves it.
    """
    network = finished_run(run_zip).get("network")  # a run of before there was a choice of names has none
    if network and turned_kernels(network):
        return _of_tensors(run_zip, epoch)
    member = member_of_checkpoint(epoch)
    data = zip_member(run_zip, member, memory_bytes() // 2)

    def plain(name: str) -> str:
        return (monai_name(network, name) if network else name).removeprefix(PREFIX)

    try:
        return renamed(data, plain)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, struct.error) as error:
        raise damaged(f"{run_zip}: {member}", f"no file of weights as torch saves it ({error})") from None


def _of_tensors(run_zip: str, epoch: int) -> bytes:
    """The same where ClinicaDL has tensors otherwise than MONAI."""
    from .run import saved
    from .weights import load_weights

    return saved({name.removeprefix(PREFIX): tensor for name, tensor in load_weights(run_zip, epoch).items()})


def renamed(data: bytes, name: Callable[[str], str]) -> bytes:
    """A file that ``torch.save`` made of tensors by name, with other names.

    Parameters
    ----------
    name:
        Gives the new name of a tensor whose name begins with ``network.``; others keep theirs.

    Raises
    ------
    ValueError, zipfile.BadZipFile
        If it is anything else.
    """
    if [n.partition("/")[2] for n in checked(io.BytesIO(data)).namelist()].count(_PICKLE) != 1:
        raise zipfile.BadZipFile(f"it has no {_PICKLE}")

    def member(path: str, content: bytes) -> tuple[str, bytes]:
        return path, b"".join(_with_names(content, name)) if path.partition("/")[2] == _PICKLE else content

    return zipped_again(io.BytesIO(data), member)


def _with_names(pickled: bytes, name: Callable[[str], str]) -> Iterator[bytes]:
    """The parts of a pickle, those that are names changed."""
    starts = [(position, opcode.name, argument) for opcode, argument, position in pickletools.genops(pickled)]
    ends = [position for position, _, _ in starts[1:]] + [len(pickled)]
    for (start, opcode, argument), end in zip(starts, ends, strict=True):
        if opcode == _TEXT and argument.startswith(PREFIX):
            text = name(argument).encode()
            yield pickled[start : start + 1] + struct.pack("<I", len(text)) + text
            continue
        if opcode in ("STACK_GLOBAL", "INST") or (opcode == _GLOBAL and not _is_of_tensors(argument)):
            raise ValueError("it holds more than tensors by name")
        yield pickled[start:end]


def _is_of_tensors(named: str) -> bool:
    return named in _NAMED or (named.startswith("torch ") and named.endswith("Storage"))
