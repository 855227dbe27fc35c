"""What the cache folder holds, who uses it, and cleaning it. No torch."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import layout
from .claims import unused
from .configure import evaluation_settings_of, read_effective
from .errors import UserError
from .files import WRITING, read_json, remove_abandoned
from .hashing import HASHES, HashIndex
from .prepared import CLAIMS, USED_BY, USERS, entry_name, prepared_dir
from .split_files import read_splits
from .torchrun import RANKS
from .trust import EXPORTED

DAY = 86400
OURS = {CLAIMS, USERS, USED_BY}


@dataclass
class Recipe:
    """Prepared cases of one chain of transforms.

    Attributes
    ----------
    folder:
        Where they lie.
    entries:
        Bytes, and when it was last used (seconds since 1970, to a day), by file name.
    data_roots, transforms:
        Of whom it is known that they used them: folders of datasets, components as configured.
    users:
        Archives that have cases among them, and how many.
    """

    folder: Path
    entries: dict[str, tuple[int, float]] = field(default_factory=dict)
    data_roots: set[str] = field(default_factory=set)
    transforms: list[list] = field(default_factory=list)
    users: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.entries.values())

    @property
    def last_used(self) -> float:
        return max((used for _, used in self.entries.values()), default=0.0)


def recipes_in(cache_dir: str) -> list[Recipe]:
    """The prepared cases, the largest first."""
    found = []
    with suppress(FileNotFoundError):
        for folder in os.scandir(prepared_dir(cache_dir)):
            if folder.is_dir(follow_symlinks=False) and not folder.name.startswith(WRITING):
                found.append(_recipe_in(Path(folder.path)))
    return sorted(found, key=lambda r: (-r.size, r.folder))


def _recipe_in(folder: Path) -> Recipe:
    recipe = Recipe(folder)
    for entry in os.scandir(folder):
        # Other endings are an older form's.
        if entry.is_file(follow_symlinks=False) and entry.name not in OURS:
            with suppress(FileNotFoundError):
                status = entry.stat()
                recipe.entries[entry.name] = status.st_size, status.st_mtime
    for path in sorted((folder / USED_BY).glob("*.json")):
        with suppress(UserError, KeyError, TypeError):
            told = read_json(path)
            recipe.data_roots.add(str(told["data_root"]))
            if told["transforms"] not in recipe.transforms:
                recipe.transforms.append(told["transforms"])
    return recipe


def note_users(recipes: Iterable[Recipe], archives: Iterable[str]) -> None:
    """Find out which archives have cases among the prepared ones, by their tables and configurations."""
    for archive in archives:
        try:
            cases, chains = _cases_of(archive), _chains_of(archive)
        except UserError:  # not split yet, or no archive
            continue
        for recipe in recipes:
            if any(_begins(chain, known) for chain in chains for known in recipe.transforms):
                names = {entry_name(recipe.folder.name, *case) for case in cases}
                if count := len(names & recipe.entries.keys()):
                    recipe.users[archive] = count


def _begins(chain: list, known: list) -> bool:
    return chain[: len(known)] == known


def _cases_of(archive: str) -> list[tuple]:
    from .steps import cases_of

    known = read_splits(layout.splits_json(archive))["cases"]
    return [(case["sha256"], case["label"]) for case in cases_of(archive, list(known))]


def _chains_of(archive: str) -> list[list]:
    """The transforms of training, of validation, and of the published model's evaluation."""
    train = read_effective(archive, "train")
    evaluated = evaluation_settings_of(archive, train)
    return [train["pre_transforms"], train["validate"]["pre_transforms"], evaluated["validate"]["pre_transforms"]]


def archives_below(folder: str) -> list[str]:
    """The archives of a folder, by name."""
    if not os.path.isdir(folder):
        return []
    paths = (os.path.join(folder, name) for name in sorted(os.listdir(folder)))
    return [path for path in paths if os.path.isfile(layout.effective(path, "train"))]


# ---- told


def told(cache_dir: str, archives: Iterable[str]) -> str:
    """What the cache folder holds, in words."""
    recipes = recipes_in(cache_dir)
    note_users(recipes, archives)
    lines = [f"{cache_dir}: {_mib(_bytes_below(cache_dir))}", *map(_about, recipes)]
    if not recipes:
        lines.append("no prepared cases")
    index, marks = Path(cache_dir, HASHES), Path(cache_dir, EXPORTED)
    if index.is_file():
        lines.append(f"{HASHES}: hashes of the files of datasets and archives, {_mib(index.stat().st_size)}")
    if marks.is_dir():
        lines.append(f"{EXPORTED}/: {len(os.listdir(marks))} TorchScript files known to be exported here")
    return "\n".join(lines)


def _about(recipe: Recipe) -> str:
    used = time.strftime("%Y-%m-%d", time.localtime(recipe.last_used)) if recipe.entries else "never"
    lines = [f"prepared/{recipe.folder.name}: {len(recipe.entries)} cases, {_mib(recipe.size)}, last used {used}"]
    lines += [f"dataset in {root}" for root in sorted(recipe.data_roots)]
    lines += [f"{archive} has {count} of them" for archive, count in sorted(recipe.users.items())]
    return "\n    ".join(lines)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _bytes_below(folder: str) -> int:
    return sum(size for _, size in _files_below(folder))


def _files_below(folder: str) -> Iterator[tuple[str, int]]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            with suppress(FileNotFoundError):
                yield path, os.lstat(path).st_size


# ---- cleaned


@dataclass
class Cleaned:
    """What was removed, and what was left as it is in use."""

    cases: int = 0
    bytes: int = 0
    in_use: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"prepared cases removed: {self.cases}, {_mib(self.bytes)}"]
        lines += [f"{folder}: left as it is; a running job uses it" for folder in self.in_use]
        return "\n".join(lines)


def clean(cache_dir: str, unused_for: float | None) -> Cleaned:
    """Remove prepared cases, all or those that nobody used for ``unused_for`` days, and what killed processes left.

    Kept is what a running job may read, the hashes of files that are still there, and what says which TorchScript is this user's own.

    Raises
    ------
    UserError
        If files may not be deleted.
    """
    cleaned, before = Cleaned(), None if unused_for is None else time.time() - unused_for * DAY
    try:
        for recipe in recipes_in(cache_dir):
            with unused(recipe.folder / USERS) as free:
                if free:
                    _clean_recipe(recipe, before, cleaned)
                else:
                    cleaned.in_use.append(str(recipe.folder))
        for folder in (prepared_dir(cache_dir), Path(cache_dir, RANKS)):
            remove_abandoned(folder)
    except OSError as error:
        raise UserError(f"{error.filename or cache_dir}: cannot be deleted: {error.strerror}") from None
    HashIndex(Path(cache_dir, HASHES)).forget_missing()
    return cleaned


def _clean_recipe(recipe: Recipe, before: float | None, cleaned: Cleaned) -> None:
    """Remove cases, and with the last of them the folder."""
    old = {name: size for name, (size, used) in recipe.entries.items() if before is None or used < before}
    for name, size in old.items():
        os.unlink(recipe.folder / name)
        cleaned.cases += 1
        cleaned.bytes += size
    if len(old) == len(recipe.entries):
        shutil.rmtree(recipe.folder)
