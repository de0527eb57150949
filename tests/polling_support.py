"""An adapter between a simulator of the test's own and the shared broker, under a prefix of the test's own."""

import contextlib
import json
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adapter.agent.presence import Timing
from adapter.simulator import SimAgent, Simulator
from tests.adapter_support import Running, decoded, settings, start, wait_for, write
from tests.broker_support import DEADLINE_S, Broker, Peer

HOLD_S = 0.1
"""Short, since a test that waits for an empty answer waits for this long."""

SOON = {"interval": [0.2, 0.2], "error_interval": [1.01, 1.01]}
"""The shortest pauses that P4 and P5 allow; tests of the pauses themselves take the usual ones."""

USUAL = {"interval": [0.2, 0.5], "error_interval": [1.01, 2.0]}
"""P4's own pauses, and P5's as far as they grow in a short time."""


@dataclass(slots=True, kw_only=True)
class Place:
    """A running adapter with its two sides.

    Attributes:
        prefix: Its topic prefix.
        timing: What its runs are started with.
    """

    simulator: Simulator
    peer: Peer
    prefix: str
    path: Path
    adapter: Running
    timing: Timing | None

    def topic(self, work_no: str, name: str) -> str:
        """Name a topic of an agent."""
        return f"{self.prefix}/{work_no}/{name}"

    def on(self, work_no: str, name: str) -> list[Any]:
        """List what came on a topic of an agent, decoded; availability as text."""
        messages = self.peer.on(self.topic(work_no, name))
        return [got.payload.decode() for got in messages] if name == "availability" else decoded(messages)

    async def see(self, work_no: str, name: str, **members: Any) -> Any:  # noqa: ANN401 - any JSON
        """Wait for a payload with these members on a topic of an agent."""
        return await wait_for(
            self.peer, self.topic(work_no, name), lambda payload: members.items() <= _flat(payload).items()
        )

    async def availability(self, work_no: str, value: str) -> None:
        """Wait until an agent's availability has been so."""
        await self.peer.wait_for(lambda: value in self.on(work_no, "availability"))

    async def command(self, work_no: str, name: str, payload: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any JSON
        """Send a command, and wait for its result."""
        identifier = str(payload.get("id") or uuid.uuid4())
        await self.peer.publish(self.topic(work_no, f"{name}/set"), json.dumps({**payload, "id": identifier}))
        return await self.see(work_no, f"{name}/result", id=identifier)

    async def polls(self, work_no: str, count: int) -> None:
        """Wait until so many more polls of an agent have begun."""
        wanted = len(self.simulator.polls(work_no)) + count
        await self.simulator.wait_for(lambda: len(self.simulator.polls(work_no)) >= wanted, DEADLINE_S)

    def rows(self, statement: str, *values: object) -> list[dict[str, Any]]:
        """Ask the database, as it is on disk."""
        with contextlib.closing(sqlite3.connect(self.path.parent / "ccgateway2mqtt.db")) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(statement, values)]

    def stored(self, work_no: str) -> dict[str, Any]:
        """Give an agent's row in the database, as it is on disk."""
        return self.rows("SELECT * FROM agent WHERE work_no = ?", work_no)[0]

    @property
    def counters(self) -> Any:  # noqa: ANN401 - read as health does
        """The adapter's counters."""
        return self.adapter.app._shared.counters

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so at the gateway."""
        await self.simulator.wait_for(condition, DEADLINE_S)

    async def polled(self, *work_nos: str, times: int = 1) -> None:
        """Wait until agents have polled so often since the start."""
        for work_no in work_nos:
            await self.until(partial(self._has_polled, work_no, times))

    def _has_polled(self, work_no: str, times: int) -> bool:
        return len(self.simulator.polls(work_no)) >= times

    async def restart(self, change: Callable[[], None] = lambda: None) -> None:
        """Stop the adapter, let `change` happen, and start it again."""
        await self.adapter.stop()
        change()
        self.adapter = await start(self.path, timing=self.timing)


def _flat(payload: object) -> dict[str, Any]:
    return payload if isinstance(payload, dict) else {}


@contextlib.asynccontextmanager
async def place(  # noqa: PLR0913 - what a test may want different
    tmp_path: Path,
    broker: Broker,
    agents: Sequence[str | SimAgent] = ("101",),
    *,
    entries: Sequence[Mapping[str, Any]] | None = None,
    timing: Timing | None = None,
    good: bool = True,
    simulate: Mapping[str, Any] | None = None,
    **sections: Any,  # noqa: ANN401 - YAML's values
) -> AsyncIterator[Place]:
    """Run a simulator and an adapter; at the end the adapter must have kept the gateway's rules.

    Args:
        tmp_path: For the configuration and the database.
        broker: The broker.
        agents: The simulator's agents.
        entries: The configuration's agents; `None`: those of the simulator with their GUIDs.
        timing: Other times than the program's own.
        good: Whether the simulator must have nothing to complain of.
        simulate: Other settings of the simulator.
        sections: Other members of the configuration's sections.
    """
    prefix = f"t{uuid.uuid4().hex[:8]}"
    known = [SimAgent(work_no=agent) if isinstance(agent, str) else agent for agent in agents]
    async with Simulator(agents=known, **({"hold_s": HOLD_S} | dict(simulate or {}))) as simulator:
        values = settings(simulator, broker)
        values["gateway"] |= SOON | sections.pop("gateway", {})
        values["mqtt"] |= {"topic_prefix": prefix, "client_id": prefix}
        values |= sections
        if entries is not None:
            values["agents"] = [dict(entry) for entry in entries]
        path = write(tmp_path, values)
        with Peer(broker, [f"{prefix}/#"]) as peer:
            adapter = await start(path, timing=timing)
            here = Place(simulator=simulator, peer=peer, prefix=prefix, path=path, adapter=adapter, timing=timing)
            try:
                yield here
            finally:
                await here.adapter.stop()
            if good:
                assert simulator.violations == [], simulator.violations
