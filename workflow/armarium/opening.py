"""What a file of an archive holds, as Python has it: tables, settings, text, weights, images. All of it distrusted.

Heavy packages are imported by the files that need them.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import layout
from .boundary import is_inside
from .errors import UserError
from .files import read_json, read_text, regular_size
from .tables import UNDEFINED, read_tsv

if TYPE_CHECKING:
    import nibabel
    import pandas

KEYS = ("filename", "epoch", "batch", "participant_id", "session_id", "class", "metric")
"""Columns that say what a row of a table is about, outermost first."""
TEXTS = ("filename", "participant_id", "session_id", "case", "name", "metric")
"""Columns that are text even where they look like numbers."""
_UNDEFINED = (UNDEFINED, "")


def inside(path: str | os.PathLike, root: str | os.PathLike) -> str:
    """A file's absolute path; a relative one starts at ``root``.

    Raises
    ------
    UserError
        If it leads out of ``root``, also by a link.
    """
    whole, folder = os.path.join(root, path), os.path.realpath(root)
    target = os.path.realpath(whole)
    if not is_inside(target, folder):
        raise UserError(
            f"{whole}: leads out of the archive, to {target}; put a copy of the file into the archive, or open it by other means"
        )
    return target


def open_file(path: str | os.PathLike, root: str | os.PathLike) -> Any:
    """A file's content by its suffix; see :meth:`armarium.reader.Archive.open_file`."""
    target = inside(path, root)
    if not os.path.lexists(target):
        raise UserError(f"{target}: file not found; ask Snakemake for it, or see what is in its folder")
    if os.path.isdir(target):
        raise UserError(f"{target}: a folder, wanted a file; it has {', '.join(sorted(os.listdir(target))) or 'none'}")
    regular_size(target)
    return _opener(target)(target)


def _opener(path: str) -> Callable[[str], Any]:
    for suffixes, opener in OPENERS.items():
        if path.endswith(suffixes):
            return opener
    if "." not in os.path.basename(path):
        return read_text
    if path.endswith(".ts"):
        raise UserError(
            f"{path}: TorchScript is code, and was not run; open the model.pt beside it, or if you know who made it, torch.jit.load it"
        )
    known = ", ".join(suffix for suffixes in OPENERS for suffix in suffixes)
    raise UserError(f"{path}: no reader for this kind of file; wanted one of {known}, or a text without suffix")


def read_table(path: str, separator: str = "\t", columns: Sequence[str] | None = None) -> pandas.DataFrame:
    """A table, indexed by the columns that say what a row is about, if it has others too.

    ``n/a`` is NaN; numbers are those that were written, to the last bit.

    Parameters
    ----------
    columns:
        Their names, where the file has none.

    Raises
    ------
    UserError
        If it is no table.
    """
    import pandas

    text = read_text(path)
    if columns is not None:
        text = separator.join(columns) + "\n" + text
    rows = read_tsv(text, path, separator)
    names = next(csv.reader(io.StringIO(text), delimiter=separator), [])
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: found the columns {names}, wanted a table; have it made again")
    table = pandas.DataFrame({name: _values(name, [row[name] for row in rows]) for name in names})
    index = [name for name in KEYS if name in names]
    return table.set_index(index) if index and len(index) < len(names) else table


def _values(column: str, cells: list[str]) -> list[Any]:
    """Whole numbers if all are, else numbers if all are, else text; undefined ones NaN."""
    if column not in TEXTS and not any("_" in cell for cell in cells):  # which Python takes for digits' company
        for kind in (int, float):
            try:
                return [kind(cell) if kind is int or cell not in _UNDEFINED else math.nan for cell in cells]
            except ValueError:
                pass
    return [cell if cell not in _UNDEFINED else math.nan for cell in cells]


def _comma_separated(path: str) -> pandas.DataFrame:
    headless = os.path.basename(path) == os.path.basename(layout.eval_metrics_csv(""))
    return read_table(path, ",", ("metric", "value") if headless else None)


def _weights(path: str) -> Any:
    from .weights import load_plain

    with open(path, "rb") as file:
        return load_plain(file, path)


def read_image(path: str) -> nibabel.nifti1.Nifti1Image:
    """A NIfTI image whose header declares no more than the file can hold; its voxels are read when asked for."""
    import nibabel

    from .nifti import Unreadable, check_header

    try:
        check_header(path, "")
        return nibabel.load(path)
    except Unreadable as error:
        raise UserError(str(error)) from None


OPENERS: dict[tuple[str, ...], Callable[[str], Any]] = {
    (".json",): read_json,
    (".tsv",): read_table,
    (".csv",): _comma_separated,
    (".txt", ".log", ".md", ".yml", ".yaml", ".sh", ".conf", ".config"): read_text,
    (".pt",): _weights,
    (".nii", ".nii.gz"): read_image,
}
"""How each kind of file is read."""
