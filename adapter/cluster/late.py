"""What came to a former owner of an agent: the owner of now gives it the next number, and publishes it.

```
former owner: commit -> another's page is there -> `late` of the agent -> hint -> owner: number, journal -> removed
```

Rule of this file: a journal says up to which place it has what came late, so that each event is numbered once, however
often its owner changes between taking it in and removing it.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime

import msgspec

from adapter.agent.presence import Presence
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.journal import Journal
from adapter.cluster.pages import TakenIn
from adapter.cluster.servers import heed_cancellation
from adapter.errors import ClusterError
from adapter.event import Event, Members, render_event
from adapter.state import AgentState, decode, encode, fold
from adapter.store.records import AgentRecord, Outgoing

_log = logging.getLogger(__name__)

_LOOK_S = 5.0
"""How often it is looked at what came late, where no hint says so."""


class Late:
    """Takes in what came late of the agents that are ours.

    Args:
        presence: Gives an agent that is polled here; `None` for any other.

    Attributes:
        events: How many events were taken in.
    """

    def __init__(
        self, engine: Engine, codec: Codec, journal: Journal, presence: Callable[[str], Presence | None]
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._journal = journal
        self._presence = presence
        self.events = 0

    async def run(self) -> None:
        """Take it in, until cancelled."""
        heard = asyncio.Event()

        def hear(work_no: bytes) -> None:
            if self._presence(work_no.decode()) is not None:
                heard.set()

        await self._engine.talk.listen("late", hear)
        while True:
            heed_cancellation()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await heard.wait()
            heard.clear()
            try:
                for work_no in await self._engine.agents("late"):
                    await self._take_in(work_no)
            except ClusterError as error:
                _log.debug("cluster: what came late: %s", error)

    async def _take_in(self, work_no: str) -> None:
        async for place, messages in waiting(self._engine, self._codec, self._journal, work_no):
            presence = self._presence(work_no)
            if presence is None:
                return
            change = TakenIn(place=place)
            for message in messages:
                if message.retain:
                    event, event_id, received_at = event_of(message.payload)
                    presence.number(event, received_at, change, event_id=event_id)
                    self.events += 1
                else:
                    change.outgoing.append(message)
            await presence.store(change)
            presence.say(logging.WARNING, "took in what came late to a former owner")


async def waiting(
    engine: Engine, codec: Codec, journal: Journal, work_no: str
) -> AsyncIterator[tuple[int, tuple[Outgoing, ...]]]:
    """Give what came late of an agent of ours, with its place, to be stored as `TakenIn`; remove what is stored.

    Raises:
        ClusterError: The servers are not to be had, or it cannot be read.
    """
    while journal.pages.owns(work_no) and (found := await engine.next_late(work_no)) is not None:
        if found.revision > journal.pages.taken_in(work_no):
            yield found.revision, codec.read(found.value).outgoing
            if journal.pages.taken_in(work_no) < found.revision:
                return  # it is another's by now, who takes it in
        await engine.remove(found.revision)


def numbered(record: AgentRecord, message: Outgoing) -> tuple[AgentRecord, Outgoing]:
    """Give an event that came late the next number of an agent that nobody polls; what is none stays as it is."""
    if not (message.retain and message.payload):
        return record, message
    event, event_id, received_at = event_of(message.payload)
    seq = record.seq + 1
    state = decode(record.state) or AgentState(since=received_at)
    state = fold(state, event, at=received_at, event_id=event_id, seq=seq)
    payload = render_event(event, event_id=event_id, seq=seq, received_at=received_at)
    return replace(record, seq=seq, state=encode(state)), replace(message, payload=payload)


def event_of(payload: bytes) -> tuple[Event, str, datetime]:
    """Read a payload of `render_event` back: the event as the gateway sent it, its id, and when it came."""
    members: Members = msgspec.json.decode(payload, type=dict[str, msgspec.Raw])
    ours = {name: msgspec.json.decode(members[name], type=str) for name in ("id", "receivedAt")}
    theirs = {name: raw for name, raw in members.items() if name not in {"id", "seq", "receivedAt", "gateway"}}
    if "gateway" in members:
        theirs |= msgspec.json.decode(members["gateway"], type=dict[str, msgspec.Raw])
    return Event.from_members(theirs), ours["id"], datetime.fromisoformat(ours["receivedAt"])
