"""The SQLite database below the outbox: its file, what is written into it, and what is read.

Everything here is synchronous and runs on the outbox's one worker thread. Rules of this file: WAL and
``synchronous=FULL``, so that what is committed survives a power cut (D1); one process per file (D5); a damaged
file is set aside, never deleted (D6); created 0600, since GUIDs are in it.
"""

import logging
import os
import sqlite3
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

from adapter.errors import StorageDamagedError, StorageError, StorageFullError
from adapter.store import sql
from adapter.store.file import File, beyond_limit, cannot_be_used, damage_of, set_aside
from adapter.store.lock import Lock
from adapter.store.records import AgentRecord, Change, CommandRecord, Entry, Removals, Survivors
from adapter.store.rows import agent_of, agent_row, command_of, command_row, entry_of, entry_row

__all__ = ["MEMBER", "Database", "Lock"]

MEMBER = "cluster"
"""Under which a database remembers that it is only the line of a fleet's member: its agents are in the journals."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_MIB = 1024 * 1024
_LARGEST_BYTES = 2 * _MIB
"""More than any one answer needs: 1 MiB of it is read (P14)."""
_SIZES = ("page_count", "page_size")

_AGAIN_S = 60.0
"""How soon another file may be set aside: a disk that damages each one is not to be filled with them."""


class Database:
    """One SQLite file, opened by one process.

    Attributes:
        last_row: The highest place in line that was ever given out to something still waiting.
    """

    def __init__(self, path: Path, max_mb: int, *, durable: bool = True) -> None:
        """Open or create the file; set a damaged one aside and begin anew (D6).

        Args:
            path: The file.
            max_mb: How large it may become, in MiB.
            durable: Whether what is committed is to survive a power cut.

        Raises:
            StorageInUseError: Another process has it (D5).
            StorageError: It cannot be opened or created: no such directory, read-only, no permission.
        """
        self._path = path.resolve()  # one file has one lock, whichever link leads to it
        self._max_mb = max_mb
        self._durable = durable
        self._file: File | None = None
        self._meta: dict[str, bytes] = {}
        self._owed: Survivors | None = None
        self._damage: str | None = None
        self._set_aside_at = float("-inf")
        try:
            self.lock = Lock(self._path)
        except OSError as err:
            raise StorageError(str(path), f"cannot be opened: {err.strerror}") from err
        try:
            try:
                self._open()
            except StorageDamagedError as error:
                self._damage = error.reason
                self.begin_anew(None)
                self.run([])
        except StorageError:
            self.lock.release()
            raise

    def _open(self) -> None:
        """Open the file, and read all that the program begins with: what cannot be read is damaged."""
        file = File(self._path, self._max_mb, durable=self._durable)
        self._connection = file.connection
        try:
            self.last_row: int = self._connection.execute(sql.DEPTH).fetchone()[2] or 0
            self._meta = dict(self._connection.execute(sql.ALL_META))
            for look in (self.agents, self.pending_commands, self.waiting_slots, self.mark):
                look()
        except (sqlite3.Error, ValueError, TypeError) as err:
            file.close()
            if isinstance(err, sqlite3.Error | UnicodeDecodeError):
                raise cannot_be_used(self._path, err) from err
            raise StorageDamagedError(str(self._path), "it holds a row that is none of ours") from err
        self._file = file

    def begin_anew(self, survivors: Survivors | None) -> None:
        """Set the damaged file aside and go on with a new one (D6), into which the survivors go with what comes next.

        Args:
            survivors: What is in memory; `None` at the start, where it is what can be read of the agents.

        Raises:
            StorageFullError: That is not possible now, and may be tried again.
        """
        meta = self._meta
        try:
            if self._damage is not None:
                aside = self._put_away(self._damage)
                self._damage = None
                if survivors is None and aside is not None:
                    survivors = Survivors(agents=_agents_in(aside))
                    fate = "GUID and seq go on" if survivors.agents else "GUIDs are lost, and seq begins at 1 again"
                    _log.error("storage: %d agents could be read in it: %s", len(survivors.agents), fate)
            if self._file is not None:
                # It has no name any more from which SQLite could delete the write-ahead log.
                self._file.close()
                self._file = None
            self._open()
        except StorageDamagedError as error:
            self._damage = error.reason
            raise StorageFullError(str(self._path), f"the new file is damaged too: {error.reason}") from error
        except StorageError as error:
            raise StorageFullError(str(self._path), error.reason) from error
        self._meta, self._owed = meta, survivors

    def _put_away(self, damage: str) -> Path | None:
        if time.monotonic() - self._set_aside_at < _AGAIN_S:
            raise StorageFullError(str(self._path), f"it is damaged again: {damage}")
        try:
            aside = set_aside(self._path)
        except OSError as err:
            reason = f"it is damaged, and cannot be set aside: {err.strerror}"
            raise StorageFullError(str(self._path), reason) from err
        self._set_aside_at = time.monotonic()
        fate = "nothing is left of it" if aside is None else f"set aside as {aside.name}"
        _log.error("storage: %s is damaged (%s): %s, a new one begun", self._path, damage, fate)
        return aside

    def close(self) -> None:
        """Fold the write-ahead log in, close the file and release the lock."""
        if self._file is not None:
            self._file.close()
        self.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what the block writes, or none of it."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite has rolled back by itself where it had to
                self._connection.rollback()
            raise

    def run(self, works: Sequence[Callable[["Database"], Any]]) -> list[Any]:
        """Do several works in one transaction, one fsync for all of them; give their results in order.

        Raises:
            StorageDamagedError: Nothing was stored, and nothing can be before `begin_anew` (D6).
            StorageFullError: Nothing was stored: the disk is full, `storage.max_mb` is reached, or the file cannot be
                written.
        """
        self._refuse_damaged()
        try:
            with self._transaction():
                if self._owed is not None:
                    self._restore(self._owed)
                results = [work(self) for work in works]
        except (sqlite3.Error, UnicodeDecodeError) as err:
            self._note_damage(err)
            # Where the log cannot grow, but the file has room for what is in it, the log begins anew.
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(RESTART)")
            raise StorageFullError(str(self._path), self._why(err)) from err
        self._owed = None
        return results

    def read(self, work: Callable[["Database"], _T]) -> _T:
        """Read, which needs no room.

        Raises:
            StorageDamagedError: As `run`.
            StorageError: The file cannot be read.
        """
        self._refuse_damaged()
        try:
            return work(self)
        except StorageDamagedError as error:
            self._damage = error.reason
            raise
        except (sqlite3.Error, UnicodeDecodeError, OSError) as err:
            self._note_damage(err)
            raise StorageError(str(self._path), f"cannot be read: {err}") from err

    def _refuse_damaged(self) -> None:
        if self._damage is not None or self._file is None:
            raise StorageDamagedError(str(self._path), self._damage or "there is none")

    def _note_damage(self, err: sqlite3.Error | UnicodeDecodeError | OSError) -> None:
        """Do nothing more with a file that is damaged.

        Raises:
            StorageDamagedError: It is.
        """
        damage = None if isinstance(err, OSError) else damage_of(err)
        if damage is not None:
            self._damage = damage
            raise StorageDamagedError(str(self._path), damage) from err

    def _why(self, err: sqlite3.Error | UnicodeDecodeError) -> str:
        """Say why nothing can be written; SQLite has one word for two kinds of full."""
        if getattr(err, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
            return str(err)
        (pages,), (page_size,) = (self._connection.execute(f"PRAGMA {name}").fetchone() for name in _SIZES)
        at_limit = pages * page_size + _LARGEST_BYTES > self._max_mb * _MIB
        return f"storage.max_mb ({self._max_mb}) is reached" if at_limit else "the disk is full"

    # Works: called inside `run`.

    def _restore(self, survivors: Survivors) -> None:
        for key, value in self._meta.items():
            self.set_meta(key, value)
        self._execute(sql.SAVE_AGENTS, list(map(agent_row, survivors.agents)))
        self._execute(sql.ADD_ENTRIES, list(map(entry_row, survivors.entries)))
        self._execute(sql.SET_SLOTS, list(survivors.slots.items()))

    def store(self, changes: Sequence[tuple[Change, Sequence[Entry]]]) -> None:
        """Store changes in their order, each with its outgoing messages in their places."""
        agents: dict[str, AgentRecord] = {}
        slots: dict[str, bytes] = {}
        for change, _ in changes:
            slots |= change.slots
            if change.agent is not None:
                agents[change.agent.work_no] = change.agent
            for work_no in change.forgotten:
                agents.pop(work_no, None)
                self._connection.execute(sql.FORGET_AGENT, (work_no,))
            for command in change.commands:
                self._connection.execute(sql.SAVE_COMMAND, command_row(command))
            if change.unreadable is not None:
                kept = change.unreadable
                row = (kept.at, kept.work_no, kept.reason, kept.size_bytes, kept.head)
                self._connection.execute(sql.KEEP_UNREADABLE, row)
                self._connection.execute(sql.TRIM_UNREADABLE)
        self._execute(sql.ADD_ENTRIES, [entry_row(entry) for _, entries in changes for entry in entries])
        self._execute(sql.SAVE_AGENTS, list(map(agent_row, agents.values())))
        self._execute(sql.SET_SLOTS, list(slots.items()))

    def _execute(self, statement: sql.Many, rows: Sequence[tuple[Any, ...]]) -> int:
        """Execute a statement for all rows; give how many it changed."""
        return sum(
            self._connection.execute(statement.of(len(some)), tuple(chain.from_iterable(some))).rowcount
            for some in sql.portions(rows)
        )

    def forget_acknowledged(self, removals: Removals, *, beyond: bool = False) -> int:
        """Remove entries that the broker has, but keep what is retained; give how many entries were still there.

        Args:
            removals: What it has.
            beyond: Whether the file may grow beyond its limit for that. What is removed may leave fewer pages than what
                is kept of it begins, and a full file would be full for good. Newest events are all that comes to.
        """
        # First what makes room: in a full database nothing else would go through.
        count = self._execute(sql.REMOVE_ENTRIES, [(row,) for row in removals.rows])
        if removals.kept:
            kept = [(mark, entry.message.topic, entry.message.payload) for mark, entry in removals.kept]
            with beyond_limit(self._connection, self._max_mb) if beyond else nullcontext():
                self._execute(sql.KEEP_RETAINED, kept)
        self._execute(sql.SLOTS_ACKED, [(mark, slot.topic, slot.payload) for mark, slot in removals.slots])
        return count

    def offer_again(self, marks: range, after: str, limit: int) -> list[tuple[str, bytes]]:
        """Have newest values wait again that were acknowledged at one of `marks`: the broker may have lost them (D4a).

        Returns:
            Up to `limit` of them with their topics, those that follow the topic `after`, in order.
        """
        found = self._connection.execute(sql.ACKED_BETWEEN, (marks.start, marks.stop - 1, after, limit)).fetchall()
        self._execute(sql.SLOTS_WAIT, [(topic,) for topic, _ in found])
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
        removed = self._execute(sql.REMOVE_ENTRIES, [(entry.row,)])
        if removed:
            self._connection.execute(sql.SET_ASIDE, (at, entry.message.topic, reason, entry.message.payload))
            self._connection.execute(sql.TRIM_ASIDE)
        return removed

    def forget_slots(self, topics: Iterable[str]) -> None:
        """Forget the newest values of topics: they are another's business now."""
        self._execute(sql.DROP_SLOTS, [(topic,) for topic in topics])

    def clear(self) -> None:
        """Forget all agents, and all that waits."""
        for table in sql.CLEARED:
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names

    def admit(self, command: CommandRecord) -> CommandRecord | None:
        """Store a new command; give the one that is already there under its id instead, where there is one (C4)."""
        if self._connection.execute(sql.ADMIT_COMMAND, command_row(command)).rowcount:
            return None
        row = self._connection.execute(sql.FIND_COMMAND, (command.work_no, command.kind, command.id)).fetchone()
        return command_of(row)

    def forget_commands(self, finished_before: float, keep: int, at_once: int) -> int:
        """Forget commands whose result is older, and all but the newest `keep`; give how many: `at_once` at most."""
        return self._connection.execute(sql.FORGET_COMMANDS, (finished_before, keep, at_once)).rowcount

    def try_out(self) -> None:
        """Write something, to see whether that is possible."""
        self.set_meta("tried", b"")

    def set_meta(self, key: str, value: bytes) -> None:
        """Remember a value of the program as a whole."""
        self._meta[key] = value
        self._connection.execute(sql.SET_META, (key, value))

    # What moves to the journals of a fleet, and back.

    def hand_over(self, rows: Sequence[int], work_nos: Iterable[str]) -> None:
        """Forget entries and agents that are stored elsewhere by now."""
        self._execute(sql.REMOVE_ENTRIES, [(row,) for row in rows])
        for work_no in work_nos:
            self._connection.execute(sql.FORGET_AGENT, (work_no,))

    def take_in(self, agent: AgentRecord, entries: Sequence[Entry], newest: tuple[str, bytes] | None) -> None:
        """Store an agent with what it has in line, and the topic and payload of its newest event that is published."""
        self.store([(Change(agent=agent), entries)])
        if newest is not None:  # the broker is told of it again: nobody knows when that had it
            self._execute(sql.KEEP_RETAINED, [(max(self.mark(), self.newest_mark()), *newest)])

    def take_in_commands(self, commands: Iterable[CommandRecord]) -> None:
        """Store commands with their results."""
        for command in commands:
            self._connection.execute(sql.SAVE_COMMAND, command_row(command))

    def forget_meta(self, key: str) -> None:
        """Forget a value of the program as a whole."""
        self._meta.pop(key, None)
        self._connection.execute(sql.DROP_META, (key,))

    def places(self) -> dict[str, "array[int]"]:
        """List where in line the entries of each topic stand, in order."""
        found: dict[str, array[int]] = {}
        for row, topic in self._connection.execute(sql.PLACES):
            found.setdefault(topic, array("q")).append(row)
        return found

    def entries_at(self, rows: Sequence[int]) -> list[Entry]:
        """Read the entries in places, in order."""
        found = [
            entry_of(*row)
            for some in sql.portions(rows)
            for row in self._connection.execute(sql.ENTRIES_AT.of(len(some)), tuple(some))
        ]
        return sorted(found, key=lambda entry: entry.row)

    def newest_value(self, topic: str) -> bytes:
        """Read the newest value of a topic that has left the line; empty where there is none."""
        row = self._connection.execute(sql.SLOT, (topic,)).fetchone()
        return b"" if row is None else row[0]

    def commands(self) -> list[CommandRecord]:
        """Read all commands, oldest first."""
        return [command_of(row) for row in self._connection.execute(sql.COMMANDS)]

    def adopt_kept(self, path: Path) -> None:
        """Copy what waits for a person in another database, which nobody has open."""
        self._connection.execute("ATTACH ? AS other", (str(path),))
        try:
            with self._transaction():
                for statement in sql.ADOPT:
                    self._connection.execute(statement)
        finally:
            self._connection.execute("DETACH other")

    def be_durable(self, *, durable: bool) -> None:
        """Have what is committed from now on survive a power cut, or not."""
        self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")

    def copy_to(self, path: Path) -> None:
        """Write a copy, for its owner alone."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        self._connection.execute("VACUUM INTO ?", (str(path),))

    # Reading.

    def entries(self, after: int, upto: int, limit: int) -> list[Entry]:
        """Read up to `limit` entries, those after row `after` up to row `upto`, in order."""
        return [entry_of(*row) for row in self._connection.execute(sql.ENTRIES_BETWEEN, (after, upto, limit))]

    def waiting_slots(self) -> dict[str, bytes]:
        """Read the newest values that no broker has acknowledged."""
        return dict(self._connection.execute(sql.WAITING_SLOTS))

    def slot_topics(self) -> list[str]:
        """List the topics of all newest values."""
        return [topic for (topic,) in self._connection.execute(sql.SLOT_TOPICS)]

    def agents(self) -> dict[str, AgentRecord]:
        """Read all agents by work number."""
        return {row[0]: agent_of(row) for row in self._connection.execute(sql.AGENTS)}

    def pending_commands(self) -> list[CommandRecord]:
        """Read the commands that have no result yet, oldest first."""
        return [command_of(row) for row in self._connection.execute(sql.PENDING_COMMANDS)]

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

    def kept_for_a_person(self) -> tuple[int, int]:
        """Count the unreadable answers, and the messages that the broker refused."""
        unreadable, aside = self._connection.execute(sql.FOR_A_PERSON).fetchone()
        return unreadable, aside

    def empty_log(self) -> None:
        """Fold the write-ahead log in and empty it: what was overwritten or deleted still stands in it."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def size_bytes(self) -> int:
        """Measure the file and its write-ahead log; find out where somebody took it away."""
        return 0 if self._file is None else self._file.size_bytes()


def _agents_in(damaged: Path) -> tuple[AgentRecord, ...]:
    """Read the agents of a damaged database as far as that is possible, and change nothing of it."""
    agents: list[AgentRecord] = []
    if damaged.exists() and damaged.stat().st_size:  # or SQLite would delete its log
        with (
            suppress(sqlite3.Error, ValueError, TypeError),
            closing(sqlite3.connect(f"{damaged.as_uri()}?mode=ro", uri=True)) as connection,
        ):
            agents.extend(map(agent_of, connection.execute(sql.AGENTS)))
    return tuple(agents)
