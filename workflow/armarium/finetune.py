"""Fine-tune a clone: put what its training is to start from into ``resources/parent/``, as a source.

The parent may be another archive, with all that it says of itself, or a bare file of weights. Of an archive with the same
cases in the same splits each split goes on from its own, so that no split is scored on cases that its weights have seen.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import layout
from .boundary import check_boundary
from .calling import place_of
from .clone import clone
from .configure import published_checkpoint, read_effective
from .contents import contents_of
from .errors import UserError
from .files import json_text, read_json, read_text, replacing, write_bytes, write_json, write_text
from .hashing import HASHES, HashIndex, sha256
from .manifest import archive_identity, read_manifest
from .origin import is_as_cloned, is_clone
from .parent import CONTINUE, EVERY_SPLIT, TRANSFER, Parent, read_parent
from .plain_weights import plain_weights
from .run import epoch_of, finished_run
from .running import at_work

CONFIGURATION = Path("config/config.yaml")
"""The configuration file that Snakemake reads in a working directory."""


def prepare(archive: str, start: str | None = None) -> None:
    """Make a clone's training start from a parent's weights.

    Nothing is trained yet: the next build finds that training has another beginning. Where ``resources/parent/`` holds
    what is asked for, nothing is written.

    Parameters
    ----------
    archive:
        A clone.
    start:
        Another archive's ``models/model.pt`` (transfer) or ``models/final_model.pt`` (continue), that archive's folder
        (as its model.pt), or any file of weights (transfer); relative to ``archive`` or else to the working directory.
        None: the model that it was cloned with or, where it was prepared before, what it starts from since.

    Raises
    ------
    UserError
        If it is no clone, or there is nothing to start from that can be trusted and read.
    """
    directory, _ = place_of(archive)
    archive = os.path.normpath(archive)
    check_boundary(archive)
    _refuse_original(archive, directory)
    before = read_parent(archive)
    path = _asked_for(archive, start, before)
    if path is not None:
        _exists(path)
        place = _archive_of(path)
        _put(archive, before, _of_archive(archive, place, path) if place else _of_file(path))


def prepare_clone(source: str, target: str, changes: dict[str, str], start: str | None) -> None:
    """Clone ``source`` to ``target`` and prepare that; where it cannot be prepared, there is no clone.

    Raises
    ------
    UserError, Problems
        As :func:`~armarium.clone.clone` and :func:`prepare` do.
    """
    clone(source, target, changes)
    try:
        prepare(target, start)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def start_file(given: str | None, further: bool) -> str | None:
    """What :func:`prepare` takes, of a command line: an absolute path, or one in the clone.

    Parameters
    ----------
    given:
        A file or an archive's folder, relative to the working directory.
    further:
        Whether to continue, so that a folder's, or the clone's own, final_model.pt is meant.

    Raises
    ------
    UserError
        If ``given`` does not exist, or can only be transferred and ``further`` is asked for.
    """
    final = layout.published_final("").removeprefix("/")
    if given is None:
        return final if further else None
    path = os.path.abspath(given)
    if not os.path.exists(path):
        raise UserError(f"{given}: file not found; wanted the weights to start from")
    if further and os.path.isdir(path):
        return layout.published_final(path)
    if further and os.path.basename(path) != os.path.basename(final):
        raise UserError(f"{given}: weights alone; to continue, give an archive's folder or its {final}")
    return path


# ---- what is asked for


def _how(archive: str) -> str:
    clone = f"{archive}-tuned"
    return (
        f"clone it and fine-tune the clone: armarium clone {archive} {clone} && {layout.command(clone, 'finetune.sh')}"
    )


def _refuse_original(archive: str, directory: Path) -> None:
    whole = os.path.realpath(archive)
    if os.path.relpath(whole, directory) in _listed(directory):
        raise UserError(
            f"{archive}: listed in {directory / CONFIGURATION}, which says how it is trained; fine-tuning would overwrite "
            f"its models: {_how(archive)}"
        )
    if not is_clone(archive):
        raise UserError(f"{archive}: not a clone; fine-tuning would overwrite its models: {_how(archive)}")
    if busy := [p for p in at_work(directory) if any(f.startswith(f"{whole}{os.sep}") for f in p.makes)]:
        raise UserError(f"{archive}: being built ({busy[0]}); run this again when that has ended")


def _listed(directory: Path) -> list[str]:
    """The archives that the working directory's configuration file lists, relative to it."""
    import yaml

    path = directory / CONFIGURATION
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, yaml.YAMLError):
        return []  # planning, which is next, tells
    config = config if isinstance(config, dict) else {}
    names, folder = config.get("archives"), config.get("archives_dir", "archives")
    return [os.path.normpath(f"{folder}/{name}") for name in names] if isinstance(names, dict) else []


def _asked_for(archive: str, start: str | None, before: Parent | None) -> str | None:
    """The file to start from; None to keep what is in ``resources/parent/``."""
    path = _found(archive, start)
    if path and not _is_own(archive, path):
        return path
    if before and not _came_with_the_clone(archive) and _is_asked_again(path, before):
        return None
    path = path or layout.published_model(archive)
    if is_as_cloned(archive) and _is_as_listed(
        archive, [path, *(layout.run_zip(archive, k) for k in _splits(archive))]
    ):
        return path
    raise UserError(
        f"{path}: this archive's own model, and not the one that it was cloned with; a training cannot start from its own "
        f"result: {_how(archive)}"
    )


def _is_asked_again(path: str | None, before: Parent) -> bool:
    return path is None or os.path.basename(path) in (os.path.basename(before.file), *before.files)


def _came_with_the_clone(archive: str) -> bool:
    """Whether ``resources/parent/`` is that of the archive that was cloned, itself fine-tuned."""
    return is_as_cloned(archive) and _is_as_listed(archive, [layout.parent_json(archive)])


def _is_as_listed(archive: str, paths: list[str]) -> bool:
    """Whether files are those of the manifest; what is not there may be lost."""
    listed = read_manifest(archive).files
    there = [path for path in paths if os.path.isfile(path)]
    return all(listed.get(os.path.relpath(path, archive), ("",))[0] == sha256(path) for path in there)


def _found(archive: str, start: str | None) -> str | None:
    """The file to start from; it may turn out not to exist."""
    if start is None:
        return None
    places = list(dict.fromkeys([os.path.join(archive, start), start]))
    path = next((p for p in places if os.path.exists(p)), None)
    if path is None:
        raise UserError(f"{' and '.join(places)}: file not found; wanted the weights to start from")
    return os.path.normpath(layout.published_model(path) if os.path.isdir(path) else path)


def _is_own(archive: str, path: str) -> bool:
    return os.path.realpath(path).startswith(f"{os.path.realpath(archive)}{os.sep}")


def _exists(path: str) -> None:
    if not os.path.isfile(path):
        raise UserError(f"{path}: file not found; wanted the weights to start from")


def _archive_of(path: str) -> str | None:
    """The archive whose published weights a file is; None where it is of none."""
    whole = os.path.abspath(path)
    folder = os.path.dirname(os.path.dirname(whole))
    published = whole in (layout.published_model(folder), layout.published_final(folder))
    return folder if published and os.path.isfile(layout.archive_json(folder)) else None


# ---- what to put there


@dataclass
class _Given:
    """A parent, how each of its files is written, and the SHA-256 of the images it was trained on, if that is known."""

    parent: Parent
    writers: dict[str, Callable[[str], None]]
    cases: dict[str, list[str]]


def _of_file(path: str) -> _Given:
    """A bare file of weights."""
    if os.path.basename(path) == os.path.basename(layout.published_final("")):
        raise UserError(
            f"{path}: of no archive of this workflow: to continue, its optimizer's state is needed too; give the weights "
            "under another name to transfer them alone"
        )
    return _one_file(path, os.path.basename(path), None, f"sha256:{sha256(path)}", {})


def _one_file(path: str, file: str, name: str | None, identity: str, cases: dict[str, list[str]]) -> _Given:
    """The same weights for every split."""
    from .starting import read_weights

    read_weights(path)
    only = "model.pt"
    parent = Parent(TRANSFER, file, name, identity, {EVERY_SPLIT: only}, {only: sha256(path)})
    return _Given(parent, {only: lambda target: _copy(path, target)}, cases)


def _copy(path: str, target: str) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(path, temporary)


def _of_archive(archive: str, place: str, path: str) -> _Given:
    """Published weights of an archive of this workflow."""
    check_boundary(place)
    try:
        splits = _splits(archive)
        _refuse_other_than_listed(place, path)
        if os.path.abspath(path) == layout.published_final(place):
            return _continued(place, splits)
        if len(splits) > 1 and _same_splits(archive, place):
            return _transferred_by_split(place, splits)
        cases = {EVERY_SPLIT: _seen(place, str(contents_of(place).publish))}
        return _one_file(path, os.path.relpath(path, place), *_name_and_identity(place), cases)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{place}: not an archive as this workflow makes it ({type(error).__name__}: {error}); armarium verify {place} "
            "tells what is wrong; copied out of it, the file of weights alone can be started from"
        ) from None


def _refuse_other_than_listed(place: str, path: str) -> None:
    """A parent is named by the identity that its manifest states, which must be of these weights."""
    files = [path, *(layout.run_zip(place, split) for split in _splits(place))]
    if os.path.isfile(layout.manifest(place)) and not _is_as_listed(place, files):
        raise UserError(
            f"{path}: it, or a run beside it, is not as {layout.manifest(place)} says, so whose weights these are is not known; build that "
            f"archive to its end, or see armarium verify {place}"
        )


def _name_and_identity(place: str) -> tuple[str, str]:
    """The parent's; of a clone as it was cloned those of the archive that it is a copy of."""
    manifest = read_manifest(place) if os.path.isfile(layout.manifest(place)) else None
    if manifest and manifest.identifier:
        return manifest.name or os.path.basename(place), manifest.identifier
    with tempfile.TemporaryDirectory() as folder:
        return os.path.basename(place), archive_identity(place, HashIndex(os.path.join(folder, HASHES)))


def _transferred_by_split(place: str, splits: list[str]) -> _Given:
    """Each split's own best weights, as models/model.pt has those of the published one."""
    checkpoint = published_checkpoint(read_effective(place, "train"))
    starts, files, writers = {}, {}, {}
    for split in splits:
        run = layout.run_zip(place, split)
        data = plain_weights(run, epoch_of(finished_run(run), checkpoint))
        name = starts[split] = f"split-{split}.pt"
        files[name] = hashlib.sha256(data).hexdigest()
        writers[name] = lambda target, data=data: write_bytes(target, data)
    file = layout.published_model("").removeprefix("/")
    parent = Parent(TRANSFER, file, *_name_and_identity(place), starts, files)
    return _Given(parent, writers, {split: _seen(place, split) for split in splits})


def _continued(place: str, splits: list[str]) -> _Given:
    """Each split's whole run: weights, optimizer's state and history."""
    from .starting import validation_digest

    starts, files, writers, validated = {}, {}, {}, {}
    settings = read_effective(place, "train")
    for split in splits:
        run = layout.run_zip(place, split)
        if not os.path.isfile(run):
            raise UserError(
                f"{run}: file not found; to continue, the run of every split is needed, with its optimizer's state: ask "
                "Snakemake for it, restore splits, or start from models/model.pt (transfer)"
            )
        finished_run(run, "checkpoints", "fingerprint")
        name = starts[split] = f"split-{split}.zip"
        files[name] = sha256(run)
        writers[name] = lambda target, run=run: _copy(run, target)
        validated[split] = validation_digest(settings, _cases(place, split, layout.VALIDATION))
    file = layout.published_final("").removeprefix("/")
    parent = Parent(CONTINUE, file, *_name_and_identity(place), starts, files, validated)
    return _Given(parent, writers, {split: _seen(place, split) for split in splits})


# ---- cases


def _splits(archive: str) -> list[str]:
    return [str(split) for split in contents_of(archive).splits]


def _cases(place: str, split: str, side: str) -> list[dict]:
    from .steps import cases_of, sides_of_split

    return cases_of(place, sides_of_split(place, split)[side])


def _images(place: str, split: str, side: str) -> list[str]:
    """SHA-256 of the images of a side's cases."""
    return sorted({case["sha256"][0] for case in _cases(place, split, side)})


def _same_splits(archive: str, place: str) -> bool:
    """Whether both have the same cases in every split, as far as can be seen."""
    with suppress(UserError, OSError):
        pairs = [(split, side) for split in _splits(archive) for side in layout.SIDES]
        return all(_images(archive, *pair) == _images(place, *pair) for pair in pairs)
    return False


def _seen(place: str, split: str) -> list[str]:
    """SHA-256 of the images that a split's weights were trained on, or those that they started from."""
    path = layout.parent_cases(place)
    before = read_json(path) if os.path.isfile(path) else {}
    earlier = before.get(split, before.get(EVERY_SPLIT, []))
    return sorted({*_images(place, split, layout.TRAIN), *earlier})


# ---- putting it there


def _put(archive: str, before: Parent | None, given: _Given) -> None:
    """Replace ``resources/parent/``; what says what it is goes first and comes last, so that half of it is noticed."""
    described, cases = layout.parent_json(archive), layout.parent_cases(archive)
    text = json_text(given.cases) if given.cases else None
    if before == given.parent and (read_text(cases) if os.path.isfile(cases) else None) == text:
        return
    with suppress(FileNotFoundError):
        os.remove(described)
    shutil.rmtree(layout.parent_dir(archive), ignore_errors=True)
    for name, write in given.writers.items():
        write(layout.parent_file(archive, name))
        if sha256(layout.parent_file(archive, name)) != given.parent.files[name]:
            raise UserError(f"{archive}: its parent changed while it was copied; run this again")
    if text is None:
        print(
            f"{given.parent.file}: which cases these weights were trained on is not known: whether they have seen those that "
            "they are scored on here cannot be told",
            file=sys.stderr,
        )
    else:
        write_text(cases, text)
    write_json(described, given.parent.as_json())
