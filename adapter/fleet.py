"""All agents of the configuration: their pollers, started staggered, changed by a reload, stopped together."""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from adapter.agent.pace import AFTER_FAILURE_S
from adapter.agent.poller import Poller
from adapter.agent.presence import Shared
from adapter.agent.session import Session
from adapter.config import AgentConfig
from adapter.gateway import Gateway
from adapter.store.records import AgentRecord, Change, CommandRecord, Outgoing

_log = logging.getLogger(__name__)

_SIGN_OUT_S = 3.0
"""How long all sign-outs at exit together may take (D7)."""
_GRACE_S = 2.0
"""What a poll under way is allowed over `hold` at the end (D7)."""
_CONNECT_S = 0.0024
"""What a TLS connection and the first answers cost both sides, on one core: begun more quickly, thousands of handshakes
would wait for one another until they are too late."""
_LOOK_S = 1.0
"""How often GUID files are looked at."""


class Fleet:
    """The pollers by work number.

    Args:
        tasks: Where the pollers run; what one of them raises ends the program.

    Attributes:
        pollers: The agents of the configuration as it is now.
    """

    def __init__(self, gateway: Gateway, shared: Shared, tasks: asyncio.TaskGroup) -> None:
        self.pollers: dict[str, Poller] = {}
        self._gateway = gateway
        self._shared = shared
        self._tasks = tasks
        self._running: dict[str, asyncio.Task[None]] = {}
        self._stopping = False
        self._started = asyncio.Event()
        self._records = dict(shared.outbox.agents)

    def start(self, agents: Iterable[AgentConfig], *, after_kill: bool = False) -> None:
        """Start agents, their first requests spread over `hold`, or longer where they are very many.

        Args:
            agents: The agents.
            after_kill: Whether a poll of theirs may have been cut just now, which the gateway sees as one that failed.
        """
        starting = list(agents)
        self._started.set()
        begin_s = AFTER_FAILURE_S if after_kill else 0.0
        for place, agent in enumerate(starting):
            self._start(agent, begin_s + place / len(starting) * self.start_s(len(starting)))

    def start_s(self, agents: int) -> float:
        """Say over how many seconds the first requests of so many agents are spread."""
        return max(self._shared.config.gateway.hold_s, agents * _CONNECT_S)

    def _start(self, agent: AgentConfig, delay_s: float, *, takes_over: bool = False) -> None:
        if self._stopping:
            return
        record = self._records.get(agent.work_no) or AgentRecord(work_no=agent.work_no)
        line = self._gateway.line(agent.work_no, dict(record.cookies))
        session = Session(agent, self._shared.config.gateway, line, record)
        poller = self.pollers[agent.work_no] = Poller(agent, session, record, self._shared, takes_over=takes_over)
        self._running[agent.work_no] = self._tasks.create_task(poller.run(delay_s), name=f"poller[{agent.work_no}]")

    def take(self, agent: AgentConfig, record: AgentRecord, delay_s: float) -> None:
        """Start one agent, going on from what another has left of it."""
        self._records[agent.work_no] = record
        self._start(agent, delay_s, takes_over=bool(record.state))

    async def let_go(self, work_no: str, *, hurry: asyncio.Event, sign_out: bool) -> AgentRecord:
        """End one agent when its poll is over, for another to go on unless it is signed out; give what it leaves."""
        await self._end([work_no], sign_out=[work_no] if sign_out else [], hurry=hurry)
        self.pollers.pop(work_no, None)
        return self._records.pop(work_no)

    async def change(
        self, agents: Iterable[AgentConfig], removed: list[str], changed: list[str], *, hurry: asyncio.Event
    ) -> list[CommandRecord]:
        """Go on with another list of agents; those that are the same in it poll on undisturbed (C7).

        Args:
            agents: The new list.
            removed: Work numbers that are not in it.
            changed: Work numbers whose entry is another.
            hurry: Cuts the waiting for their polls short.

        Returns:
            The commands that still waited with the agents that were ended.
        """
        wanted = {agent.work_no: agent for agent in agents}
        self.start(agent for work_no, agent in wanted.items() if work_no not in self.pollers)
        # The new poller of a changed agent begins when the old one's last request is over, and goes on from its record.
        ended = await self._end([*removed, *changed], sign_out=removed, hurry=hurry)
        for work_no in removed:
            self.pollers.pop(work_no, None)
        self.start(wanted[work_no] for work_no in changed)
        await self.clear(removed)
        return [command for poller in ended for command in poller.waiting()]

    async def clear(self, work_nos: Iterable[str]) -> None:
        """Clear what is retained of agents that left the configuration, behind the events that they left behind."""
        change = Change(forgotten=tuple(work_nos))
        for work_no in change.forgotten:
            event, *others = self._shared.topics.retained(work_no)
            change.outgoing.append(Outgoing(topic=event, payload=b"", retain=True))
            change.slots.update((topic, b"") for topic in others)
            self._records.pop(work_no, None)
        if change:
            await self._shared.outbox.insist(change)

    def show_again(self, work_no: str) -> None:
        """Have the state and the availability of an agent sent again, as they are now."""
        change = Change()
        if work_no in self.pollers:
            self.pollers[work_no].presence.show(change)
            self._shared.outbox.show(change.slots)

    def strangers(self) -> list[str]:
        """List the agents that the database knows and the configuration does not."""
        return [work_no for work_no in self._records if work_no not in self.pollers]

    async def stop(self, hurry: asyncio.Event) -> None:
        """End all polls, those under way within `hold` and a grace, in a `hurry` at once; sign out where configured."""
        self._stopping = True
        await self._end(list(self.pollers), sign_out=list(self.pollers), hurry=hurry)

    async def _end(self, work_nos: list[str], *, sign_out: list[str], hurry: asyncio.Event) -> list[Poller]:
        """End pollers, but for those that are being ended already.

        They stay in `pollers` meanwhile: a command that comes for one of them waits with it.
        """
        ending = {work_no: self.pollers[work_no] for work_no in work_nos if work_no in self._running}
        running = [self._running.pop(work_no) for work_no in ending]
        for poller in ending.values():
            poller.end()
        if not running:
            return []
        urged = asyncio.ensure_future(hurry.wait())
        over = asyncio.ensure_future(asyncio.wait(running))
        await asyncio.wait(
            [over, urged],
            timeout=self._shared.config.gateway.hold_s + _GRACE_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        urged.cancel()
        for task in running:
            task.cancel()
        await over
        for work_no, poller in ending.items():
            self._records[work_no] = poller.presence.record()
        closing = [
            asyncio.create_task(poller.close(sign_out=work_no in sign_out), name=f"close[{work_no}]")
            for work_no, poller in ending.items()
        ]
        _, late = await asyncio.wait(closing, timeout=_SIGN_OUT_S)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
            _log.warning("sign-outs at exit: %d were not answered within %g s", len(late), _SIGN_OUT_S)
        return list(ending.values())

    async def watch_guid_files(self) -> None:
        """Tell agents when their GUID file changes, until cancelled."""
        seen: dict[Path, int | None] | None = None
        loop = asyncio.get_running_loop()
        while True:
            self._started.clear()
            files = {
                poller.presence.agent.guid_file: poller
                for poller in self.pollers.values()
                if poller.presence.agent.guid_file is not None
            }
            changed_at = await loop.run_in_executor(None, _changed_at, list(files)) if files else {}
            for path, poller in files.items():
                # An agent that is new has read its file already, perhaps just before it changed.
                if seen is not None and (path not in seen or seen[path] != changed_at[path]):
                    poller.read_guid_file()
            seen = changed_at
            if files:
                await asyncio.sleep(_LOOK_S)
            else:  # until a reload brings one
                await self._started.wait()


def _changed_at(paths: list[Path]) -> dict[Path, int | None]:
    """Look when files were changed last; `None` for one that is not there."""
    found: dict[Path, int | None] = {}
    for path in paths:
        try:
            found[path] = path.stat().st_mtime_ns
        except OSError:
            found[path] = None
    return found
