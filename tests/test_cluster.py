"""A fleet from end to end, on real NATS servers, a real broker and the simulated gateway (issue 6, SPEC section 10)."""

import asyncio
import base64
import contextlib
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from adapter.cluster.codec import Codec
from adapter.cluster.fleet import SharedFleet
from adapter.cluster.shares import shares
from adapter.config import ClusterConfig
from adapter.errors import ClusterConflictError, StartError
from adapter.simulator import SimAgent, Simulator
from adapter.store.records import AgentRecord, Outgoing
from bench.chaos.parts import Part, free_port
from tests.adapter_support import Running, decoded, settings, start, wait_for, write
from tests.broker_support import Broker, Peer
from tests.cluster_journal_support import config_of, engine_of
from tests.cluster_support import Servers, servers, until

MONITORING = Path(__file__).parents[1] / "docs" / "monitoring.md"
AGENTS = 8
HOLD_S = 1.0


@contextlib.asynccontextmanager
async def simulated() -> AsyncIterator[Simulator]:
    """Run a gateway with eight agents."""
    agents = [SimAgent(work_no=str(101 + number)) for number in range(AGENTS)]
    async with Simulator(agents=agents, hold_s=HOLD_S) as simulator:
        yield simulator


def configure(directory: Path, simulator: Simulator, broker: Broker, nats: Servers, name: str) -> Path:
    """Write a member's configuration."""
    values = settings(simulator, broker, instance=name, cluster=nats.settings(), storage={"path": f"{name}.db"})
    return write(directory, values, f"{name}.yaml")


@contextlib.asynccontextmanager
async def members(paths: Sequence[Path]) -> AsyncIterator[list[Running]]:
    """Run members in this process while the context lasts."""
    running: list[Running] = []
    try:
        running.extend([await start(path) for path in paths])
        yield running
    finally:
        for member in running:
            if not member.task.done():
                member.app.stop()
        await asyncio.gather(*(member.task for member in running), return_exceptions=True)


def polled_by(running: Sequence[Running]) -> list[set[str]]:
    """Say which agents each member polls."""
    return [set(member.app._fleet.pollers) for member in running]


async def test_each_agent_is_polled_by_one_member(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 2 and 4: agents are shared out, a leaver hands over, and nothing is lost, doubled or numbered twice."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        work_nos = {agent.work_no for agent in simulator.agents}
        with Peer(shared_broker, ["agents/#"]) as peer:
            async with members(paths) as running:
                await until(lambda: all(polled_by(running)) and set.union(*polled_by(running)) == work_nos)
                await until(lambda: not set.intersection(*polled_by(running)))
                for work_no in work_nos:
                    simulator.emit(work_no, {"eventType": "AgentState_Ready", "workNo": work_no, "content": None})
                await peer.wait_for(lambda: events(peer) >= Counter(work_nos))
                assert await running[0].stop() == "stopped"
                await until(lambda: polled_by(running)[1] == work_nos)
                for work_no in work_nos:
                    simulator.emit(work_no, {"eventType": "AgentState_Busy", "workNo": work_no, "content": None})
                await peer.wait_for(lambda: events(peer) >= Counter([*work_nos, *work_nos]))
            seen = {work_no: decoded(peer.on(f"agents/{work_no}/events")) for work_no in work_nos}
        assert all([event["seq"] for event in each] == [1, 2] for each in seen.values())
        assert simulator.violations == []


def shared_out(running: Sequence[Running], work_nos: Iterable[str]) -> bool:
    """Say whether each member polls its share of the agents."""
    owners = shares(work_nos, [member.app._config.instance for member in running])
    return polled_by(running) == [
        {work_no for work_no, owner in owners.items() if owner == member.app._config.instance} for member in running
    ]


def events(peer: Peer) -> Counter[str]:
    """Count the events by agent."""
    return Counter(message.topic.split("/")[1] for message in list(peer.messages) if message.topic.endswith("/events"))


async def test_another_configuration_is_refused(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: the same agents list on every member; a different content hash is refused loudly."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        path = configure(tmp_path, simulator, shared_broker, nats, "a")
        other = configure(tmp_path, simulator, shared_broker, nats, "b")
        other.write_text(other.read_text().replace("work_no: '108'", "work_no: '109'"))
        async with members([path]):
            with pytest.raises(StartError, match="member a has another configuration") as refused:
                await start(other)
    assert refused.value.exit_code == 2


async def test_another_key_is_refused(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 2: GUIDs are sealed with a key that all members have; who has another one is told at once."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        path = configure(tmp_path, simulator, shared_broker, nats, "a")
        other = configure(tmp_path, simulator, shared_broker, nats, "b")
        values = yaml.safe_load(other.read_text())
        values["cluster"]["key"] = base64.b64encode(b"k" * 32).decode()
        other.write_text(yaml.safe_dump(values))
        async with members([path]):
            with pytest.raises(StartError, match=r"member a has another cluster\.key"):
                await start(other)


async def test_members_that_are_gone_refuse_nobody(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: after all members were killed at once, a fleet with another list of agents can begin."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        path = configure(tmp_path, simulator, shared_broker, nats, "a")
        member = Part("a", [sys.executable, "-m", "adapter", "run", "-c", str(path)], tmp_path)
        with Peer(shared_broker, ["agents/bridge/member/#"]) as peer:
            await member.start()
            await peer.wait_for(partial(said, peer, "agents/bridge/member/a/availability", b"online"))
            await member.kill()
            other = configure(tmp_path, simulator, shared_broker, nats, "b")
            values = yaml.safe_load(other.read_text())
            values["agents"].pop()
            other.write_text(yaml.safe_dump(values))
            async with members([other]) as running:
                await until(lambda: len(polled_by(running)[0]) == AGENTS - 1)


async def test_commands_reach_whoever_has_the_agent(tmp_path: Path, shared_broker: Broker) -> None:
    """C2 to C4 in a fleet: each command is executed once, by the agent's owner, and answered once."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        work_nos = [agent.work_no for agent in simulator.agents]
        with Peer(shared_broker, ["agents/#"]) as peer:
            async with members(paths) as running:
                await until(lambda: shared_out(running, work_nos))
                await peer.wait_for(partial(said, peer, "agents/bridge/availability", b"online"))
                for work_no in work_nos:
                    await peer.publish(f"agents/{work_no}/calldata/set", b'{"calldata": "customer", "id": "one"}')
                await peer.publish("agents/999/calldata/set", b'{"calldata": "customer", "id": "two"}')
                for work_no in work_nos:
                    result = await wait_for(
                        peer, f"agents/{work_no}/calldata/result", lambda found: found["id"] == "one"
                    )
                    assert result["status"] == "applied"
                unknown = await wait_for(peer, "agents/999/calldata/result", lambda found: found["id"] == "two")
                assert (unknown["status"], unknown["reason"]) == ("rejected", "unknown agent")
                await peer.publish(f"agents/{work_nos[0]}/calldata/set", b'{"calldata": "another", "id": "one"}')
                await peer.wait_for(lambda: len(peer.on(f"agents/{work_nos[0]}/calldata/result")) > 1)
            results = {work_no: peer.payloads(f"agents/{work_no}/calldata/result") for work_no in work_nos}
        assert [len(results[work_no]) for work_no in work_nos] == [2] + [1] * (AGENTS - 1)
        assert len(set(results[work_nos[0]])) == 1  # the first result, to the byte
        sent = {work_no: [poll.calldata for poll in simulator.polls(work_no) if poll.calldata] for work_no in work_nos}
        assert sent == {work_no: ["customer"] for work_no in work_nos}


async def test_commands_are_counted_by_agent_whoever_has_it(tmp_path: Path, shared_broker: Broker) -> None:
    """C5 in a fleet: agents that other members have do not share one agent's 20 commands a second."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        work_nos = [agent.work_no for agent in simulator.agents]
        commands = [b'{"calldata": "customer", "id": "%d"}' % number for number in range(16)]
        topics = [f"agents/{work_no}/calldata/set" for work_no in work_nos]
        with Peer(shared_broker, ["agents/#"]) as peer:
            async with members(paths) as running:
                await until(lambda: shared_out(running, work_nos))
                await peer.wait_for(partial(said, peer, "agents/bridge/availability", b"online"))
                await asyncio.gather(*itertools.starmap(peer.publish, itertools.product(topics, commands)))
                taken = [member.app._shared.counters for member in running]
                await until(lambda: sum(each.commands for each in taken) == len(topics) * len(commands))
                assert sum(each.dropped_commands for each in taken) == 0


def said(peer: Peer, topic: str, payload: bytes) -> bool:
    """Say whether a payload came on a topic, and not as what an earlier fleet has left there."""
    return any(message.payload == payload and not message.retain for message in peer.on(topic))


async def test_the_fleet_is_online_while_a_member_is(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: `bridge/availability` belongs to the fleet, and each member has one of its own."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        with Peer(shared_broker, ["agents/bridge/#"]) as peer:
            async with members(paths) as running:
                for place in ("", "member/a/", "member/b/"):
                    topic = f"agents/bridge/{place}availability"
                    await peer.wait_for(partial(said, peer, topic, b"online"))
                await wait_for(peer, "agents/bridge/health", lambda found: sum(found["agents"].values()) == AGENTS)
                info = await wait_for(peer, "agents/bridge/info", lambda found: found["agents"]["configured"] == AGENTS)
                assert info["instance"] == "test"
                await peer.publish("agents/bridge/request/agents", b'{"id": "who"}')
                roster = await wait_for(peer, "agents/bridge/response/agents", lambda found: found["id"] == "who")
                assert [agent["workNo"] for agent in roster["data"]["agents"]] == [
                    agent.work_no for agent in simulator.agents
                ]
                await running[0].stop()
                await peer.wait_for(lambda: peer.payloads("agents/bridge/member/a/availability")[-1] == b"offline")
                assert not said(peer, "agents/bridge/availability", b"offline")
                await running[1].stop()
                await peer.wait_for(lambda: peer.payloads("agents/bridge/availability")[-1] == b"offline")


async def test_a_reload_reaches_all_members(tmp_path: Path, shared_broker: Broker) -> None:
    """C7 in a fleet: one request has all members read their file again."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        gone = simulator.agents[-1].work_no
        with Peer(shared_broker, ["agents/#"]) as peer:
            async with members(paths) as running:
                await peer.wait_for(partial(said, peer, "agents/bridge/availability", b"online"))
                await until(lambda: sum(map(len, polled_by(running))) == AGENTS)
                for path in paths:
                    values = yaml.safe_load(path.read_text())
                    values["agents"] = [agent for agent in values["agents"] if agent["work_no"] != gone]
                    path.write_text(yaml.safe_dump(values))
                await peer.publish("agents/bridge/request/reload", b'{"id": "less"}')
                response = await wait_for(peer, "agents/bridge/response/reload", lambda found: found["id"] == "less")
                assert response["status"] == "ok", response
                assert response["data"]["removed"] == [gone]
                await until(lambda: sum(map(len, polled_by(running))) == AGENTS - 1)
                await peer.wait_for(lambda: peer.payloads(f"agents/{gone}/state")[-1] == b"")


async def test_without_a_quorum_nothing_is_polled_and_it_is_said(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 5: without a quorum polling pauses; with one it goes on, and events that came meanwhile go out."""
    async with servers(tmp_path, 3) as nats, simulated() as simulator:
        path = configure(tmp_path, simulator, shared_broker, nats, "a")
        work_nos = [agent.work_no for agent in simulator.agents]
        with Peer(shared_broker, ["agents/#"]) as peer:
            async with members([path]) as running:
                await peer.wait_for(partial(said, peer, "agents/bridge/availability", b"online"))
                await until(lambda: len(polled_by(running)[0]) == AGENTS)
                for node in nats.nodes[1:]:
                    await node.kill()
                await peer.wait_for(partial(said, peer, "agents/bridge/availability", b"offline"))
                await until(lambda: not any(simulator.polling(work_no) for work_no in work_nos))
                for work_no in work_nos:
                    simulator.emit(work_no, {"eventType": "AgentState_Ready", "workNo": work_no, "content": None})
                before = simulator.poll_count
                for node in nats.nodes[1:]:
                    await node.start()
                assert simulator.poll_count == before
                await peer.wait_for(lambda: events(peer) >= Counter(work_nos))
                assert events(peer) == Counter(work_nos)


async def test_home_assistant_sees_one_bridge(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: the fleet is one device of Home Assistant, under its own name, and each agent another."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        for path in paths:
            values = yaml.safe_load(path.read_text())
            path.write_text(yaml.safe_dump(values | {"home_assistant": {"discovery": True}}))
        names = {"bridge", *(agent.work_no for agent in simulator.agents)}
        topics = {f"homeassistant/device/ccgateway2mqtt_test_{name}/config" for name in names}
        with Peer(shared_broker, ["homeassistant/#"]) as peer:
            async with members(paths):
                await peer.wait_for(lambda: {message.topic for message in list(peer.messages)} >= topics)
            assert {message.topic for message in list(peer.messages)} == topics


async def test_a_member_tells_its_part(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 2: who has how many agents, and for how long, shows in `/metrics` as docs/monitoring.md lists it."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        path = configure(tmp_path, simulator, shared_broker, nats, "a")
        port = free_port()
        path.write_text(path.read_text() + f'\nhttp: {{listen: "127.0.0.1:{port}"}}\n')
        async with members([path]) as running:
            await until(lambda: len(polled_by(running)[0]) == AGENTS)
            async with httpx.AsyncClient() as client:
                text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {sample.name: sample.value for sample in samples if sample.labels == {"fleet": "test"}}
    listed = re.findall(r"^\| `(ccgateway2mqtt_cluster_\w+)`", MONITORING.read_text(), re.MULTILINE)
    assert list(found) == listed
    lease_s = found.pop("ccgateway2mqtt_cluster_lease_seconds")
    assert HOLD_S + 2 < lease_s <= HOLD_S + 5
    assert {name.removeprefix("ccgateway2mqtt_cluster_"): value for name, value in found.items()} == {
        "members": 1,
        "unlike_members": 0,
        "configured_agents": AGENTS,
        "agents": AGENTS,
        "leaving": 0,
        "speaks": 1,
        "claims_total": AGENTS,
        "struck_out_total": 0,
        "late_events_total": 0,
    }


def shown(member: Running, name: str) -> float:
    """Read one of the figures that a member shows of the fleet."""
    return member.app._role.figures().values[f"cluster_{name}"][1]


async def test_one_speaks_while_members_differ(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: two that speak at once would throw each other off the broker, for as long as a reload takes."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        async with members(paths) as (a, b):
            await until(lambda: shown(a, "members") == shown(b, "members") == 2)
            values = yaml.safe_load(b.path.read_text())
            values["agents"].pop()
            b.path.write_text(yaml.safe_dump(values))
            await b.app.reload()
            await until(lambda: shown(a, "unlike_members") == shown(b, "unlike_members") == 1)
            assert (shown(a, "speaks"), shown(b, "speaks")) == (1, 0)


async def test_what_befalls_members_shows(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: a drained member, agents taken, events that came late, another configuration, and being struck out."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        config = config_of(nats)
        async with members(paths) as (a, b), engine_of(config, "test") as engine:
            await until(lambda: all(polled_by([a, b])) and sum(map(len, polled_by([a, b]))) == AGENTS)
            await engine.talk.tell("drain", b"a")
            await until(lambda: shown(a, "leaving") and shown(b, "claims_total") == shown(b, "agents") == AGENTS)
            assert (shown(a, "agents"), shown(b, "leaving"), shown(b, "members")) == (0, 0, 1)

            await engine.append_late("101", late_page(config), "late")
            await until(lambda: shown(b, "late_events_total") == 1)

            a.path.write_text(a.path.read_text().replace("work_no: '108'", "work_no: '109'"))
            await a.app.reload()
            await until(lambda: shown(b, "unlike_members") == 1)
            assert shown(b, "struck_out_total") == 0

            while not shown(b, "struck_out_total"):  # it may renew its lease between look and strike
                if (found := await engine.member("b")) is not None:
                    with contextlib.suppress(ClusterConflictError):
                        await engine.strike("b", found.revision)
                await asyncio.sleep(0.05)
            assert shown(b, "struck_out_total") == 1


def late_page(config: ClusterConfig) -> bytes:
    """Write what a former owner of agent 101 keeps of an event."""
    event = {"eventType": "AgentState_Ready", "workNo": "101", "content": None}
    ours = {"id": "late", "seq": 7, "receivedAt": "2025-03-01T08:00:00.000Z"}
    outgoing = [Outgoing(topic="agents/101/event", payload=json.dumps(event | ours).encode(), retain=True)]
    record, codec = AgentRecord(work_no="101"), Codec(config.keys)
    return codec.write(record, owner="gone/1", sealed=codec.seal(record), outgoing=outgoing)


async def test_a_cancellation_that_is_forgotten_is_repeated(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 4: before Python 3.12 nats-py forgets a cancellation that comes with an answer; the member leaves still."""

    async def forget() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async with (
        servers(tmp_path) as nats,
        simulated() as simulator,
        members([configure(tmp_path, simulator, shared_broker, nats, "a")]) as (member,),
    ):
        fleet = member.app._fleet
        assert isinstance(fleet, SharedFleet)
        fleet._working.append(asyncio.create_task(forget()))
        await asyncio.sleep(0)
        assert await member.stop() == "stopped"
