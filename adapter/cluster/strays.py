"""Agents that left the configuration: what their journals still have goes out, then nothing is left of them.

```
journal of an agent that is in no list -> claim -> what waits, what came late -> topics cleared -> journal removed
```

Rules of this file:
1. The member that speaks for the fleet does it, and only while all members have the same list: another list may have
   the agent still.
2. A journal is removed when the broker has all that was in it. Ended in between, all of it is done again.
3. An agent that comes back meanwhile is let go at once, to be polled.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Container
from functools import partial

from adapter.cluster.claims import Claims
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.journal import Journal
from adapter.cluster.late import numbered, waiting
from adapter.cluster.membership import Membership
from adapter.cluster.pages import TakenIn
from adapter.cluster.servers import heed_cancellation
from adapter.command import finish
from adapter.errors import ClusterError, ClusterUnavailableError, StorageFullError
from adapter.store.records import AgentRecord, Change
from adapter.topics import Topics

_log = logging.getLogger(__name__)

_LOOK_S = 5.0
"""How soon it is looked again where some are left: whose poll is not over yet, or nobody may do it."""
_AT_ONCE = 64
"""Agents under way at a time."""
_AGAIN_S = 2.0
"""When it is tried again to store something."""


class Strays:
    """Sees to the agents that nobody has configured any more.

    Args:
        configured: Gives the agents of the configuration.

    Attributes:
        under_way: Those that are being forgotten.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it ties together
        self,
        configured: Callable[[], Container[str]],
        membership: Membership,
        journal: Journal,
        engine: Engine,
        codec: Codec,
        topics: Topics,
    ) -> None:
        self.under_way: dict[str, asyncio.Task[None]] = {}
        self._configured = configured
        self._membership = membership
        self._journal = journal
        self._engine = engine
        self._codec = codec
        self._topics = topics
        self._claims = Claims(membership, journal.pages, engine, codec, trouble="left the configuration, and stays")
        self._due = True
        self._wake = asyncio.Event()

    def look(self) -> None:
        """Have it looked for them soon: there may be some, or one may have come back."""
        for work_no, task in self.under_way.items():
            if work_no in self._configured():
                task.cancel()
        self._due = True
        self._wake.set()

    async def run(self) -> None:
        """See to them, until cancelled."""
        for hint in ("released", "late"):
            await self._engine.talk.listen(hint, self._hear)
        try:
            while True:
                heed_cancellation()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._wake.wait()
                self._wake.clear()
                if self._due and self._may_see_to_them():
                    await self._look()
        finally:
            for task in self.under_way.values():  # whoever speaks next begins again with them
                task.cancel()

    def _hear(self, work_no: bytes) -> None:
        if work_no.decode() not in self._configured():
            self._claims.hear(work_no.decode())
            self.look()

    def _may_see_to_them(self) -> bool:
        membership = self._membership
        return membership.speaker == membership.name and not membership.unlike and membership.term.valid()

    async def _look(self) -> None:
        try:
            kept = {*await self._engine.agents("agent"), *await self._engine.agents("late")}
        except ClusterUnavailableError as error:
            _log.debug("cluster: looking for agents that left the configuration: %s", error)
            return
        strays = {work_no for work_no in kept if work_no not in self._configured()}
        self._due = bool(strays)
        loop = asyncio.get_running_loop()
        for work_no in self._claims.due(strays - self.under_way.keys())[: _AT_ONCE - len(self.under_way)]:
            task = self.under_way[work_no] = loop.create_task(self._see_to(work_no), name=f"stray[{work_no}]")
            task.add_done_callback(partial(self._ended, work_no))

    def _ended(self, work_no: str, _: object) -> None:
        del self.under_way[work_no]

    async def _see_to(self, work_no: str) -> None:
        try:
            for found in await self._claims.look([work_no]):
                record = await self._journal.claim(work_no, found.stored)
                if record is not None:
                    await self._forget(work_no, record)
        except ClusterUnavailableError as error:
            _log.debug("agent %s: left the configuration: %s", work_no, error)
        except ClusterError as error:
            self._claims.leave_alone(work_no, error)
        finally:
            await self._let_go(work_no)

    async def _forget(self, work_no: str, record: AgentRecord) -> None:
        """Publish what is left of an agent of ours, clear its topics, and remove its journal."""
        async for place, messages in waiting(self._engine, self._codec, self._journal, work_no):
            change = TakenIn(place=place)
            for message in messages:
                record, outgoing = numbered(record, message)
                change.outgoing.append(outgoing)
            await self._store(record, change)
        await self._store(record, await self._refusals(work_no))
        await _insist(partial(self._journal.retire, work_no))
        if not self._journal.pages.owns(work_no):
            _log.info("agent %s: has left the configuration, and is forgotten", work_no, extra={"work_no": work_no})

    async def _refusals(self, work_no: str) -> Change:
        """Refuse the commands that still wait for an agent."""
        change = Change()
        for command in await self._journal.kept.of(work_no):
            if command.result is None:
                finish(change, command, self._topics, status="rejected", reason="unknown agent")
        return change

    async def _store(self, record: AgentRecord, change: Change) -> None:
        if change:
            change.agent = record
            await _insist(partial(self._journal.commit, change))

    async def _let_go(self, work_no: str) -> None:
        """Make an agent nobody's that is ours still: it came back, or something is in the way."""
        if self._journal.pages.owns(work_no):
            with contextlib.suppress(ClusterUnavailableError):
                await self._journal.pages.release(work_no, None)
            await self._engine.talk.tell("released", work_no.encode())


async def _insist(store: Callable[[], Awaitable[None]]) -> None:
    """Store something, however long there is no room for it."""
    while True:
        with contextlib.suppress(StorageFullError):
            return await store()
        await asyncio.sleep(_AGAIN_S)
