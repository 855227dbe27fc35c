"""A whole archive as one zip file, to be sent or stored: what the manifest lists, and the manifest."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import IO

from . import layout
from .boundary import check_boundary
from .errors import Problems, UserError
from .files import folder_while_alive, replacing
from .manifest import leaves_archive, read_manifest
from .zips import ZIP_EPOCH, damaged, opened

BLOCK = 1 << 20
MANIFEST = os.path.basename(layout.manifest(""))


def zip_archive(archive: str, target: str) -> None:
    """Write an archive into a zip; members are ``<its folder's name>/<path>``, stored, without clocks.

    Raises
    ------
    UserError
        If the archive has no manifest, or is not as that says.
    """
    check_boundary(archive)
    listed, name = read_manifest(archive).files, Path(archive).resolve().name
    wrong = [path for path in sorted(listed) if not os.path.isfile(os.path.join(archive, path))]
    with replacing(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as out:
        for path in () if wrong else (*sorted(listed), MANIFEST):
            info = zipfile.ZipInfo(f"{name}/{path}", ZIP_EPOCH)
            info.external_attr = 0o644 << 16
            source = os.path.join(archive, path)
            info.file_size = os.path.getsize(source)  # so that a large one gets the form for large ones
            with open(source, "rb") as file, out.open(info, "w") as member:
                digest = _copy(file, member)
            if path in listed and digest != listed[path][0]:
                wrong.append(path)
        if wrong:
            raise Problems(
                f"{archive}: not as its manifest says; build it, or see armarium verify",
                [f"{p}: missing or changed" for p in wrong],
            )


def unzip_archive(path: str, archive: str) -> None:
    """Put an archive that :func:`zip_archive` wrote into a new folder, whole or not at all; the zip may be a stranger's.

    Raises
    ------
    UserError
        If the folder has files already, or the zip is none of a whole archive.
    """
    target = Path(archive)
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise UserError(f"{archive}: there already; move it away, or name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened(path) as zipped, folder_while_alive(target.parent) as temporary:
        made, digests = temporary / "archive", {}
        for member in zipped.infolist():
            inside = _inside(member.filename, path)
            (made / inside).parent.mkdir(parents=True, exist_ok=True)
            with zipped.open(member) as file, open(made / inside, "xb") as out:
                digests[inside] = _copy(file, out)
        _require_whole(str(made), digests, path)
        os.replace(made, target)


def _require_whole(made: str, digests: dict[str, str], path: str) -> None:
    if MANIFEST not in digests:
        raise damaged(path, f"no {MANIFEST} in it: no whole archive")
    for name, (digest, _) in read_manifest(made).files.items():
        if digests.get(name) != digest:
            raise damaged(path, f"its {name!r:.200} is missing or not as its manifest says")


def _inside(member: str, path: str) -> str:
    """A member's path in the archive; its first folder is the archive's name."""
    name, _, inside = member.partition("/")
    plain = inside and inside.isprintable() and os.path.normpath(inside) == inside
    if name in ("", ".", "..") or not plain or leaves_archive(inside):
        raise damaged(path, f"the member {member!r:.200} is no file of an archive's folder")
    return inside


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    """Copy to the end; the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    while block := source.read(BLOCK):
        digest.update(block)
        target.write(block)
    return digest.hexdigest()
