"""A real Node-RED with the shipped flows, on a Mosquitto with the shipped ACLs, and somebody who looks at its editor.

```
simulator --HTTPS--> adapter (a process) --> Mosquitto (examples/mosquitto/acl) <--> Node-RED (examples/node-red)
                                                                                        |  comms (WebSocket)
                                                                                   statuses, debug sidebar
```

A flow is used as it is shipped: only the broker's address and log-in are filled in, as a user does,
and waiting times are shortened where a test says so.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from adapter.simulator import SimAgent, Simulator
from tests.adapter_support import HOLD_S, settings, write
from tests.broker_support import HOST, Broker, Peer, mosquitto
from tests.cli_support import Program, program, reading
from tests.examples_support import EXAMPLES, ROOT, find
from tests.wall_support import until

FLOWS = EXAMPLES / "node-red/flows.json"
INSTALLED = ROOT / "build/node_red"
PASSWORD = "of-the-test"  # noqa: S105 - for a broker that lives as long as the test
AGENTS = (
    SimAgent(work_no="101", name="Amina", group="Orders"),
    SimAgent(work_no="102", name="Yusuf", group="Support"),
)
START_S = 60.0
"""How long Node-RED may take to start on a busy machine; 6 s is usual."""

Node = dict[str, Any]


def load_flow() -> list[Node]:
    """Read the shipped flows."""
    nodes: list[Node] = json.loads(FLOWS.read_text(encoding="utf-8"))
    return nodes


@dataclass(slots=True)
class NodeRed:
    """A Node-RED that runs.

    Attributes:
        url: Where it is.
        process: Its process, with what it logs.
        statuses: The text below each node, newest, by the node's id.
        sidebar: What the debug sidebar shows: the payload of each message, oldest first.
    """

    url: str
    process: Program
    flow: list[Node]
    statuses: dict[str, str] = field(default_factory=dict)
    sidebar: list[str] = field(default_factory=list)

    def status(self, name: str) -> str | None:
        """Give the text below the node that is called `name`."""
        (node_id,) = [node["id"] for node in self.flow if node.get("name") == name and "z" in node]
        return self.statuses.get(node_id)

    def complaints(self) -> list[str]:
        """List the warnings and errors that it has logged, but those about itself and of a broker that is away."""
        usual = ("Projects disabled", "unencrypted credentials")
        lines = [line for line in (*self.process.out, *self.process.err) if re.search(r"\[(warn|error)\]", line)]
        return [line for line in lines if not any(part in line for part in usual)]

    async def look(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Keep up with what the editor would show."""
        async for message in socket:
            for each in json.loads(message.data):
                topic, data = each["topic"], each.get("data") or {}
                if topic == "debug":
                    self.sidebar.append(data["msg"])
                elif topic.startswith("status/"):
                    self.statuses[topic.removeprefix("status/")] = data.get("text", "")


def prepare(directory: Path, flow: list[Node], broker: Broker | None) -> None:
    """Make Node-RED's user directory: the modules, the flow with the broker's address in it, and the log-in."""
    assert (INSTALLED / "node_modules/node-red").is_dir(), "make test-nodered installs Node-RED"
    directory.mkdir(exist_ok=True)
    modules = directory / "node_modules"
    if not modules.exists():
        modules.symlink_to(INSTALLED / "node_modules")
    credentials = {}
    for node in flow:
        if broker and node["type"] == "mqtt-broker":
            assert (node["broker"], node["port"]) == ("localhost", "1883")
            node.update(broker=HOST, port=str(broker.ports["mqtt"]))
            credentials[node["id"]] = {"user": "sender", "password": PASSWORD}
    (directory / "flows.json").write_text(json.dumps(flow), encoding="utf-8")
    (directory / "flows_cred.json").write_text(json.dumps(credentials), encoding="utf-8")


@contextlib.asynccontextmanager
async def node_red(directory: Path, flow: list[Node], broker: Broker | None = None) -> AsyncIterator[NodeRed]:
    """Run Node-RED with a flow; return when it has subscribed to all that the flow asks for.

    Args:
        directory: For its user directory; made if it is not there.
        flow: The nodes, as shipped.
        broker: Whose address and whose user `sender` are filled in; without one the flow is left as it is.
    """
    prepare(directory, flow, broker)
    before = subscriptions(broker, topics(flow)) if broker else 0
    process = await asyncio.create_subprocess_exec(
        find("node"),
        str(INSTALLED / "node_modules/node-red/red.js"),
        "--settings",
        str(Path(__file__).parent / "settings.js"),
        "--userDir",
        str(directory),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with reading(process) as said, aiohttp.ClientSession() as session:
        await said.line(lambda line: "Started flows" in line, START_S)
        url = (await said.line(lambda line: "now running at" in line)).split()[-1]
        made = NodeRed(url, said, flow)
        async with session.ws_connect(f"{url}comms") as socket:
            for topic in ("debug", "status/#"):
                await socket.send_json({"subscribe": topic})
            looking = asyncio.create_task(made.look(socket), name="comms")
            if broker:
                await until(lambda: subscriptions(broker, topics(flow)) > before)
            try:
                yield made
            finally:
                looking.cancel()
                await asyncio.wait([looking])


def topics(flow: list[Node]) -> list[str]:
    """List what a flow subscribes to."""
    return [node["topic"] for node in flow if node["type"] == "mqtt in"]


def subscriptions(broker: Broker, filters: Sequence[str]) -> int:
    """Say how many times the broker has taken each of these subscriptions; 0 while one is missing."""
    return min(len(re.findall(rf": \S+ 1 {re.escape(each)}$", broker.log, re.MULTILINE)) for each in filters)


@contextlib.contextmanager
def shipped_broker(directory: Path) -> Iterator[Broker]:
    """Run a Mosquitto with the shipped ACLs, and a log of who subscribes to what."""
    acl = (EXAMPLES / "mosquitto/acl").read_text(encoding="utf-8")
    users = dict.fromkeys(("adapter", "sender"), PASSWORD)
    with mosquitto(directory, users=users, acl=acl, extra=("log_type all",)) as broker:
        yield broker


@dataclass(slots=True, kw_only=True)
class Stage:
    """Everything but Node-RED: a gateway, a broker, and a listener with the adapter's rights."""

    simulator: Simulator
    broker: Broker
    peer: Peer
    directory: Path

    def configure(self, agents: Sequence[SimAgent]) -> Path:
        """Write the adapter's configuration."""
        guids = {agent.work_no: agent.guid for agent in self.simulator.agents}
        listed = [
            {"work_no": agent.work_no, "name": agent.name, "group": agent.group, "guid": guids[agent.work_no]}
            for agent in agents
        ]
        return write(self.directory, settings(self.simulator, self.broker, agents=listed))

    @contextlib.asynccontextmanager
    async def adapter(self, agents: Sequence[SimAgent] = AGENTS) -> AsyncIterator[Program]:
        """Run the adapter as a process; return when it polls all agents."""
        before = len(self.peer.on("agents/bridge/availability"))
        async with program("run", "-c", self.configure(agents)) as made:
            await self.peer.wait_for(lambda: b"online" in self.peer.payloads("agents/bridge/availability")[before:])
            for agent in agents:
                await self.simulator.wait_for(lambda work_no=agent.work_no: self.simulator.polling(work_no))  # type: ignore[misc] # mypy cannot type a lambda's default
            yield made


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """Set up a stage with two agents who are signed in elsewhere."""
    with shipped_broker(tmp_path / "broker") as broker, Peer(broker, ["agents/#"]) as peer:
        async with Simulator(agents=AGENTS, hold_s=HOLD_S) as simulator:
            yield Stage(simulator=simulator, broker=broker, peer=peer, directory=tmp_path)
            assert simulator.violations == []
