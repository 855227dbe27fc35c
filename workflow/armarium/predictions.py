"""Predictions as files: segmentations in the input's own space, probabilities and numbers as tables."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy

from .evaluation import IDS
from .tables import tsv


def segmentation_bytes(classes: numpy.ndarray, image: Path) -> bytes:
    """A gzipped NIfTI-1 of class numbers with the affine, shape and units of the image it belongs to.

    Parameters
    ----------
    classes:
        uint8 ``[*grid]``.
    image:
        The input's file.
    """
    source = nibabel.load(image)
    shape = source.shape[: classes.ndim] if source.ndim != classes.ndim else source.shape
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        file.write(image_like(source, classes.reshape(shape)).to_bytes())
    return raw.getvalue()


def image_like(source: nibabel.spatialimages.SpatialImage, values: numpy.ndarray) -> nibabel.Nifti1Image:
    """``values`` as a NIfTI-1 with the affine and units of the image they belong to.

    Parameters
    ----------
    values:
        ``[*grid]`` or ``[*grid, channels]``; the type is kept.
    """
    header = nibabel.Nifti1Header()
    header.set_data_dtype(values.dtype)
    written = nibabel.Nifti1Image(values, source.affine, header)
    if isinstance(source.header, nibabel.Nifti1Header):
        written.header.set_xyzt_units(*source.header.get_xyzt_units())
        for part in ("qform", "sform"):
            affine, code = getattr(source.header, f"get_{part}")(coded=True)
            if affine is not None:
                getattr(written, f"set_{part}")(affine, int(code))
    return written


def probability_table(rows: Sequence[tuple[dict, numpy.ndarray]], class_names: dict[int, str]) -> str:
    """A row per case: ids, the true class, the predicted one, and the probability of each class.

    Parameters
    ----------
    rows:
        Cases with their probabilities, ``[classes]``.
    class_names:
        Names by class number.
    """
    count = len(rows[0][1]) if rows else 0
    columns = [f"probability_{class_names.get(i, i)}" for i in range(count)]
    table = [
        {c: case[c] for c in IDS}
        | {"case": case["case"], "label": case["label"], "predicted": int(p.argmax())}
        | dict(zip(columns, map(float, p), strict=True))
        for case, p in rows
    ]
    return tsv([*IDS, "case", "label", "predicted", *columns], table)


def prediction_table(rows: Sequence[tuple[dict, numpy.ndarray]]) -> str:
    """A row per case: ids, the number that was to be found, and the one predicted (``[1]``)."""
    table = [
        {c: case[c] for c in IDS} | {"case": case["case"], "target": case["label"], "prediction": float(p[0])}
        for case, p in rows
    ]
    return tsv([*IDS, "case", "target", "prediction"], table)
