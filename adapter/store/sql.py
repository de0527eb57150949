"""Every SQL statement of the program; only `database` executes them.

What there is one of for each topic or agent is updated where it lies: ``INSERT OR REPLACE`` would delete the row and
insert another, which writes twice as many pages. What an event costs is done for many rows at once (`Many`): Python
gives its interpreter away at each statement, and waits for it again while the event loop is busy.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")

_AT_ONCE = 16
"""Rows of one statement at most: each number of rows is a statement of its own, which SQLite prepares once."""


@dataclass(frozen=True, slots=True)
class Many:
    """A statement for any number of rows.

    Attributes:
        opening: What stands before them.
        row: One row.
        closing: What stands behind them.
    """

    opening: str
    row: str
    closing: str = ""

    @functools.cache  # noqa: B019 - for the few that this module makes
    def of(self, count: int) -> str:
        """Write it for so many rows."""
        return self.opening + ", ".join([self.row] * count) + self.closing


def portions(rows: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Cut rows into what one statement takes."""
    return (rows[start : start + _AT_ONCE] for start in range(0, len(rows), _AT_ONCE))


SCHEMA_VERSION = 1
UNREADABLE_KEPT = 1000
"""How many unreadable answers are kept for a person; older ones go, so that a broken gateway cannot fill the disk."""
CLEARED_KEPT = 20_160
"""For how many marks it is remembered that a topic was cleared: a week of them at the least, so that a broker which
comes back with what it knew days ago is told again."""
ASIDE_KEPT = 10_000
"""How many messages that the broker refused are kept; older ones go, so that a missing ACL cannot fill the disk."""

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE agent (
  work_no TEXT PRIMARY KEY, guid TEXT, guid_origin TEXT, cookies TEXT NOT NULL, seq INTEGER NOT NULL,
  state BLOB NOT NULL, own INTEGER NOT NULL, stay_out INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE entry (
  row INTEGER PRIMARY KEY, made_at REAL NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL,
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

ADD_ENTRIES = Many("INSERT INTO entry VALUES ", "(?, ?, ?, ?, ?, ?, ?)")
ENTRIES_BETWEEN = "SELECT * FROM entry WHERE row > ? AND row <= ? ORDER BY row LIMIT ?"
ENTRIES_AT = Many("SELECT * FROM entry WHERE row IN (", "?", ")")
PLACES = "SELECT row, topic FROM entry ORDER BY row"
REMOVE_ENTRIES = Many("DELETE FROM entry WHERE row IN (", "?", ")")
SET_SLOTS = Many(
    "INSERT INTO slot VALUES ",
    "(?, ?, NULL)",
    " ON CONFLICT (topic) DO UPDATE SET payload = excluded.payload, acked = NULL",
)
SLOTS_ACKED = Many(
    "WITH told (mark, topic, payload) AS (VALUES ",
    "(?, ?, ?)",
    """)
UPDATE slot SET acked = told.mark FROM told WHERE slot.topic = told.topic AND slot.payload = told.payload
""",
)
SLOTS_WAIT = Many("UPDATE slot SET acked = NULL WHERE topic IN (", "?", ")")
KEEP_RETAINED = Many(
    "INSERT INTO slot (acked, topic, payload) VALUES ",
    "(?, ?, ?)",
    " ON CONFLICT (topic) DO UPDATE SET payload = excluded.payload, acked = excluded.acked",
)
DROP_SLOTS = Many("DELETE FROM slot WHERE topic IN (", "?", ")")
ACKED_BETWEEN = "SELECT topic, payload FROM slot WHERE acked BETWEEN ? AND ? AND topic > ? ORDER BY topic LIMIT ?"
DROP_CLEARED = "DELETE FROM slot WHERE payload = x'' AND acked < ?"
SLOT = "SELECT payload FROM slot WHERE topic = ?"
WAITING_SLOTS = "SELECT topic, payload FROM slot WHERE acked IS NULL"
ADMIT_COMMAND = "INSERT OR IGNORE INTO command VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
SAVE_COMMAND = "INSERT OR REPLACE INTO command VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
FIND_COMMAND = "SELECT * FROM command WHERE work_no = ? AND kind = ? AND id = ?"
COMMANDS = "SELECT * FROM command ORDER BY received_at"
PENDING_COMMANDS = "SELECT * FROM command WHERE result IS NULL ORDER BY received_at"
FORGET_COMMANDS = """
DELETE FROM command WHERE (work_no, kind, id) IN (
  SELECT work_no, kind, id FROM command WHERE finished_at <= max(?, coalesce((
    SELECT finished_at FROM command WHERE finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT 1 OFFSET ?
  ), 0)) ORDER BY finished_at LIMIT ?)
"""
KEEP_UNREADABLE = "INSERT INTO unreadable (at, work_no, reason, size_bytes, head) VALUES (?, ?, ?, ?, ?)"
TRIM_UNREADABLE = f"DELETE FROM unreadable WHERE number <= (SELECT max(number) FROM unreadable) - {UNREADABLE_KEPT}"  # noqa: S608 - our own number
TRIM_ASIDE = f"DELETE FROM aside WHERE number <= (SELECT max(number) FROM aside) - {ASIDE_KEPT}"  # noqa: S608 - our own number
SET_ASIDE = "INSERT INTO aside (at, topic, reason, payload) VALUES (?, ?, ?, ?)"
FOR_A_PERSON = "SELECT (SELECT count(*) FROM unreadable), (SELECT count(*) FROM aside)"
ADOPT = (
    """
INSERT INTO unreadable (at, work_no, reason, size_bytes, head) SELECT at, work_no, reason, size_bytes, head
FROM other.unreadable
""",
    "INSERT INTO aside (at, topic, reason, payload) SELECT at, topic, reason, payload FROM other.aside",
)
DEPTH = "SELECT count(*), min(made_at), max(row) FROM entry"
SAVE_AGENTS = Many(
    "INSERT INTO agent VALUES ",
    "(?, ?, ?, ?, ?, ?, ?, ?)",
    """
ON CONFLICT (work_no) DO UPDATE SET
  guid = excluded.guid, guid_origin = excluded.guid_origin, cookies = excluded.cookies, seq = excluded.seq,
  state = excluded.state, own = excluded.own, stay_out = excluded.stay_out
""",
)
CLEARED = ("agent", "entry", "slot", "command")
"""The tables of what is known of agents."""
FORGET_AGENT = "DELETE FROM agent WHERE work_no = ?"
AGENTS = "SELECT * FROM agent"
SLOT_TOPICS = "SELECT topic FROM slot WHERE payload != x''"
SET_META = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
DROP_META = "DELETE FROM meta WHERE key = ?"
NEWEST_MARK = "SELECT max(acked) FROM slot"
META = "SELECT value FROM meta WHERE key = ?"
ALL_META = "SELECT key, value FROM meta"
