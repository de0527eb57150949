"""The fleet of one member: polls those agents that are its share, and hands the others over.

```
members -> shares -> release what is another's -> journal (nobody's) -> hint -> claim what is ours -> poller
```

Rules of this file:
1. An agent is claimed only where its journal says that it is nobody's, or a member's whose lease was struck out.
2. An agent is released when its last poll is over and P4's pause is: its next owner may poll at once.
3. So many agents are on their way at a time as `cluster.moves` says; a member that leaves hands over all at once.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from adapter.agent.pace import AFTER_FAILURE_S
from adapter.agent.presence import Presence, Shared
from adapter.cluster.claims import Claimable, Claims
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.journal import Journal
from adapter.cluster.late import Late
from adapter.cluster.membership import Membership
from adapter.cluster.servers import heed_cancellation
from adapter.cluster.shares import shares
from adapter.cluster.strays import Strays
from adapter.config import AgentConfig
from adapter.errors import ClusterError, ClusterUnavailableError
from adapter.fleet import Fleet
from adapter.gateway import Gateway
from adapter.store.records import AgentRecord, CommandRecord

_log = logging.getLogger(__name__)

_TICK_S = 0.25
"""How often it is looked at what is to be done, where no hint says so."""
_AT_ONCE = 64
"""Claims under way at a time."""
_CONNECT_S = 0.002
"""Apart from each other start agents that are taken over: what a TLS connection costs."""
_CANCEL_S = 1.0
"""How long a task may take to end before it is cancelled again."""
_PUBLISHED_S = 0.5
"""How long an agent that is handed over waits for the broker to acknowledge what went out last."""


class SharedFleet(Fleet):
    """The pollers of one member.

    Attributes:
        configured: All agents of the configuration, ours and others'.
        taken: How many agents have become ours.
        late: Takes in what came to a former owner.
        claimed: Called with the number of an agent that has become ours.
        released: Called with the number of one that is not ours any more.
        silence: Called before this member leaves.
        say_offline: Called where it was the last.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it ties together
        self,
        shared: Shared,
        tasks: asyncio.TaskGroup,
        membership: Membership,
        journal: Journal,
        engine: Engine,
        codec: Codec,
    ) -> None:
        super().__init__(Gateway(shared.config.gateway, permit=membership.term), shared, tasks)
        self._membership = membership
        self._journal = journal
        self._engine = engine
        self.configured: dict[str, AgentConfig] = {}
        self.taken = 0
        self.claimed: Callable[[str], None] = lambda _: None
        self.released: Callable[[str], None] = lambda _: None
        self.silence: Callable[[], Awaitable[None]] = _nothing
        self.say_offline: Callable[[], Awaitable[None]] = _nothing
        self._moves = 1 if shared.config.cluster is None else shared.config.cluster.moves
        self._wake = membership.changed
        self._share: set[str] = set()
        self._claims = Claims(membership, journal.pages, engine, codec, trouble="not polled")
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._left = 0
        self._working: list[asyncio.Task[None]] = []
        self._never = asyncio.Event()
        self.late = Late(engine, codec, journal, self._presence)
        self._strays = Strays(lambda: self.configured, membership, journal, engine, codec, shared.topics)
        membership.struck_out = self._give_up
        membership.begun = self._begin_term
        membership.agents = lambda: len(self._running.keys() | self._leaving.keys())
        journal.pages.lost = self._lose

    # What the program asks of any fleet.

    def start(self, agents: Iterable[AgentConfig], *, after_kill: bool = False) -> None:
        """Begin to poll our share of the agents."""
        self.configured = {agent.work_no: agent for agent in agents}
        self._begin_s = AFTER_FAILURE_S if after_kill else 0.0
        self._journal.begin(self._membership.term)
        work = (self._membership.run, self._balance, self._make_tidy, self.late.run, self._strays.run)
        self._working = [self._tasks.create_task(each(), name=f"cluster.{each.__qualname__}") for each in work]

    def strangers(self) -> list[str]:
        """List the agents that are known and not configured: none, since others may have them."""
        return []

    async def change(
        self, agents: Iterable[AgentConfig], removed: list[str], changed: list[str], *, hurry: asyncio.Event
    ) -> list[CommandRecord]:
        """Go on with another list of agents (C7)."""
        self.configured = {agent.work_no: agent for agent in agents}
        self._membership.adopt(replace(self._shared.config, agents=tuple(self.configured.values())))
        for work_no in removed:
            if work_no in self._running:
                self._hand_over(work_no, hurry, sign_out=True)
        ended = await self._end([each for each in changed if each in self._running], sign_out=[], hurry=hurry)
        for work_no in (poller.presence.agent.work_no for poller in ended):
            if self._journal.pages.owns(work_no):
                self._start(self.configured[work_no], 0.0)
            else:  # it was lost meanwhile
                self.pollers.pop(work_no, None)
        if leaving := [self._leaving[work_no] for work_no in removed if work_no in self._leaving]:
            await asyncio.wait(leaving)
        self._strays.look()
        return [command for poller in ended for command in poller.waiting()]

    def show_again(self, work_no: str) -> None:
        """Have the state and the availability of an agent sent again, by whoever has it."""
        if work_no in self.pollers:
            super().show_again(work_no)
        elif work_no in self.configured:
            self._tasks.create_task(self._engine.talk.tell("show", work_no.encode()))

    async def stop(self, hurry: asyncio.Event) -> None:
        """Hand all agents over, each when its poll is over; in a `hurry` at once."""
        self._stopping = True
        await self.silence()  # before others know: who speaks next throws us off the broker
        await self._membership.leave_soon()
        for work_no in list(self._running):
            self._hand_over(work_no, hurry)
        if self._leaving:
            await asyncio.wait(self._leaving.values())
        if self._left:
            _log.warning("cluster: %d agents could not be handed over; they are taken over", self._left)
        await _cancel(self._working)
        await self._membership.leave()
        with contextlib.suppress(ClusterError):
            if not await self._engine.anybody():
                await self.say_offline()

    # What is ours and what is not.

    async def _balance(self) -> None:
        """Bring what is polled here together with what is our share, again and again."""
        await self._engine.talk.listen("released", self._hear_released)
        await self._engine.talk.listen("show", self._hear_show)
        sharing: list[str] = []
        configured: dict[str, AgentConfig] = {}
        while True:
            heed_cancellation()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._wake.wait()
            self._wake.clear()
            if self._stopping or not self._membership.term.valid():
                continue
            if self._membership.sharing != sharing or self.configured is not configured:
                sharing, configured = self._membership.sharing, self.configured
                assigned = await asyncio.to_thread(shares, list(configured), sharing) if sharing else {}
                self._share = {work_no for work_no, member in assigned.items() if member == self._membership.name}
                self._claims.look_at_all()
            drained = self._membership.leaving
            if self._membership.name not in sharing and not drained:
                continue  # not seen ourselves yet
            for work_no in list(self._running):
                if len(self._leaving) >= self._moves and not drained:
                    break
                if work_no not in self._share:
                    self._hand_over(work_no, self._never)
            await self._claim_our_share()

    def _hand_over(self, work_no: str, hurry: asyncio.Event, *, sign_out: bool = False) -> None:
        if work_no in self._leaving:
            return
        task = self._leaving[work_no] = self._tasks.create_task(
            self._release(work_no, hurry, sign_out=sign_out), name=f"release[{work_no}]"
        )
        task.add_done_callback(lambda _: self._leaving.pop(work_no, None))

    async def _release(self, work_no: str, hurry: asyncio.Event, *, sign_out: bool) -> None:
        """End an agent's poller when its poll is over, and make the agent nobody's."""
        record = await self.let_go(work_no, hurry=hurry, sign_out=sign_out)
        self.released(work_no)
        await self._journal.published(work_no, _PUBLISHED_S)
        if self._journal.pages.owns(work_no):
            await self._make_free(work_no, record, hurry)

    async def _make_free(self, work_no: str, record: AgentRecord, hurry: asyncio.Event) -> None:
        try:
            await self._journal.pages.release(
                work_no, record, insists=lambda: not self._stopping, waits=lambda: not hurry.is_set()
            )
        except ClusterUnavailableError as error:
            self._left += 1
            _log.debug("agent %s: not handed over: %s", work_no, error)
        await self._engine.talk.tell("released", work_no.encode())

    async def _claim_our_share(self) -> None:
        busy = self.pollers.keys() | self._leaving.keys() | self._strays.under_way.keys()
        wanted = self._claims.due((self._share | self._journal.pages.doubtful) - busy)
        for start in range(0, len(wanted), _AT_ONCE):
            if self._wake.is_set():
                return  # somebody waits to be polled, while the others may well be polled
            try:
                found = await self._claims.look(wanted[start : start + _AT_ONCE])
            except ClusterUnavailableError as error:
                _log.debug("cluster: looking at agents: %s", error)
                return
            # Where it is not known whether an agent was claimed, its page may name us, or come to, without anybody
            # polling it. If so, it is claimed once more, and handed over where it is not our share by now.
            ours = [each for each in found if each.work_no in self._share or each.owner == self._membership.term.owner]
            await asyncio.gather(*map(self._claim, ours, itertools.count()))

    async def _claim(self, found: Claimable, place: int) -> None:
        """Make an agent ours, and poll it."""
        work_no = found.work_no
        try:
            record = await self._journal.claim(work_no, found.stored)
        except ClusterUnavailableError as error:
            _log.debug("agent %s: claiming: %s", work_no, error)
            return
        except ClusterError as error:
            self._claims.leave_alone(work_no, error)
            return
        if record is None or not self._journal.pages.owns(work_no):
            return  # somebody was first, or we were struck out; the next look shows who has it
        if self._stopping or work_no not in self.configured:
            await self._make_free(work_no, record, self._never)
            return
        self.take(self.configured[work_no], record, self._begin_after(found) + place * _CONNECT_S)
        self.taken += 1
        self.claimed(work_no)

    def _begin_after(self, found: Claimable) -> float:
        """Say how long to wait before an agent's first poll: its owner may just have left one that failed.

        Who let an agent go had waited, and who was struck out has polled nothing for long; but a member may have been
        killed and started again.
        """
        if found.stored is None:
            return self._begin_s
        name, _, _ = found.owner.rpartition("/")
        return AFTER_FAILURE_S if name in self._membership.others else 0.0

    def _lose(self, work_no: str) -> None:
        """End the poller of an agent that is another's by now."""
        if work_no in self._running:
            self._hand_over(work_no, self._never)

    def _begin_term(self) -> None:
        """Poll what will be ours, by another permit: what was ours never has one again."""
        self._gateway = Gateway(self._shared.config.gateway, permit=self._membership.term)
        self._journal.begin(self._membership.term)
        self._claims.look_at_all()

    def _give_up(self) -> None:
        """End all pollers, since all agents are others' by now; what their polls still bring is kept for these."""
        self._journal.pages.abandon()
        for work_no in list(self._running):
            self._hand_over(work_no, self._never)

    # What is tidied, and what others tell.

    async def _make_tidy(self) -> None:
        while True:
            heed_cancellation()
            await asyncio.sleep(1.0)
            await self._journal.pages.tidy()

    def _hear_released(self, data: bytes) -> None:
        self._claims.hear(data.decode())
        self._wake.set()

    def _presence(self, work_no: str) -> Presence | None:
        """Give an agent that is ours and polled."""
        return (
            self.pollers[work_no].presence if work_no in self._running and self._journal.pages.owns(work_no) else None
        )

    def _hear_show(self, data: bytes) -> None:
        if (work_no := data.decode()) in self.pollers:
            super().show_again(work_no)


async def _nothing() -> None:
    """Do nothing."""


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they end: nats-py waits by `asyncio.wait_for`.

    Until Python 3.12 that forgets a cancellation which comes together with an answer (CPython issue #86296).
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_CANCEL_S)
