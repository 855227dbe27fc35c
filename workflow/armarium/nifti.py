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

LARGEST = 64 << 30  # bytes of voxels that one file may declare
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
        return _read_volume(path, os.path.join(root, path))
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


def _read_volume(path: str, full: str) -> Volume:
    import numpy as np

    with open(full, "rb") as raw:
        sha256 = hashlib.file_digest(raw, "sha256").hexdigest()
        size = raw.tell()
        raw.seek(0)
        packed = path.endswith(".gz")
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        header, head = _header(path, stream)
        shape, dtype, offset = _layout(path, header)
        if not shape or min(shape) < 1 or dtype.kind not in "iuf" or offset < len(head):
            raise Unreadable(
                f"{path}: found shape {by(shape)}, type {dtype}, voxels at byte {offset} in its header; wanted an image of real numbers; convert it again"
            )
        need = offset + math.prod(shape) * dtype.itemsize
        declared = f"its header declares {by(shape)} {dtype} voxels ({need:,} bytes)"
        if need > LARGEST:
            raise Unreadable(
                f"{path}: {declared}, wanted at most {LARGEST:,} bytes; the header is damaged, or crop the image"
            )
        if need > size * (_DEFLATE_RATIO if packed else 1) + _DEFLATE_RATIO:
            raise Unreadable(
                f"{path}: truncated: {declared}, which {size:,} bytes of file cannot hold; copy the file again"
            )
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
    if head[4:8] == b"n+2\0":
        kind, head = nib.Nifti2Header, head + stream.read(540 - 348)
    elif head[344:348] != b"n+1\0":
        raise Unreadable(
            f"{path}: no NIfTI file: found {head[:4]!r}… where its header should be; convert or copy it again"
        )
    try:
        return kind.from_fileobj(io.BytesIO(head)), head
    except (nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError) as error:
        raise Unreadable(f"{path}: damaged NIfTI header ({error}); convert or copy it again") from None


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
