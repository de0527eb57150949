"""The database's file: opened for its owner alone, tried before it is trusted, set aside where it is damaged.

Rules of this file: what SQLite would take for a new database and write over is looked at first; nothing is ever
deleted or replaced (D6); no exception carries what is stored, since GUIDs are.
"""

import contextlib
import fcntl
import logging
import os
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from adapter.errors import StorageDamagedError, StorageError, StorageInUseError
from adapter.store import sql

_log = logging.getLogger(__name__)

_PARTS = ("", "-wal", "-shm")

_OUR_BYTE = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 2**62, 1, 0)
"""The byte that is locked: where no file reaches, and far from those that SQLite locks. A lock on all of the file
would, on network file systems, keep SQLite itself out; one of the process, not of the descriptor, would end as soon as
SQLite gives up one of its own.

Source:
    fcntl_locking(2), "Open file description locks (non-POSIX)", and struct flock there.
"""

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_NO_LIMIT = 2**30 - 1
"""Pages: SQLite's own largest, in the versions that have the smallest."""
_PRIMARY = 0xFF
"""The primary result code is the lowest byte of an extended one.

Source:
    SQLite, "Result and Error Codes", "Primary Result Codes versus Extended Result Codes".
"""


class File:
    """A sound database file, open and locked.

    Attributes:
        connection: The connection to it.
    """

    def __init__(self, path: Path, max_mb: int, *, durable: bool) -> None:
        """Open or create it.

        Args:
            path: Its one name, without a symbolic link in it.
            max_mb: How large it may become, in MiB.
            durable: Whether what is committed is to survive a power cut.

        Raises:
            StorageInUseError: Another process has it, by whichever name (D5).
            StorageDamagedError: It is damaged (D6).
            StorageError: It cannot be used.
        """
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise StorageError(str(path), f"cannot be used: {err.strerror}") from err
        try:
            self._hold()
            self.connection = self._connect(max_mb, durable=durable)
        except OSError as err:
            os.close(self._descriptor)
            raise StorageError(str(path), f"cannot be used: {err.strerror}") from err
        except StorageError:
            os.close(self._descriptor)
            raise

    def _hold(self) -> None:
        """See that it is ours: the lock beside it has another name where a hard link leads here."""
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _OUR_BYTE)
        except BlockingIOError:
            raise StorageInUseError(str(self._path)) from None
        except OSError as err:
            _log.debug("storage: only the lock beside it keeps others away: %s", err.strerror)
        for suffix in _PARTS:
            # Somebody else may have made them, with GUIDs for all to read.
            part = self._path.with_name(self._path.name + suffix)
            with contextlib.suppress(FileNotFoundError):
                try:
                    part.chmod(0o600)
                except PermissionError as err:
                    _log.warning("storage: %s may be open to others: %s", part, err.strerror)
        log = self._path.with_name(self._path.name + "-wal")
        if os.fstat(self._descriptor).st_size == 0 and log.exists() and log.stat().st_size:
            # SQLite deletes the log of a database that is empty.
            raise StorageDamagedError(str(self._path), "it is empty, and its write-ahead log is not")

    def _connect(self, max_mb: int, *, durable: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=64)
        try:
            # A crash leaves the write-ahead log behind: reading it is the file's first test, this is its second.
            damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise StorageDamagedError(str(self._path), damage.splitlines()[-1])  # noqa: TRY301 - the connection is closed below
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > sql.SCHEMA_VERSION:
                reason = f"written by a newer version of this program (schema {version})"
                raise StorageError(str(self._path), reason)  # noqa: TRY301 - the connection is closed below
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
            # Off unless SQLite was built otherwise: GUIDs and call data would stay in pages that are free.
            connection.execute("PRAGMA secure_delete=ON")
            connection.execute(f"PRAGMA max_page_count={_pages(connection, max_mb)}")
            if version == 0:
                connection.executescript(f"BEGIN; {sql.SCHEMA} PRAGMA user_version={sql.SCHEMA_VERSION}; COMMIT;")
        except BaseException as err:
            connection.close()
            if isinstance(err, sqlite3.Error | UnicodeDecodeError):
                raise cannot_be_used(self._path, err) from err
            raise
        return connection

    def size_bytes(self) -> int:
        """Measure it with its write-ahead log.

        Raises:
            StorageDamagedError: Somebody has taken it away: what is stored would be gone with this process.
        """
        ours = os.fstat(self._descriptor)
        # Not by comparing inodes: there are file systems below containers that make them up.
        if not ours.st_nlink or not self._path.exists():
            raise StorageDamagedError(str(self._path), "it was moved, deleted or replaced")
        log = self._path.with_name(self._path.name + "-wal")
        return ours.st_size + (log.stat().st_size if log.exists() else 0)

    def close(self) -> None:
        """Fold the write-ahead log in, and close it."""
        self.connection.close()
        # Only now: to close any descriptor of a file ends this process' locks on it, those of SQLite.
        os.close(self._descriptor)


@contextlib.contextmanager
def beyond_limit(connection: sqlite3.Connection, max_mb: int) -> Iterator[None]:
    """Let the file grow without a limit while the context lasts; then it may be larger than `max_mb` for a while.

    Source:
        SQLite, "PRAGMA max_page_count": it cannot be reduced below the current database size.
    """
    (before,) = connection.execute("PRAGMA max_page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={_NO_LIMIT}")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA max_page_count={min(before, _pages(connection, max_mb))}")


def _pages(connection: sqlite3.Connection, max_mb: int) -> int:
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    return max_mb * 1024 * 1024 // int(page_size)


def damage_of(err: sqlite3.Error | UnicodeDecodeError) -> str | None:
    """Say which damage SQLite, or Python's reading of its text, has met; `None` where it is something else.

    Python names no result code for text that is not UTF-8, but the text itself, which is not for a log.
    """
    if isinstance(err, UnicodeDecodeError) or "decode to UTF-8" in str(err):
        return "it holds text that is none"
    code: int | None = getattr(err, "sqlite_errorcode", None)
    return str(err) if code is not None and code & _PRIMARY in _DAMAGE else None


def cannot_be_used(path: Path, err: sqlite3.Error | UnicodeDecodeError) -> StorageError:
    """Make the error of a file that could not be opened."""
    damage = damage_of(err)
    return (
        StorageError(str(path), f"cannot be used: {err}") if damage is None else StorageDamagedError(str(path), damage)
    )


def set_aside(path: Path) -> Path | None:
    """Rename a damaged file with its write-ahead log; give its new name, or `None` where nothing is left of it.

    Raises:
        OSError: It cannot be renamed.
    """
    stem = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}"
    aside, number = path.with_name(stem), 1
    while any(aside.with_name(aside.name + suffix).exists() for suffix in _PARTS):
        number += 1
        aside = path.with_name(f"{stem}-{number}")
    found = False
    for suffix in _PARTS:
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
            found = True
    return aside if found else None
