"""The journals of the agents that are ours, on the servers: read when an agent becomes ours, and then written.

```
claim -> append, append, ... -> published -> tidied to one page -> ... -> released, or removed with its agent
```

Rules of this file:
1. An agent's journal is appended to behind its newest page alone (compare-and-set). Who finds another page there has
   lost the agent.
2. A page goes when all that it has to publish is acknowledged, together with all before it. So what a successor finds
   may have been published before: with the same `id` and `seq`.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from adapter.cluster.answers import Stored
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.kept import command_key
from adapter.cluster.quorum import Quorum
from adapter.cluster.term import Term
from adapter.errors import ClusterConflictError, ClusterUnavailableError
from adapter.event import new_id
from adapter.store.records import AgentRecord, Change, Outgoing

_log = logging.getLogger(__name__)

_AGAIN_S = 0.2
"""When it is tried again to release an agent."""
_PATIENCE_S = 10.0
"""How long a member that leaves waits for what is being stored: choosing another leader takes 4 to 10 s."""
_LOOK_S = 1.0
"""How soon it is looked whether it is to go on waiting."""
_TIDY_S = 2.0
"""How long a journal stays untidy, for the next event to make it tidy: a successor repeats at most what this leaves."""
_AT_ONCE = 64
"""Journals that are made tidy at a time."""


@dataclass(slots=True, eq=False)
class Own:
    """The journal of an agent that is ours.

    Attributes:
        record: The agent as the newest page has it.
        place: Where that page is.
        sealed: What is secret of it, sealed.
        newest: Its newest event, once that is published.
        late: Up to which place what came late has been taken in.
        waiting: The rows of what waits to be published.
        tidy: Whether that page is the only one, and has nothing to publish.
        tidy_at: When it is to be made tidy, on the loop's clock.
        stored: The change that was appended last: it is not appended again.
        ours: Whether it is still ours.
        lock: Held by who appends.
    """

    record: AgentRecord
    place: int
    sealed: bytes
    newest: bytes = b""
    late: int = 0
    waiting: set[int] = field(default_factory=set)
    tidy: bool = True
    tidy_at: float = 0.0
    stored: Change | None = None
    ours: bool = True
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True, kw_only=True)
class TakenIn(Change):
    """What came to a former owner of an agent, with its place among the agent's events.

    Attributes:
        place: Where it lies until its journal has it.
    """

    place: int


class Pages:
    """The journals of the agents that are ours.

    Args:
        quorum: Waits for the servers.
        gone: Called with a journal that is not ours any more.

    Attributes:
        lost: Called with the number of an agent that turns out to be another's.
        doubtful: Agents of whom it is not known whether they were claimed.
    """

    def __init__(self, engine: Engine, codec: Codec, quorum: Quorum, gone: Callable[[Own], None]) -> None:
        self.lost: Callable[[str], None] = lambda _: None
        self.doubtful: set[str] = set()
        self._term: Term | None = None
        self._engine = engine
        self._codec = codec
        self._quorum = quorum
        self._gone = gone
        self._own: dict[str, Own] = {}
        self._untidy: dict[str, Own] = {}

    def begin(self, term: Term) -> None:
        """Begin to own agents."""
        self._term = term

    @property
    def owner(self) -> str:
        """Who we are in pages."""
        return "" if self._term is None else self._term.owner

    def hold(self) -> bool:
        """Say whether nobody else can own what is ours."""
        return self._term is not None and self._term.holds()

    @property
    def owned(self) -> Collection[str]:
        """The agents that are ours."""
        return self._own.keys()

    def owns(self, work_no: str) -> bool:
        """Say whether an agent is ours."""
        return work_no in self._own

    def find(self, work_no: str) -> Own | None:
        """Find an agent's journal, where it is ours."""
        return self._own.get(work_no)

    def taken_in(self, work_no: str) -> int:
        """Say up to which place what came late of an agent is in its journal; 0 where that is not ours."""
        own = self._own.get(work_no)
        return 0 if own is None else own.late

    # What becomes ours, and ceases to be.

    async def claim(self, work_no: str, found: Stored | None) -> tuple[Own, list[Outgoing]] | None:
        """Make an agent ours that is nobody's; `None` where somebody was first.

        It stays doubtful, for the caller to say when all that its journal has to publish is in line.

        Args:
            work_no: The agent.
            found: The newest page of its journal.

        Returns:
            Its journal, and what that has to publish.

        Raises:
            ClusterUnavailableError: It is not known whether it is ours.
            ClusterError: Its journal cannot be read.
        """
        term = self._term
        self.doubtful.add(work_no)
        record, newest, late = AgentRecord(work_no=work_no), b"", 0
        outgoing: list[Outgoing] = []
        if found is not None:
            page = self._codec.read(found.value)
            record, newest, late = self._codec.agent(work_no, page), page.newest, page.late
            outgoing = await self._waiting_in(work_no, found)
        own = Own(record=record, place=0 if found is None else found.revision, sealed=self._codec.seal(record))
        own.newest, own.late, own.tidy = newest, late, not outgoing
        try:
            own.place = await self._engine.append(
                self._engine.journal(work_no), self._write(own), after=own.place, message_id=new_id(), alone=own.tidy
            )
        except ClusterConflictError:
            return None
        if term is None or term is not self._term or not term.holds():
            return None  # it was claimed for a term that is over: it is nobody's
        self._own[work_no] = own
        return own, outgoing

    async def _waiting_in(self, work_no: str, newest: Stored) -> list[Outgoing]:
        """Read what all pages of a journal have to publish; keep the results of commands that they have."""
        outgoing: list[Outgoing] = []
        place = 1
        while (found := await self._engine.following(work_no, place)) is not None:
            page = self._codec.read(found.value)
            outgoing += page.outgoing
            for sealed in page.settled:
                await self._engine.settle_command(command_key(self._codec.open_command(sealed)), sealed)
            place = found.revision + 1
            if place > newest.revision:
                break
        return outgoing

    async def release(
        self,
        work_no: str,
        record: AgentRecord | None,
        *,
        insists: Callable[[], bool] = lambda: False,
        waits: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make an agent nobody's, when its last request is over and what it left is stored.

        Args:
            work_no: The agent.
            record: What it left; `None` for what is stored of it.
            insists: Says whether to go on where it is not known: nobody else can have it as long as we are a member.
            waits: Says whether to wait all the same for what came last to be stored, but not for ever.

        Raises:
            ClusterUnavailableError: It is not known whether it is.
        """
        own = self._own[work_no]
        await self._our_turn(own, insists, waits)
        try:
            if not own.ours:
                return
            self.let_go(own)
            if record is not None and record != own.record:
                own.record, own.sealed = record, self._codec.seal(record)
            await self._append_as_nobodys(own, insists)
        finally:
            own.lock.release()

    @staticmethod
    async def _our_turn(own: Own, insists: Callable[[], bool], waits: Callable[[], bool]) -> None:
        """Wait for what is being appended to a journal: without a quorum that takes long."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + _PATIENCE_S
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await own.lock.acquire()
            except TimeoutError:
                if not insists() and not (waits() and loop.time() < ends_at):
                    raise ClusterUnavailableError("what came last is not stored yet") from None
            else:
                return

    async def _append_as_nobodys(self, own: Own, insists: Callable[[], bool]) -> None:
        work_no, message_id = own.record.work_no, new_id()
        data, alone = self._write(own, owner=""), not own.waiting
        while True:
            try:
                await self._engine.append(
                    self._engine.journal(work_no), data, after=own.place, message_id=message_id, alone=alone
                )
            except ClusterConflictError:
                _log.debug("agent %s: is another's already", work_no)
            except ClusterUnavailableError:
                if not insists():
                    raise
                await asyncio.sleep(_AGAIN_S)
                continue
            return

    async def remove(self, own: Own) -> None:
        """Remove the journal of an agent that nobody polls any more, if nothing of it waits to be published.

        Raises:
            ClusterUnavailableError: It is not known whether it is removed.
        """
        async with own.lock:
            if not own.waiting and await self._tidied(own):
                self.let_go(own)
                await self._engine.remove(own.place)  # at that very place: what another has appended stays

    def abandon(self) -> None:
        """Take note that nothing is ours any more."""
        for own in list(self._own.values()):
            self.let_go(own)

    def let_go(self, own: Own) -> None:
        """Take note that an agent is not ours any more."""
        own.ours = False
        work_no = own.record.work_no
        if self._own.get(work_no) is own:
            del self._own[work_no]
            self._untidy.pop(work_no, None)
            self._gone(own)

    # What is written to it meanwhile.

    async def append(self, own: Own, agent: AgentRecord, change: Change) -> bool:
        """Append a change, by who holds its journal's lock; `False` where the agent is another's by now."""
        if own.stored is change:
            return True
        if (agent.guid, agent.cookies, agent.guid_origin) != (
            own.record.guid,
            own.record.cookies,
            own.record.guid_origin,
        ):
            own.sealed = self._codec.seal(agent)
        alone = not own.waiting
        events = sum(message.retain for message in change.outgoing)
        late = change.place if isinstance(change, TakenIn) else own.late
        data = self._codec.write(
            agent,
            owner=self.owner,
            sealed=own.sealed,
            outgoing=change.outgoing,
            newest=b"" if events else own.newest,
            settled=[self._codec.seal_command(command) for command in change.commands],
            late=late,
        )
        if not own.ours or not await self._appended(own, data, alone=alone, events=events):
            return False
        own.record, own.stored, own.late = agent, change, late
        own.tidy = alone and not change.outgoing
        return True

    async def _appended(self, own: Own, data: bytes, *, alone: bool, events: int = 0) -> bool:
        """Append a page, however long that takes; `False` where the agent is another's by now."""
        work_no, message_id = own.record.work_no, new_id()

        async def append() -> int | None:
            try:
                return await self._engine.append(
                    self._engine.journal(work_no), data, after=own.place, message_id=message_id, alone=alone
                )
            except ClusterConflictError:
                newest = await self._engine.last(work_no)
                if newest is not None and newest.revision == own.place:
                    raise ClusterUnavailableError("another page is on its way") from None
                # Ours, whose acknowledgment was lost: one server alone looks at the place before it looks at the id.
                return newest.revision if newest is not None and newest.value == data else None

        place = await self._quorum.ask(append, events, f"agent {work_no}")
        if place is None:
            if own.ours:
                _log.warning("agent %s: polled by another member by now", work_no, extra={"work_no": work_no})
                self.let_go(own)
                self.lost(work_no)
            return False
        own.place = place
        return True

    async def keep_late(self, agent: AgentRecord, change: Change) -> None:
        """Keep what an agent that is another's by now has brought, for its owner to take in."""
        if not change.outgoing or isinstance(change, TakenIn):  # that is still where the next owner finds it
            return
        data = self._codec.write(agent, owner=self.owner, sealed=self._codec.seal(agent), outgoing=change.outgoing)
        message_id, events = new_id(), sum(message.retain for message in change.outgoing)
        keep = partial(self._engine.append_late, agent.work_no, data, message_id)
        await self._quorum.ask(keep, events, f"agent {agent.work_no}")
        await self._engine.talk.tell("late", agent.work_no.encode())

    def published(self, own: Own) -> None:
        """Take note that nothing of an agent waits to be published."""
        if own.ours:
            own.tidy_at = asyncio.get_running_loop().time() + _TIDY_S
            self._untidy[own.record.work_no] = own

    async def tidy(self) -> None:
        """Remove from the journals what has been published, where no event has done that by itself."""
        now = asyncio.get_running_loop().time()
        due = [own for own in self._untidy.values() if own.tidy_at <= now]
        for start in range(0, len(due), _AT_ONCE):
            await asyncio.gather(*map(self._make_tidy, due[start : start + _AT_ONCE]))

    async def _make_tidy(self, own: Own) -> None:
        self._untidy.pop(own.record.work_no, None)
        async with own.lock:
            if not own.waiting:
                await self._tidied(own)

    async def _tidied(self, own: Own) -> bool:
        """Have a journal of which nothing waits hold one page; `False` where it is another's by now."""
        if own.ours and not own.tidy:
            own.tidy = await self._appended(own, self._write(own), alone=True)
        return own.ours and own.tidy

    def _write(self, own: Own, owner: str | None = None) -> bytes:
        """Write an agent as it is, with nothing to publish; as ours, unless told."""
        return self._codec.write(
            own.record,
            owner=self.owner if owner is None else owner,
            sealed=own.sealed,
            newest=own.newest,
            late=own.late,
        )
