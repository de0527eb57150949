"""A stage for tests of the whole program: a simulator, a place of its own on a broker, and somebody who listens."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from adapter import link
from adapter.agent.presence import Timing
from adapter.simulator import SimAgent, Simulator
from tests.adapter_support import Running, running, settings, wait_for, write
from tests.broker_support import Broker, Got, Peer
from tests.contract_support import valid


@dataclass(slots=True, kw_only=True)
class Stage:
    """What a test plays with.

    Attributes:
        prefix: The test's own `mqtt.topic_prefix`.
        directory: Where configuration and database lie.
    """

    simulator: Simulator
    broker: Broker
    peer: Peer
    prefix: str
    directory: Path

    def topic(self, rest: str) -> str:
        """Name a topic below the prefix."""
        return f"{self.prefix}/{rest}"

    def on(self, rest: str) -> list[Got]:
        """List what came on a topic below the prefix."""
        return self.peer.on(self.topic(rest))

    def json(self, rest: str) -> list[Any]:
        """List what came on a topic as JSON; what cleared it is left out."""
        return [json.loads(message.payload) for message in self.on(rest) if message.payload]

    async def send(self, rest: str, payload: bytes | str | dict[str, Any], **more: Any) -> None:  # noqa: ANN401 - passed on
        """Publish a command or a request."""
        raw = json.dumps(payload) if isinstance(payload, dict) else payload
        await self.peer.publish(self.topic(rest), raw, **more)

    async def wait(self, rest: str, **members: Any) -> Any:  # noqa: ANN401 - any JSON
        """Wait for a payload on a topic that has these members, and give the first."""
        return await wait_for(
            self.peer, self.topic(rest), lambda value: all(value.get(name) == each for name, each in members.items())
        )

    async def wait_count(self, rest: str, count: int) -> None:
        """Wait until so many messages have come on a topic."""
        await self.peer.wait_for(lambda: len(self.on(rest)) >= count)

    async def polling(self, work_no: str) -> None:
        """Wait until an agent is polled."""
        await self.simulator.wait_for(lambda: self.simulator.polling(work_no))

    def values(self, **sections: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML's values
        """Make a configuration; `sections` replace members of the sections they name."""
        mqtt = {"topic_prefix": self.prefix} | sections.pop("mqtt", {})
        sections = {"instance": self.prefix, "storage": {"path": "outbox.db"}} | sections
        return settings(self.simulator, self.broker, mqtt=mqtt, **sections)

    @contextlib.asynccontextmanager
    async def running(self, *, timing: Timing | None = None, **sections: Any) -> AsyncIterator[Running]:  # noqa: ANN401 - as above
        """Run an adapter; what it published is checked against its contracts at the end."""
        path = write(self.directory, self.values(**sections))
        # Each start looks for another instance first; a broker on the loopback needs no half second to answer.
        with mock.patch.object(link, "_QUIET_S", 0.1):
            async with running(path, timing=timing) as adapter:
                yield adapter
        assert valid(self.peer, self.prefix)


@contextlib.asynccontextmanager
async def staged(
    directory: Path,
    broker: Broker,
    *,
    agents: Sequence[str] | Sequence[SimAgent] = ("101",),
    hold_s: float = 0.3,
    quiet: bool = True,
    **more: Any,  # noqa: ANN401 - passed on
) -> AsyncIterator[Stage]:
    """Set up a stage; at the end the gateway must have nothing to complain of, where `quiet`."""
    prefix = f"t{uuid.uuid4().hex[:10]}"
    async with Simulator(agents=agents, hold_s=hold_s, **more) as simulator:
        peer = Peer(broker, [f"{prefix}/#"])
        await asyncio.to_thread(peer.__enter__)
        try:
            yield Stage(simulator=simulator, broker=broker, peer=peer, prefix=prefix, directory=directory)
        finally:
            await asyncio.to_thread(peer.__exit__, None, None, None)
        assert not quiet or simulator.violations == []
