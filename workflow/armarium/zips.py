"""Zip files as an archive has them: members stored, without clocks. All zip files are written and read here.

A zip may come from a stranger, so it is distrusted: nothing of it is unpacked before it is certain that its
members are stored one beside another and so are no larger than the file itself.
"""

from __future__ import annotations

import io
import os
import shutil
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from .errors import UserError
from .files import LARGEST_TEXT, regular_size, replacing

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
ALIGNMENT = 64  # bytes, of a member in a file that torch writes
LARGEST_DIRECTORY = 64 << 20  # bytes of a table of contents: half a million members
_LOCAL_HEADER = 30  # bytes before a member's name and content
_END, _END64, _LOCATOR64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"


# ---- writing


def zip_bytes(archive: zipfile.ZipFile, name: str, data: bytes | str) -> None:
    """Store a member without a clock: the same bytes every time."""
    info = zipfile.ZipInfo(name, ZIP_EPOCH)
    info.external_attr = 0o644 << 16
    archive.writestr(info, data)


def write_zip(path: str | os.PathLike, members: dict[str, bytes | str]) -> None:
    """A stored zip with ``members`` in order, put in place whole."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            zip_bytes(archive, name, data)


def store_aligned(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Store a member as torch does: without a clock, its content aligned so that it can be mapped into memory."""
    padding = -(archive.fp.tell() + _LOCAL_HEADER + len(name.encode()) + 4) % ALIGNMENT
    info = zipfile.ZipInfo(name, ZIP_EPOCH)
    info.external_attr = 0o644 << 16
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(info, data)


def zipped_again(saved: IO[bytes], member: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    """A file that torch saved, without ``serialization_id``'s hash over its process's own names.

    ``member`` gives the name and the content that each member is to have, or None for one that is left out.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            data = b"0" * 40 if name.endswith("serialization_id") else source.read(name)
            if (kept := member(name, data)) is not None:
                store_aligned(target, *kept)
    return out.getvalue()


# ---- reading


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
    """A zip file of an archive, once it is certain that reading it costs no more than its own size.

    Raises
    ------
    FileNotFoundError
        If there is none.
    UserError
        If it is damaged, or no zip as this workflow writes it.
    """
    regular_size(path)
    with open(path, "rb") as file:
        try:
            archive = checked(file)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, struct.error) as error:
            raise damaged(path, f"no whole zip file ({error})") from None
        try:
            yield archive
        except (zipfile.BadZipFile, EOFError) as error:
            raise damaged(path, f"damaged zip file ({error})") from None


def damaged(path: str | os.PathLike, what: str) -> UserError:
    return UserError(f"{path}: {what}; put back a copy, or delete this file to have it made again")


def checked(file: IO[bytes]) -> zipfile.ZipFile:
    """An open file as a zip whose members are stored one beside another.

    Raises
    ------
    zipfile.BadZipFile
        If it is anything else.
    """
    size = file.seek(0, os.SEEK_END)
    if (directory := _directory_size(file, size)) > min(LARGEST_DIRECTORY, size):
        raise zipfile.BadZipFile(f"its table of contents claims {directory:,} bytes")
    archive = zipfile.ZipFile(file)
    _refuse_bombs(archive)
    return archive


def _directory_size(file: IO[bytes], size: int) -> int:
    """Bytes of the table of contents, as the end of the file says: zipfile reads it whole."""
    file.seek(max(0, size - 98))
    tail = file.read(98).rjust(98, b"\0")
    end, locator, end64 = tail[-22:], tail[-42:-22], tail[:-42]
    if not end.startswith(_END):
        raise zipfile.BadZipFile("its end is missing or followed by something else")
    claimed = struct.unpack_from("<L", end, 12)[0]
    if not locator.startswith(_LOCATOR64):
        return claimed
    if not end64.startswith(_END64):
        raise zipfile.BadZipFile("its end is damaged")
    return struct.unpack_from("<Q", end64, 40)[0]


def _refuse_bombs(archive: zipfile.ZipFile) -> None:
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    if repeated := [name for name, times in Counter(m.filename for m in members).items() if times > 1]:
        raise zipfile.BadZipFile(f"it has the member {repeated[0]!r:.80} twice")
    starts = [m.header_offset for m in members[1:]] + [archive.start_dir]
    for member, following in zip(members, starts, strict=False):
        name = f"member {member.filename!r:.80}"
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise zipfile.BadZipFile(f"{name} is compressed, claiming {member.file_size:,} bytes; wanted it stored")
        if member.flag_bits & 1:
            raise zipfile.BadZipFile(f"{name} is encrypted")
        if not 0 <= member.header_offset <= following - _LOCAL_HEADER - member.file_size:
            raise zipfile.BadZipFile(
                f"{name} overlaps another, or claims more ({member.file_size:,} bytes) than is there"
            )


def zip_member(path: str | os.PathLike, name: str, most: int = LARGEST_TEXT) -> bytes:
    """One member's bytes, at most ``most`` of them.

    Raises
    ------
    FileNotFoundError
        If there is no such zip.
    UserError
        If the zip is damaged or no zip as this workflow writes it, or has no such member or too large a one.
    """
    with opened(path) as archive:
        return member_bytes(archive, name, path, most)


def member_bytes(archive: zipfile.ZipFile, name: str, path: str | os.PathLike, most: int = LARGEST_TEXT) -> bytes:
    """The same of a zip that is open."""
    size = _info(archive, name, path).file_size
    if size > most:
        raise damaged(path, f"member {name!r} has {size:,} bytes, wanted at most {most:,}")
    return archive.read(name)


def copy_member(path: str | os.PathLike, name: str, target: str | os.PathLike) -> None:
    """Write a member to a file of its own, a block at a time."""
    with opened(path) as archive, replacing(target) as temporary:
        _info(archive, name, path)
        with archive.open(name) as member, open(temporary, "wb") as file:
            shutil.copyfileobj(member, file, 1 << 20)


def _info(archive: zipfile.ZipFile, name: str, path: str | os.PathLike) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(name)
    except KeyError:
        raise damaged(path, f"no member '{name}'") from None
