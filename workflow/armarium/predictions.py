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


def segmentation_bytes(classes: numpy.ndarray, image: Path, by_channel: bool = False) -> bytes:
    """A gzipped NIfTI-1 of class numbers with the affine, shape and units of the image it belongs to.

    Parameters
    ----------
    classes:
        uint8 ``[*grid]``; ``by_channel`` 0 and 1 ``[*grid, classes]``.
    image:
        The input's file.
    """
    source = nibabel.load(image)
    axes = classes.ndim - by_channel
    shape = source.shape[:axes] if source.ndim != axes else source.shape
    values = channels_in_nifti(classes.reshape(*shape, -1)) if by_channel else classes.reshape(shape)
    raw = io.BytesIO()
    with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        file.write(image_like(source, values).to_bytes())
    return raw.getvalue()


def channels_in_nifti(values: numpy.ndarray) -> numpy.ndarray:
    """``[*grid, channels]`` with the channels in the fourth axis, where MONAI writes and reads them, of 2D images too."""
    return values.reshape(*values.shape[:-1], *[1] * (4 - values.ndim), values.shape[-1])


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

    Of classes that may occur together, for each class whether it is there, whether it is predicted, and its probability.

    Parameters
    ----------
    rows:
        Cases with their probabilities, ``[classes]``, or with probabilities and decisions, ``[2, classes]``.
    class_names:
        Names by class number.
    """
    if rows and rows[0][1].ndim == 2:
        return _table_by_class(rows, class_names)
    count = len(rows[0][1]) if rows else 0
    columns = [f"probability_{class_names.get(i, i)}" for i in range(count)]
    table = [
        {c: case[c] for c in IDS}
        | {"case": case["case"], "label": case["label"], "predicted": int(p.argmax())}
        | dict(zip(columns, map(float, p), strict=True))
        for case, p in rows
    ]
    return tsv([*IDS, "case", "label", "predicted", *columns], table)


def _table_by_class(rows: Sequence[tuple[dict, numpy.ndarray]], class_names: dict[int, str]) -> str:
    names = [class_names.get(i, str(i)) for i in range(rows[0][1].shape[1])]
    table = []
    for case, (probabilities, decisions) in rows:
        row = {c: case[c] for c in IDS} | {"case": case["case"]}
        for name, label, chosen, probability in zip(names, case["label"], decisions, probabilities, strict=True):
            row |= {f"label_{name}": label, f"predicted_{name}": int(chosen), f"probability_{name}": float(probability)}
        table.append(row)
    return tsv([*IDS, "case", *(f"{what}_{n}" for n in names for what in ("label", "predicted", "probability"))], table)


def prediction_table(rows: Sequence[tuple[dict, numpy.ndarray]]) -> str:
    """A row per case: ids, the number that was to be found, and the one predicted (``[1]``)."""
    table = [
        {c: case[c] for c in IDS} | {"case": case["case"], "target": case["label"], "prediction": float(p[0])}
        for case, p in rows
    ]
    return tsv([*IDS, "case", "target", "prediction"], table)
