"""What a folder of an archive is to Python: its files as attributes, what it has any number of looked up each time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from .errors import UserError

Key, Value = TypeVar("Key", int, str), TypeVar("Value")
NUMBER = re.compile(r"0|[1-9][0-9]*")


class NotThere(UserError, KeyError):
    """No such split, metric, epoch or group; the message says which there are."""

    __str__ = Exception.__str__


class Found(dict[Key, Value], Generic[Key, Value]):
    """What lies in a folder, by number or name, in order."""

    def __init__(self, items: Mapping[Key, Value], folder: str):
        super().__init__(items)
        self.folder = folder

    def __missing__(self, key: Key) -> Value:
        raise NotThere(f"{self.folder}: no {key!r}; it has {', '.join(map(str, self)) or 'none'}")


def folders_below(path_of: Callable[[str], str]) -> tuple[str, list[str]]:
    """The folder that ``path_of`` leads to, and what follows its prefix in the names of the folders there."""
    folder, prefix = os.path.split(path_of(""))
    try:
        with os.scandir(folder) as entries:
            found = [e.name for e in entries if e.name.startswith(prefix) and e.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        found = []
    return folder, [name.removeprefix(prefix) for name in found if not name.startswith(".")]


def named(path_of: Callable[[str], str], make: Callable[[str], Value]) -> Found[str, Value]:
    folder, names = folders_below(path_of)
    return Found({name: make(name) for name in sorted(names)}, folder)


def numbered(path_of: Callable[[str], str], make: Callable[[int], Value]) -> Found[int, Value]:
    folder, names = folders_below(path_of)
    if wrong := [path_of(name) for name in names if not NUMBER.fullmatch(name)]:
        raise UserError(f"{wrong[0]}: wanted a whole number at the end of this folder's name; move it elsewhere")
    return Found({number: make(number) for number in sorted(map(int, names))}, folder)


class Folder:
    """A folder of an archive: ``path``, and each file that belongs into it by its name, ``data.tsv`` as ``data_tsv``."""

    path: Path

    def __init__(self, path: str, files: Iterable[str]):
        self.path = Path(path)
        for file in files:
            setattr(self, os.path.basename(file).replace(".", "_"), Path(file))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"
