"""The SQLite database below the outbox: its file, its lock, its schema, and every SQL statement of the program.

Everything here is synchronous and runs on the outbox's one worker thread. Rules of this file: WAL and
``synchronous=FULL``, so that what is committed survives a power cut (D1); one process per file (D5); a damaged
file is set aside, never deleted (D6); created 0600, since GUIDs are in it.
"""

import fcntl
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from adapter.errors import StorageError, StorageFullError, StorageInUseError
from adapter.records import AgentRecord, Change, CommandRecord, Entry, Outgoing, Unreadable

_log = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
_UNREADABLE_KEPT = 1000
"""How many unreadable answers are kept for a person; older ones go, so that a broken gateway cannot fill the disk."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE agent (
  work_no TEXT PRIMARY KEY, guid TEXT, guid_origin TEXT, cookies TEXT NOT NULL, seq INTEGER NOT NULL,
  state BLOB NOT NULL, own INTEGER NOT NULL, stay_out INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE entry (
  row INTEGER PRIMARY KEY, stored_at REAL NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL,
  retain INTEGER NOT NULL, stream_topic TEXT, correlation BLOB
);
CREATE TABLE slot (topic TEXT PRIMARY KEY, payload BLOB NOT NULL, acked INTEGER) WITHOUT ROWID;
CREATE TABLE command (
  work_no TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, body BLOB NOT NULL, received_at REAL NOT NULL,
  expires_at REAL, correlation BLOB, response_topic TEXT, result BLOB, finished_at REAL,
  PRIMARY KEY (work_no, kind, id)
) WITHOUT ROWID;
CREATE INDEX command_finished ON command (finished_at);
CREATE TABLE unreadable (
  number INTEGER PRIMARY KEY, at REAL NOT NULL, work_no TEXT NOT NULL, reason TEXT NOT NULL,
  size_bytes INTEGER NOT NULL, head BLOB NOT NULL
);
CREATE TABLE aside (number INTEGER PRIMARY KEY, at REAL NOT NULL, topic TEXT NOT NULL, reason TEXT NOT NULL,
  payload BLOB NOT NULL);
"""

_SAVE_AGENT = "INSERT OR REPLACE INTO agent VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_ADD_ENTRY = "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?)"
_ENTRIES_BETWEEN = "SELECT * FROM entry WHERE row > ? AND row <= ? ORDER BY row LIMIT ?"
_REMOVE_ENTRY = "DELETE FROM entry WHERE row = ?"
_SET_SLOT = "INSERT OR REPLACE INTO slot VALUES (?, ?, NULL)"
_SLOT_ACKED = "UPDATE slot SET acked = ? WHERE topic = ? AND payload = ?"
_DROP_CLEARED = "DELETE FROM slot WHERE topic = ? AND payload = x''"
_WAITING_SLOTS = "SELECT topic, payload FROM slot WHERE acked IS NULL"
_ADMIT_COMMAND = "INSERT OR IGNORE INTO command VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SAVE_COMMAND = "INSERT OR REPLACE INTO command VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_FIND_COMMAND = "SELECT * FROM command WHERE work_no = ? AND kind = ? AND id = ?"
_PENDING_COMMANDS = "SELECT * FROM command WHERE result IS NULL ORDER BY received_at"
_FORGET_COMMANDS = "DELETE FROM command WHERE finished_at < ?"
_KEEP_UNREADABLE = "INSERT INTO unreadable (at, work_no, reason, size_bytes, head) VALUES (?, ?, ?, ?, ?)"
_TRIM_UNREADABLE = f"DELETE FROM unreadable WHERE number <= (SELECT max(number) FROM unreadable) - {_UNREADABLE_KEPT}"  # noqa: S608 - our own number
_SET_ASIDE = "INSERT INTO aside (at, topic, reason, payload) VALUES (?, ?, ?, ?)"
_DEPTH = "SELECT count(*), min(stored_at), max(row) FROM entry"


class Lock:
    """The lock file beside the database, which also carries the adapter's heartbeat for `ccgateway2mqtt health`.

    A `flock` goes with its process, however that ends, so no stale lock can keep an adapter from starting.
    """

    def __init__(self, database_path: Path) -> None:
        self._path = database_path.with_name(database_path.name + ".lock")
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise StorageInUseError(str(database_path)) from None

    def beat(self, health: dict[str, Any]) -> None:
        """Replace the heartbeat. Not synced: it tells of now, and is worth nothing after a power cut."""
        text = json.dumps(health).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def release(self) -> None:
        """Let another process have the database."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    @staticmethod
    def read(database_path: Path) -> dict[str, Any] | None:
        """Read the heartbeat of the process that holds the lock; `None` where none does.

        The heartbeat is an empty object while that process is still starting.
        """
        path = database_path.with_name(database_path.name + ".lock")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                health = json.loads(os.pread(descriptor, 4096, 0))
            except ValueError:
                return {}
            return health if isinstance(health, dict) else {}
        else:
            return None
        finally:
            os.close(descriptor)


class Database:
    """One SQLite file, opened by one process.

    Attributes:
        last_row: The highest place in line that was ever given out to something still waiting.
    """

    def __init__(self, path: Path, max_mb: int) -> None:
        """Open or create the file.

        Raises:
            StorageInUseError: Another process has it (D5).
            StorageError: It cannot be opened or created: no such directory, read-only, no permission.
        """
        self._path = path
        try:
            self.lock = Lock(path)
        except OSError as err:
            raise StorageError(str(path), f"cannot be opened: {err.strerror}") from err
        try:
            self._connection = self._open_sound(max_mb)
        except (sqlite3.Error, OSError) as err:
            self.lock.release()
            raise StorageError(str(path), f"cannot be used: {err}") from err
        self.last_row: int = self._connection.execute(_DEPTH).fetchone()[2] or 0

    def _open_sound(self, max_mb: int) -> sqlite3.Connection:
        """Open the file; set a damaged one aside and begin anew (D6)."""
        try:
            return self._open(max_mb)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as err:
            aside = self._path.with_name(f"{self._path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
            for suffix in ("", "-wal", "-shm"):
                part = self._path.with_name(self._path.name + suffix)
                if part.exists():
                    part.rename(aside.with_name(aside.name + suffix))
            _log.error("storage: %s is damaged (%s): set aside as %s, a new one begun", self._path, err, aside.name)
            return self._open(max_mb)

    def _open(self, max_mb: int) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=64)
        try:
            # A crash leaves the write-ahead log behind: reading it is the file's first test, this is its second.
            damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if damage != "ok":
                raise sqlite3.DatabaseError(damage)  # noqa: TRY301 - handled like SQLite's own report of damage
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _SCHEMA_VERSION:
                reason = f"written by a newer version of this program (schema {version})"
                raise StorageError(str(self._path), reason)  # noqa: TRY301 - the connection is closed below
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            page_size = connection.execute("PRAGMA page_size").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count={max_mb * 1024 * 1024 // page_size}")
            if version == 0:
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;")
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Fold the write-ahead log in, close the file and release the lock."""
        self._connection.close()
        self.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what the block writes, or none of it.

        Raises:
            StorageFullError: The disk is full, `storage.max_mb` is reached, or the file cannot be written.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.rollback()
                raise
            self._connection.execute("COMMIT")
        except sqlite3.DatabaseError as err:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise StorageFullError(str(self._path), str(err)) from err

    def run(self, works: Sequence[Callable[["Database"], Any]]) -> list[Any]:
        """Do several works in one transaction, one fsync for all of them; give their results in order.

        Raises:
            StorageFullError: Nothing was stored.
        """
        with self._transaction():
            return [work(self) for work in works]

    # Works: called inside `run`.

    def store(self, change: Change, rows: range, stored_at: float) -> None:
        """Store a change; `rows` are the places of its outgoing messages."""
        execute = self._connection.execute
        for row, message in zip(rows, change.outgoing, strict=True):
            execute(
                _ADD_ENTRY,
                (
                    row,
                    stored_at,
                    message.topic,
                    message.payload,
                    message.retain,
                    message.stream_topic,
                    message.correlation,
                ),
            )
        if change.agent is not None:
            agent = change.agent
            execute(
                _SAVE_AGENT,
                (
                    agent.work_no,
                    agent.guid,
                    agent.guid_origin,
                    json.dumps(agent.cookies),
                    agent.seq,
                    agent.state,
                    agent.own,
                    agent.stay_out,
                ),
            )
        for slot in change.slots.items():
            execute(_SET_SLOT, slot)
        for command in change.commands:
            execute(_SAVE_COMMAND, _command_row(command))
        if change.unreadable is not None:
            kept: Unreadable = change.unreadable
            execute(_KEEP_UNREADABLE, (kept.at, kept.work_no, kept.reason, kept.size_bytes, kept.head))
            execute(_TRIM_UNREADABLE)

    def forget_acknowledged(self, rows: Iterable[int], slots: Iterable[tuple[str, bytes]], mark: int) -> None:
        """Remove entries, and note slots, that the broker has acknowledged; `mark` is the counter of that moment."""
        self._connection.executemany(_REMOVE_ENTRY, [(row,) for row in rows])
        for topic, payload in slots:
            if payload:
                self._connection.execute(_SLOT_ACKED, (mark, topic, payload))
            else:
                self._connection.execute(_DROP_CLEARED, (topic,))

    def set_aside(self, entry: Entry, reason: str, at: float) -> None:
        """Take an entry that the broker will never accept out of the line, and keep it for a person."""
        self._connection.execute(_SET_ASIDE, (at, entry.message.topic, reason, entry.message.payload))
        self._connection.execute(_REMOVE_ENTRY, (entry.row,))

    def admit(self, command: CommandRecord) -> CommandRecord | None:
        """Store a new command; give the one that is already there under its id instead, where there is one (C4)."""
        if self._connection.execute(_ADMIT_COMMAND, _command_row(command)).rowcount:
            return None
        row = self._connection.execute(_FIND_COMMAND, (command.work_no, command.kind, command.id)).fetchone()
        return _command(row)

    def forget_commands(self, finished_before: float) -> None:
        """Forget commands whose result is older."""
        self._connection.execute(_FORGET_COMMANDS, (finished_before,))

    def forget_agent(self, work_no: str) -> None:
        """Forget an agent that left the configuration."""
        self._connection.execute("DELETE FROM agent WHERE work_no = ?", (work_no,))

    def set_meta(self, key: str, value: bytes) -> None:
        """Remember a value of the program as a whole."""
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # Reading.

    def entries(self, after: int, upto: int, limit: int) -> list[Entry]:
        """Read up to `limit` entries, those after row `after` up to row `upto`, in order."""
        return [
            Entry(
                row,
                stored_at,
                Outgoing(
                    topic=topic,
                    payload=payload,
                    retain=bool(retain),
                    stream_topic=stream_topic,
                    correlation=correlation,
                ),
            )
            for row, stored_at, topic, payload, retain, stream_topic, correlation in self._connection.execute(
                _ENTRIES_BETWEEN, (after, upto, limit)
            )
        ]

    def waiting_slots(self) -> dict[str, bytes]:
        """Read the newest values that no broker has acknowledged."""
        return dict(self._connection.execute(_WAITING_SLOTS))

    def slot_topics(self) -> list[str]:
        """List the topics of all newest values."""
        return [topic for (topic,) in self._connection.execute("SELECT topic FROM slot")]

    def agents(self) -> dict[str, AgentRecord]:
        """Read all agents by work number."""
        return {
            row[0]: AgentRecord(
                work_no=row[0],
                guid=row[1],
                guid_origin=row[2],
                cookies=tuple((name, value) for name, value in json.loads(row[3])),
                seq=row[4],
                state=row[5],
                own=bool(row[6]),
                stay_out=bool(row[7]),
            )
            for row in self._connection.execute("SELECT * FROM agent")
        }

    def pending_commands(self) -> list[CommandRecord]:
        """Read the commands that have no result yet, oldest first."""
        return [_command(row) for row in self._connection.execute(_PENDING_COMMANDS)]

    def meta(self, key: str) -> bytes | None:
        """Recall a value of the program as a whole."""
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def depth(self) -> tuple[int, float | None]:
        """Count the waiting entries; give the Unix time of the oldest."""
        count, oldest, _ = self._connection.execute(_DEPTH).fetchone()
        return count, oldest

    def size_bytes(self) -> int:
        """Measure the file and its write-ahead log."""
        parts = (self._path, self._path.with_name(self._path.name + "-wal"))
        return sum(part.stat().st_size for part in parts if part.exists())


def _command_row(command: CommandRecord) -> tuple[Any, ...]:
    return (
        command.work_no,
        command.kind,
        command.id,
        command.body,
        command.received_at,
        command.expires_at,
        command.correlation,
        command.response_topic,
        command.result,
        command.finished_at,
    )


def _command(row: tuple[Any, ...]) -> CommandRecord:
    (
        work_no,
        kind,
        identifier,
        body,
        received_at,
        expires_at,
        correlation,
        response_topic,
        result,
        finished_at,
    ) = row
    return CommandRecord(
        work_no=work_no,
        kind=kind,
        id=identifier,
        body=body,
        received_at=received_at,
        expires_at=expires_at,
        correlation=correlation,
        response_topic=response_topic,
        result=result,
        finished_at=finished_at,
    )
