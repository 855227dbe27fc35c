"""SHA-256 of files, with a persistent cache keyed by what ``stat`` says, like git's index."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from .errors import UserError

RACY_NS = 2 * 10**9
"""A file younger than this when it is hashed may change again without its mtime showing it."""

HASHES = "hashes.sqlite"
"""Of the cache folder: the database of a :class:`HashIndex`."""

_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_UNUSABLE = tuple(f"SQLITE_{what}" for what in ("BUSY", "CANTOPEN", "FULL", "IOERR", "LOCKED", "READONLY"))
_SCHEMA = "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, inode INTEGER, sha256 TEXT NOT NULL) WITHOUT ROWID"


def sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits, read as a stream."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def as_checked(root: str | os.PathLike, digests: dict[str, str]) -> Iterator[None]:
    """Refuse what is read in the body from files that are no longer those that the data check saw.

    Parameters
    ----------
    root:
        Folder of the dataset.
    digests:
        SHA-256 that each file had when it was checked.

    Raises
    ------
    UserError
        If one is gone or another, also where that made the body fail.
    """
    try:
        yield
    except Exception:
        _refuse_changed(root, digests)
        raise
    _refuse_changed(root, digests)


def _refuse_changed(root: str | os.PathLike, digests: dict[str, str]) -> None:
    for name, wanted in digests.items():
        path = os.path.join(root, name)
        try:
            found = sha256(path)
        except FileNotFoundError:
            raise UserError(
                f"{path}: file not found; restore it, or give the dataset's folder with --config data_root=DIR"
            ) from None
        if found != wanted:
            raise UserError(
                f"{path}: changed since the data was checked (found SHA-256 {found[:12]}…, wanted {wanted[:12]}…); restore it, or run the same "
                "command again: then it is checked, and what was made from it is made anew"
            )


def list_sha256(files: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over (path, SHA-256) pairs: over what ``sha256sum`` prints for those files, sorted by path."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _signature(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


class HashIndex:
    """SHA-256 of files, computed only for those whose size, mtime or inode is new.

    Several processes may use one database at once. It is a cache and no more: a damaged one is started
    anew, and where it cannot be read or written (a lock that is never released, a read-only folder)
    files are hashed.

    Parameters
    ----------
    db_path:
        The SQLite file; its folder is made when missing.
    """

    def __init__(self, db_path: str | os.PathLike):
        self.db_path = os.fspath(db_path)

    def sha256(self, path: str | os.PathLike) -> str:
        """SHA-256 of one file."""
        return self.many([path])[path]

    def many(self, paths: Iterable[str | os.PathLike]) -> dict:
        """SHA-256 of each file, keyed by the paths as given.

        Raises
        ------
        OSError
            If a file is missing or cannot be read.
        """
        keys = {path: os.path.abspath(path) for path in paths}
        known = self._database(self._load, keys.values()) or {}
        found, new = {}, []
        for path, key in keys.items():
            stat = os.stat(key)
            size, mtime_ns, inode, digest = known.get(key, (None, None, None, None))
            if (size, mtime_ns, inode) != _signature(stat):
                digest, trusted = _hash_steady(key)
                if trusted is not None:
                    new.append((key, *trusted, digest))
            found[path] = digest
        if new:
            self._database(self._store, new)
        return found

    def note(self, digests: dict[str, str], read_since_ns: int) -> None:
        """Remember digests that somebody else computed, so that a large dataset is not read again to plan.

        Parameters
        ----------
        digests:
            SHA-256 by path.
        read_since_ns:
            When the reading began (``time.time_ns()``); files modified since, or just before, are left out.
        """
        stats = {os.path.abspath(path): (os.stat(path), digest) for path, digest in digests.items()}
        rows = [(k, *_signature(s), d) for k, (s, d) in stats.items() if s.st_mtime_ns < read_since_ns - RACY_NS]
        self._database(self._store, rows)

    def forget_missing(self) -> None:
        """Forget files that are gone, if there is a database."""
        if os.path.isfile(self.db_path):
            self._database(self._forget, None)

    # ---- the database

    def _database(self, work, argument):
        """Do ``work``; None where the database is locked for too long, read-only or damaged twice."""
        import sqlite3

        for _ in range(2):
            connection = None
            try:
                os.makedirs(os.path.dirname(self.db_path) or ".", exist_ok=True)
                # No WAL: its shared memory does not work on the network disks that clusters share.
                connection = sqlite3.connect(self.db_path, timeout=30)
                with connection:
                    connection.execute(_SCHEMA)
                    return work(connection, argument)
            except OSError:
                return None
            except sqlite3.DatabaseError as error:
                reason = getattr(error, "sqlite_errorname", "")
                if reason.startswith(_UNUSABLE):
                    return None
                if not reason.startswith(_DAMAGED):
                    raise
                self._discard()
            finally:
                if connection is not None:
                    connection.close()
        return None

    def _discard(self) -> None:
        for path in (self.db_path, f"{self.db_path}-journal"):
            try:
                os.remove(path)
            except OSError:  # another process was quicker, or the folder is read-only
                pass

    @staticmethod
    def _load(connection, keys) -> dict[str, tuple]:
        rows = connection.execute(
            "SELECT h.path, size, mtime_ns, inode, sha256 FROM json_each(?) JOIN hashes h ON h.path = value",
            (json.dumps(list(keys)),),
        )
        return {path: tuple(rest) for path, *rest in rows}

    @staticmethod
    def _forget(connection, _) -> None:
        gone = [row for row in connection.execute("SELECT path FROM hashes") if not os.path.exists(row[0])]
        connection.executemany("DELETE FROM hashes WHERE path = ?", gone)

    @staticmethod
    def _store(connection, rows) -> None:
        connection.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?)", rows)


def _hash_steady(path: str) -> tuple[str, tuple[int, int, int] | None]:
    """A file's digest, with its signature if that can vouch for it later.

    It cannot when the file changed while being read, or was modified so recently that a further change
    could leave the same mtime (git's "racy" rule).
    """
    before = _signature(os.stat(path))
    digest = sha256(path)
    steady = before == _signature(os.stat(path)) and time.time_ns() - before[1] > RACY_NS
    return digest, before if steady else None
