"""NIfTI files, read whole and distrusted: a header is believed only when the file can hold what it declares.

Every byte is read, so that damage shows; of a compressed file no more is kept than its header declares.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .files import memory_bytes

LARGEST = min(64 << 30, memory_bytes())  # bytes of voxels that one file may declare
CIFTI_INTENTS = range(3000, 3100)
LARGEST_EXTENSIONS = 64 << 20  # bytes between a header and its voxels
BLOCK = 1 << 20  # voxels looked at together: what bounds the memory of statistics
_DEFLATE_RATIO = 1032  # zlib's technical notes: deflate expands at most 1032:1


class Unreadable(Exception):
    """A file that cannot be read; the message says what was found and wanted, and what to do."""


@dataclass
class Volume:
    """One file's voxels (flat, first axis fastest, unscaled), its geometry and hashes."""

    path: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: Any
    voxels: Any
    slope: float
    inter: float
    file_sha256: str

    def blocks(self) -> Iterator[Any]:
        """Scaled voxels, block by block."""
        import numpy as np

        for start in range(0, self.voxels.size, BLOCK):
            block = self.voxels[start : start + BLOCK]
            scaled = (self.slope, self.inter) != (1.0, 0.0)
            yield block * np.float64(self.slope) + self.inter if scaled else block


def read_volume(path: str, root: str) -> Volume:
    """Read and check one ``.nii`` or ``.nii.gz``; ``path`` is relative to ``root``.

    Raises
    ------
    Unreadable
        Whatever is wrong with the file.
    """
    try:
        return _read_volume(path, root)
    except FileNotFoundError:
        problem = f"file not found in {root}; mend the list or data_root"
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        problem = f"truncated or damaged gzip data ({error}); copy the file again"
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
    except MemoryError:
        problem = "does not fit into memory; give the step fewer threads or more memory"
    raise Unreadable(f"{path}: {problem}")


def by(shape: Iterable[int]) -> str:
    """A shape in words, such as 35x51x35."""
    return "x".join(map(str, shape))


def check_header(path: str, root: str) -> None:
    """Refuse a file whose header declares what the file cannot hold, before others read it by that header.

    Raises
    ------
    Unreadable
        Whatever is wrong with the header.
    """
    try:
        with _opened(path, root) as raw:
            _declared(path, raw, _stream(path, raw))
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"{path}: cannot be read ({error}); copy the file again") from None


def _opened(path: str, root: str) -> Any:
    full = os.path.join(root, path)
    if os.path.exists(full) and not os.path.isfile(full):  # a pipe would never end
        raise Unreadable(f"{path}: not a regular file; mend the list, or copy the file again")
    return open(full, "rb")


def _stream(path: str, raw: Any) -> Any:
    return gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw


def _declared(path: str, raw: Any, stream: Any) -> tuple[Any, bytes, Any, int, int, str]:
    """The header, its bytes, the voxels' type and place, the bytes that it declares, and that in words."""
    size = os.fstat(raw.fileno()).st_size
    header, head = _header(path, stream)
    shape, dtype, offset = _layout(path, header)
    if not shape or min(shape) < 1 or dtype.kind not in "iuf" or not len(head) <= offset <= LARGEST_EXTENSIONS:
        raise Unreadable(
            f"{path}: found shape {by(shape)}, type {dtype}, voxels at byte {offset} in its header; wanted an image of real numbers; convert it again"
        )
    need = offset + math.prod(shape) * dtype.itemsize
    declared = f"its header declares {by(shape)} {dtype} voxels ({need:,} bytes)"
    if need > LARGEST:
        raise Unreadable(
            f"{path}: {declared}, wanted at most {LARGEST:,} bytes; the header is damaged, or crop the image"
        )
    if need > size * (_DEFLATE_RATIO if stream is not raw else 1) + _DEFLATE_RATIO:
        raise Unreadable(
            f"{path}: truncated: {declared}, which {size:,} bytes of file cannot hold; copy the file again"
        )
    return header, head, dtype, offset, need, declared


def _read_volume(path: str, root: str) -> Volume:
    import numpy as np

    with _opened(path, root) as raw:
        sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
        raw.seek(0)
        stream = _stream(path, raw)
        header, head, dtype, offset, need, declared = _declared(path, raw, stream)
        content = np.empty(need, np.uint8)
        content[: len(head)] = np.frombuffer(head, np.uint8)
        got = _fill(stream, memoryview(content), len(head))
        if got < need:
            raise Unreadable(f"{path}: truncated: {declared}, found {got:,}; copy the file again")
        while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
            pass
    return _volume(path, header, content[offset:].view(dtype), sha256)


def _header(path: str, stream: Any) -> tuple[Any, bytes]:
    """A NIfTI-1 or -2 header and the bytes it took."""
    import nibabel as nib

    head = stream.read(348)
    kind = nib.Nifti1Header
    # The size that a header starts with makes sure that no other reader takes the file for something else.
    if head[4:8] == b"n+2\0" and 540 in _sizes(head):
        kind, head = nib.Nifti2Header, head + stream.read(540 - 348)
    elif head[344:348] != b"n+1\0" or 348 not in _sizes(head):
        raise Unreadable(
            f"{path}: no NIfTI file: found {head[:4]!r}… where its header should be; convert or copy it again"
        )
    try:
        header = kind.from_fileobj(io.BytesIO(head))
    except (nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError) as error:
        raise Unreadable(f"{path}: damaged NIfTI header ({error}); convert or copy it again") from None
    if kind is nib.Nifti2Header and int(header["intent_code"]) in CIFTI_INTENTS:
        raise Unreadable(f"{path}: a CIFTI-2 file, wanted an image; convert it")
    return header, head


def _sizes(head: bytes) -> list[int]:
    """A header's first number in either byte order."""
    return [int.from_bytes(head[:4], order) for order in ("little", "big")]


def _layout(path: str, header: Any) -> tuple[tuple[int, ...], Any, int]:
    try:
        return header.get_data_shape(), header.get_data_dtype(), int(header.get_data_offset())
    except (KeyError, ValueError, OverflowError) as error:  # an unknown type, or an offset that is no number
        raise Unreadable(f"{path}: damaged NIfTI header ({error}); convert or copy it again") from None


def _fill(stream: Any, content: memoryview, at: int) -> int:
    while at < len(content) and (n := stream.readinto(content[at:])):
        at += n
    return at


def _volume(path: str, header: Any, voxels: Any, sha256: str) -> Volume:
    import nibabel as nib
    import numpy as np

    try:
        slope, inter = header.get_slope_inter()
        affine = header.get_best_affine()
    except (nib.spatialimages.HeaderDataError, ValueError) as error:
        raise Unreadable(f"{path}: damaged NIfTI header ({error}); convert or copy it again") from None
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0:
        raise Unreadable(
            f"{path}: found affine {affine.tolist()}, wanted finite numbers that span the space; mend its header"
        )
    spacing = tuple(float(z) for z in header.get_zooms())
    slope, inter = (1.0 if slope is None else slope), (0.0 if inter is None else inter)
    return Volume(path, header.get_data_shape(), spacing, affine, voxels, slope, inter, sha256)
