"""What a test plays with: a simulated gateway, the adapter as a process, and a connection to Home Assistant."""

import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.simulator import SimAgent, Simulator
from tests.adapter_support import settings, write
from tests.broker_support import Broker, Peer
from tests.cli_support import Program, program
from tests_homeassistant.hub import DEADLINE_S, Hub

HOLD_S = 0.5
PREFIX = "homeassistant"


@dataclass(slots=True, kw_only=True)
class Stage:
    """A place of the test's own on the broker, with the adapter at work there.

    Attributes:
        instance: The adapter's `instance`, and its `mqtt.topic_prefix`.
    """

    simulator: Simulator
    broker: Broker
    peer: Peer
    instance: str
    path: Path
    _stack: contextlib.AsyncExitStack
    _adapter: Program | None = None

    @property
    def runs(self) -> bool:
        """Whether the adapter runs."""
        return self._adapter is not None and self._adapter.process.returncode is None

    def configure(self, *work_nos: str) -> None:
        """Write the configuration with these agents of the simulator; the adapter signs in who has no session there."""
        agents = [_agent(agent) for agent in self.simulator.agents if agent.work_no in work_nos]
        values = settings(
            self.simulator,
            self.broker,
            mqtt={"topic_prefix": self.instance},
            instance=self.instance,
            agents=agents,
            storage={"path": "outbox.db"},
            home_assistant={"discovery": True},
        )
        write(self.path.parent, values, self.path.name)

    async def start(self) -> None:
        """Start the adapter, at first or again."""
        self._adapter = await self._stack.enter_async_context(program("run", "-c", self.path))

    async def kill(self) -> None:
        """End the adapter with SIGKILL."""
        assert self._adapter is not None
        self._adapter.send(signal.SIGKILL)
        await self._adapter.ended()

    async def polling(self, *work_nos: str) -> None:
        """Wait until agents are polled."""
        try:
            await self.simulator.wait_for(lambda: all(self.simulator.polling(each) for each in work_nos), DEADLINE_S)
        except TimeoutError:
            said = None if self._adapter is None else self._adapter.err
            raise AssertionError(f"not polled; the adapter said: {said}") from None


def _agent(agent: SimAgent) -> dict[str, Any]:
    known = {"work_no": agent.work_no}
    known |= {name: value for name, value in (("name", agent.name), ("group", agent.group)) if value is not None}
    if agent.guid:
        return known | {"guid": agent.guid}
    return known | {"sign_in": {"password": f"pw-{agent.work_no}", "phone": f"8{agent.work_no}"}}


@contextlib.asynccontextmanager
async def staged(directory: Path, broker: Broker, instance: str, agents: Sequence[SimAgent]) -> AsyncIterator[Stage]:
    """Set up a stage with all these agents configured; at the end nothing of it is left at the broker."""
    async with contextlib.AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(Simulator(agents=agents, hold_s=HOLD_S))
        peer = stack.enter_context(Peer(broker))
        path = directory / "config.yaml"
        made = Stage(simulator=simulator, broker=broker, peer=peer, instance=instance, path=path, _stack=stack)
        made.configure(*(agent.work_no for agent in agents))
        await made.start()
        await made.polling(*(agent.work_no for agent in agents))
        yield made
        if made.runs:
            await made.kill()
        ours = (f"{instance}/", f"{PREFIX}/device/ccgateway2mqtt_{instance}_")
        last = {message.topic: message.payload for message in peer.messages}
        for topic in (topic for topic, payload in last.items() if topic.startswith(ours) and payload):
            await peer.publish(topic, b"", retain=True)
        assert simulator.violations == []


async def gone(hub: Hub, *entity_ids: str) -> None:
    """Wait until Home Assistant does not know entities any more."""
    await hub.wait_for(lambda: not set(entity_ids) & set(hub.states), f"the end of {entity_ids}")
