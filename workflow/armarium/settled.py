"""Archives for which a Snakemake found nothing to do, and whose files are those that it found. No torch.

Snakemake plans a complete archive of five splits as some 150 jobs, each time, to find that none is to be run. What it
plans by are the archive's files, its configuration, the dataset and the workflow: while none of these changed, it is not
asked again. Configuration and data are looked at in every call (see :mod:`~armarium.configure`); the archive's other files
by what their folders say of them.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress

from . import layout
from .errors import UserError
from .files import read_json, write_json
from .manifest import archive_files


def state_of(archive: str, circumstances: str) -> str:
    """A digest over what decides whether something is to be done for an archive, but its configuration and its data.

    Parameters
    ----------
    archive:
        The archive's folder.
    circumstances:
        What beside the archive decides it: the workflow, and how Snakemake was called.
    """
    digest = hashlib.sha256(f"{circumstances}\n{_facts(archive)}\n".encode())
    for path in [*archive_files(archive), os.path.relpath(layout.manifest(archive), archive)]:
        with suppress(FileNotFoundError):
            digest.update(f"{path}\0{_facts(f'{archive}/{path}')}\n".encode())
    return digest.hexdigest()


def _facts(path: str) -> str:
    """Of a file what changes whenever it does: no program can set the time of its last change (ctime)."""
    found = os.stat(path)
    times = f" {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}" if not os.path.isdir(path) else ""
    return f"{found.st_ino}{times}"


def note_settled(archive: str, state_dir: str | os.PathLike, state: str) -> None:
    """Remember that in this state nothing is to be done for an archive; where that cannot be written, it is planned again."""
    with suppress(OSError, UserError):
        write_json(_record(archive, state_dir), {"state": state})


def was_settled(archive: str, state_dir: str | os.PathLike, state: str) -> bool:
    """Whether it is remembered that in this state nothing is to be done for an archive."""
    try:
        return read_json(_record(archive, state_dir)) == {"state": state}
    except UserError:  # not noted yet, or damaged: it is planned again
        return False


def _record(archive: str, state_dir: str | os.PathLike) -> str:
    key = hashlib.sha256(os.path.normpath(archive).encode()).hexdigest()[:32]
    return os.path.join(state_dir, "settled", f"{key}.json")
