"""The SQLite database below the outbox: its file, what is written into it, and what is read.

Everything here is synchronous and runs on the outbox's one worker thread. Rules of this file: WAL and
``synchronous=FULL``, so that what is committed survives a power cut (D1); one process per file (D5); a damaged
file is set aside, never deleted (D6); created 0600, since GUIDs are in it.
"""

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self, TypeVar

from adapter.errors import StorageError, StorageFullError
from adapter.store import sql
from adapter.store.lock import Lock
from adapter.store.records import AgentRecord, Change, CommandRecord, Entry, Outgoing, Removals

__all__ = ["Database", "Lock"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_AGENT_COLUMNS = tuple(field.name for field in fields(AgentRecord))
_COMMAND_COLUMNS = tuple(field.name for field in fields(CommandRecord))
"""The members of both are stored in their order."""


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
        except StorageError:
            self.lock.release()
            raise
        self.last_row: int = self._connection.execute(sql.DEPTH).fetchone()[2] or 0

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
            if version > sql.SCHEMA_VERSION:
                reason = f"written by a newer version of this program (schema {version})"
                raise StorageError(str(self._path), reason)  # noqa: TRY301 - the connection is closed below
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            page_size = connection.execute("PRAGMA page_size").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count={max_mb * 1024 * 1024 // page_size}")
            if version == 0:
                connection.executescript(f"BEGIN; {sql.SCHEMA} PRAGMA user_version={sql.SCHEMA_VERSION}; COMMIT;")
            connection.execute(sql.DEPTH)
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

    def read(self, work: Callable[["Database"], _T]) -> _T:
        """Read, which needs no room.

        Raises:
            StorageError: The file cannot be read.
        """
        try:
            return work(self)
        except (sqlite3.Error, OSError) as err:
            raise StorageError(str(self._path), f"cannot be read: {err}") from err

    # Works: called inside `run`.

    def store(self, change: Change, rows: range) -> None:
        """Store a change; `rows` are the places of its outgoing messages."""
        execute = self._connection.execute
        for row, out in zip(rows, change.outgoing, strict=True):
            execute(
                sql.ADD_ENTRY,
                (row, change.made_at, out.topic, out.payload, out.retain, out.stream_topic, out.correlation),
            )
        if change.agent is not None:
            execute(sql.SAVE_AGENT, _agent_row(change.agent))
        for work_no in change.forgotten:
            execute(sql.FORGET_AGENT, (work_no,))
        for slot in change.slots.items():
            execute(sql.SET_SLOT, slot)
        for command in change.commands:
            execute(sql.SAVE_COMMAND, _command_row(command))
        if change.unreadable is not None:
            kept = change.unreadable
            execute(sql.KEEP_UNREADABLE, (kept.at, kept.work_no, kept.reason, kept.size_bytes, kept.head))
            execute(sql.TRIM_UNREADABLE)

    def forget_acknowledged(self, removals: Removals) -> int:
        """Remove entries that the broker has, but keep what is retained; give how many entries were still there."""
        execute, execute_many = self._connection.execute, self._connection.executemany
        values = [value for row in removals.kept for value in execute(sql.ENTRY_VALUE, (row,))]
        # First what makes room: in a full database nothing else would go through.
        count = execute_many(sql.REMOVE_ENTRY, [(row,) for row in removals.rows]).rowcount
        execute_many(sql.KEEP_RETAINED, [(*value, removals.mark) for value in values])
        execute_many(sql.SLOT_ACKED, [(removals.mark, slot.topic, slot.payload) for slot in removals.slots])
        return count

    def offer_again(self, marks: range, after: str, limit: int) -> list[tuple[str, bytes]]:
        """Have newest values wait again that were acknowledged at one of `marks`: the broker may have lost them (D4a).

        Returns:
            Up to `limit` of them with their topics, those that follow the topic `after`, in order.
        """
        found = self._connection.execute(sql.ACKED_BETWEEN, (marks.start, marks.stop - 1, after, limit)).fetchall()
        self._connection.executemany(sql.SLOT_WAITS, [(topic,) for topic, _ in found])
        return found

    def set_mark(self, mark: int) -> None:
        """Remember the counter, and forget what was cleared long before."""
        self.set_meta("mark", str(mark).encode())
        self._connection.execute(sql.DROP_CLEARED, (mark - sql.CLEARED_KEPT,))

    def set_aside(self, entry: Entry, reason: str, at: float) -> int:
        """Take an entry that the broker will never accept out of the line, and keep it for a person.

        Returns:
            How many entries left the line: none where it was set aside before.
        """
        removed = self._connection.execute(sql.REMOVE_ENTRY, (entry.row,)).rowcount
        if removed:
            self._connection.execute(sql.SET_ASIDE, (at, entry.message.topic, reason, entry.message.payload))
            self._connection.execute(sql.TRIM_ASIDE)
        return removed

    def admit(self, command: CommandRecord) -> CommandRecord | None:
        """Store a new command; give the one that is already there under its id instead, where there is one (C4)."""
        if self._connection.execute(sql.ADMIT_COMMAND, _command_row(command)).rowcount:
            return None
        row = self._connection.execute(sql.FIND_COMMAND, (command.work_no, command.kind, command.id)).fetchone()
        return _command(row)

    def forget_commands(self, finished_before: float) -> None:
        """Forget commands whose result is older."""
        self._connection.execute(sql.FORGET_COMMANDS, (finished_before,))

    def set_meta(self, key: str, value: bytes) -> None:
        """Remember a value of the program as a whole."""
        self._connection.execute(sql.SET_META, (key, value))

    # Reading.

    def entries(self, after: int, upto: int, limit: int) -> list[Entry]:
        """Read up to `limit` entries, those after row `after` up to row `upto`, in order."""
        return [_entry(*row) for row in self._connection.execute(sql.ENTRIES_BETWEEN, (after, upto, limit))]

    def waiting_slots(self) -> dict[str, bytes]:
        """Read the newest values that no broker has acknowledged."""
        return dict(self._connection.execute(sql.WAITING_SLOTS))

    def slot_topics(self) -> list[str]:
        """List the topics of all newest values."""
        return [topic for (topic,) in self._connection.execute(sql.SLOT_TOPICS)]

    def agents(self) -> dict[str, AgentRecord]:
        """Read all agents by work number."""
        return {row[0]: _agent(row) for row in self._connection.execute(sql.AGENTS)}

    def pending_commands(self) -> list[CommandRecord]:
        """Read the commands that have no result yet, oldest first."""
        return [_command(row) for row in self._connection.execute(sql.PENDING_COMMANDS)]

    def meta(self, key: str) -> bytes | None:
        """Recall a value of the program as a whole."""
        row = self._connection.execute(sql.META, (key,)).fetchone()
        return None if row is None else row[0]

    def mark(self) -> int:
        """Recall the counter of the last mark that may be at a broker; 0 before the first."""
        return int(self.meta("mark") or 0)

    def newest_mark(self) -> int:
        """Find the highest counter that stands beside a value."""
        return self._connection.execute(sql.NEWEST_MARK).fetchone()[0] or 0

    def depth(self) -> tuple[int, float | None]:
        """Count the waiting entries; give the Unix time of the oldest."""
        count, oldest, _ = self._connection.execute(sql.DEPTH).fetchone()
        return count, oldest

    def size_bytes(self) -> int:
        """Measure the file and its write-ahead log."""
        parts = (self._path, self._path.with_name(self._path.name + "-wal"))
        return sum(part.stat().st_size for part in parts if part.exists())


def _agent_row(agent: AgentRecord) -> tuple[Any, ...]:
    members = {name: getattr(agent, name) for name in _AGENT_COLUMNS}
    return tuple((members | {"cookies": json.dumps(agent.cookies)}).values())


def _agent(row: tuple[Any, ...]) -> AgentRecord:
    members = dict(zip(_AGENT_COLUMNS, row, strict=True))
    members["cookies"] = tuple((name, value) for name, value in json.loads(members["cookies"]))
    return AgentRecord(**members | {name: bool(members[name]) for name in ("own", "stay_out")})


def _entry(  # noqa: PLR0913, PLR0917 - the columns in their order
    row: int,
    made_at: float,
    topic: str,
    payload: bytes,
    retain: int,
    stream_topic: str | None,
    correlation: bytes | None,
) -> Entry:
    message = Outgoing(
        topic=topic, payload=payload, retain=bool(retain), stream_topic=stream_topic, correlation=correlation
    )
    return Entry(row, made_at, message)


def _command_row(command: CommandRecord) -> tuple[Any, ...]:
    return tuple(getattr(command, name) for name in _COMMAND_COLUMNS)


def _command(row: tuple[Any, ...]) -> CommandRecord:
    return CommandRecord(**dict(zip(_COMMAND_COLUMNS, row, strict=True)))
