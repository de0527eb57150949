"""What was written down of a run, as values: by gateway, relay and subscriber, and by who did the harm."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.chaos.gateway import NUMBER, Row
from bench.chaos.peers import Got, Sent
from bench.chaos.relay import Published
from bench.chaos.stage import Harm

_LATE_S = 3.0
"""How much later than it happened the gateway may notice: it is busy, and so is the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """An event in a message on one of its two topics.

    Attributes:
        work_no: The agent.
        topic: ``event`` or ``events``.
        number: Which one of the agent's it is, as the gateway numbered it; `None` for the gateway's own.
        id: As the adapter made it.
        seq: Likewise.
        content: The payload without ``replayed``, which alone may differ between repeats.
        at: Monotonic seconds at which it went by, or came.
        connection: Number of the connection at the relay; 0 at the subscriber.
        acked_at: When the broker acknowledged it; `None` where it did not, and at the subscriber.
    """

    work_no: str
    topic: str
    number: int | None
    id: str
    seq: int
    content: str
    at: float
    connection: int = 0
    acked_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All of it.

    Attributes:
        ledger: Every poll at the gateway.
        published: Every message that the adapter sent.
        received: Every message that the persistent subscriber got.
        commands: What was sent to the adapter.
        harms: What was done to it and to the gateway.
        broker_lives: When the broker was started and ended, and whether it was killed.
        violations: What the gateway holds against the adapter.
        stayed: Work numbers that were in the configuration all the time.
    """

    ledger: Sequence[Row]
    published: Sequence[Published]
    received: Sequence[Got]
    commands: Sequence[Sent]
    harms: Sequence[Harm]
    broker_lives: Sequence[tuple[float, float, bool]]
    violations: Sequence[dict[str, Any]]
    stayed: frozenset[str]

    def by_agent(self) -> dict[str, list[Row]]:
        """Give each agent's polls, in the order in which they began."""
        found: defaultdict[str, list[Row]] = defaultdict(list)
        for row in self.ledger:
            found[row.work_no].append(row)
        for rows in found.values():
            rows.sort(key=lambda row: row.began_at)
        return dict(found)

    def harm_between(self, work_no: str, since: float, until: float) -> Harm | None:
        """Find what was done between two moments that may have cost an agent an answer; a little before counts too."""
        for harm in self.harms:
            ours = harm.agents is None or work_no in harm.agents
            if ours and harm.ended_at >= since - _LATE_S and harm.began_at <= until:
                return harm
        return None

    def loss_of(self, rows: Sequence[Row], place: int) -> Harm | None:
        """Find what may have kept an answer from being stored; `None` where the agent was polled on undisturbed."""
        row = rows[place]
        until = float("inf")
        if place + 1 < len(rows):
            if rows[place + 1].connection == row.connection:
                return None
            until = rows[place + 1].began_at
        return self.harm_between(row.work_no, row.ended_at, until)

    def forgotten(self, acked_at: Iterable[float]) -> bool:
        """Say whether a broker acknowledged something only in lives that ended by a kill."""
        moments = list(acked_at)
        killed = [(began_at, ended_at) for began_at, ended_at, was_killed in self.broker_lives if was_killed]
        return bool(moments) and all(
            any(began_at <= moment <= ended_at + _LATE_S for began_at, ended_at in killed) for moment in moments
        )


def numbered_published(messages: Iterable[Published]) -> list[Numbered]:
    """Read the events among what the adapter sent."""
    return [
        event
        for message in messages
        if (event := _numbered(message.topic, message.payload, message.at, message.connection, message.acked_at))
    ]


def numbered_received(messages: Iterable[Got]) -> list[Numbered]:
    """Read the events among what the subscriber got; what the broker had kept for it is none."""
    return [
        event
        for message in messages
        if not message.retained and (event := _numbered(message.topic, message.payload, message.at, 0, None))
    ]


def _numbered(topic: str, payload: bytes, at: float, connection: int, acked_at: float | None) -> Numbered | None:
    parts = topic.split("/")
    if not payload or len(parts) != 3 or parts[2] not in {"event", "events"}:  # noqa: PLR2004 - agents/<workNo>/event
        return None
    value = json.loads(payload)
    value.pop("replayed", None)
    return Numbered(
        work_no=parts[1],
        topic=parts[2],
        number=value.get(NUMBER),
        id=value["id"],
        seq=value["seq"],
        content=json.dumps(value, sort_keys=True),
        at=at,
        connection=connection,
        acked_at=acked_at,
    )
