"""Tests of examples/mosquitto/: real brokers with the shipped files, and one client for each user."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from adapter.agent.presence import Timing
from adapter.cluster.topics import MemberTopics
from adapter.config import load
from adapter.purge import purge
from adapter.simulator import Simulator
from adapter.topics import Topics, discovery
from tests.adapter_support import HOLD_S, running, write
from tests.examples_support import (
    Broker,
    Client,
    Credentials,
    client_of,
    connected,
    make_credentials,
    wait_for,
)

TOPICS = Topics("agents")
SHOWN = {TOPICS.event("101"), TOPICS.events("101"), TOPICS.state("101"), TOPICS.availability("101")}
SHOWN |= {TOPICS.bridge("availability")}
STATUS = {
    TOPICS.session("101"),
    TOPICS.bridge("info"),
    TOPICS.bridge("health"),
    TOPICS.bridge("log"),
    TOPICS.roster(1),
}
CALLDATA = TOPICS.command("101", "calldata")
SESSION = TOPICS.command("101", "session")
RELOAD = TOPICS.request("reload")
CALLDATA_RESULT = TOPICS.result("101", "calldata")
SESSION_RESULT = TOPICS.result("101", "session")
RESPONSE = TOPICS.response("reload")
COMMANDS = {CALLDATA, SESSION, RELOAD}
ANSWERS = {CALLDATA_RESULT, SESSION_RESULT, RESPONSE}
MARK = TOPICS.bridge("mark")
MEMBER = MemberTopics("agents", "adapter-1")
MEMBERS = {MEMBER.bridge("availability"), MEMBER.bridge("info"), MEMBER.bridge("health")}
MEMBER_MARK = MEMBER.bridge("mark")
DISCOVERY = discovery("homeassistant", "x")
AGENT = discovery("homeassistant", "ccgateway2mqtt_main_102")
BIRTH = "homeassistant/status"
HOME = {DISCOVERY, BIRTH, "homeassistant/sensor/x/config"}
EVERYTHING = SHOWN | STATUS | COMMANDS | ANSWERS | HOME | MEMBERS | {MARK, MEMBER_MARK}
FOREIGN = {"agents", "other/topic"}

MAY_WRITE = {
    "adapter": EVERYTHING - COMMANDS - HOME | {DISCOVERY},
    "dashboard": set[str](),
    "sender": {CALLDATA},
    "homeassistant": COMMANDS | HOME,
    "operator": {SESSION, RELOAD},
    "bridge": SHOWN | STATUS | {CALLDATA_RESULT},
}
MAY_READ = {
    "adapter": EVERYTHING - HOME | {DISCOVERY, BIRTH},
    "dashboard": SHOWN | STATUS | MEMBERS,
    "sender": SHOWN | {TOPICS.bridge("health"), CALLDATA_RESULT},
    "homeassistant": SHOWN | HOME | {TOPICS.bridge("info"), TOPICS.bridge("health")},
    "operator": SHOWN | STATUS | MEMBERS | {SESSION_RESULT, RESPONSE},
}


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """Passwords and a certificate for localhost, made by the commands of the README."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROKER", "localhost")
        return make_credentials(tmp_path_factory.mktemp("credentials"))


@pytest.fixture
def make_broker(tmp_path: Path, credentials: Credentials) -> Iterator[Callable[[str], Broker]]:
    """Make brokers that are configured and not started; all of them are stopped at the end."""
    with ExitStack() as stack:

        def make(name: str) -> Broker:
            broker = Broker(tmp_path / name, credentials)
            broker.configure()
            stack.callback(broker.stop)
            return broker

        yield make


@pytest.fixture
def broker(make_broker: Callable[[str], Broker]) -> Broker:
    """One broker as the example ships it, running."""
    broker = make_broker("broker")
    broker.start()
    return broker


@pytest.mark.parametrize("user", MAY_WRITE)
def test_each_user_writes_only_its_own_topics(broker: Broker, user: str) -> None:
    """A publish is acknowledged or refused, topic by topic, as the table in the README says."""
    with connected(broker, user) as client:
        written = {topic for topic in EVERYTHING | FOREIGN if client.may_publish(topic)}

    assert written == MAY_WRITE[user]


def test_each_user_reads_only_its_own_topics(broker: Broker) -> None:
    """Of one message on each topic, everybody who subscribes to all is sent what is theirs to see."""
    with ExitStack() as stack:
        clients = {user: stack.enter_context(connected(broker, user)) for user in MAY_READ}
        for client in clients.values():
            client.subscribe("#", "$SYS/broker/version")
        for user, topics in MAY_WRITE.items():
            for topic in sorted(topics) if user in clients else ():
                clients[user].publish(topic)
        # Everybody may read this one. It comes last, so nothing is under way any more once it is there.
        last = TOPICS.availability("last")
        clients["adapter"].publish(last)
        for user, client in clients.items():
            wait_for(lambda client=client: last in client.topics(), f"{user} to see the last message")  # type: ignore[misc] # mypy cannot type a lambda's default

        read = {user: client.topics() - {last} for user, client in clients.items()}

    assert read == MAY_READ


async def test_the_adapter_may_do_all_that_it_does(
    broker: Broker, simulator: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is refused to the adapter's own log-in: events, results, its mark, also to read it (D4a), discovery.

    `purge` then clears all of it with the same log-in.
    """
    mqtt = {"url": f"mqtt://localhost:{broker.port}", "username": "adapter"}
    mqtt["password"] = broker.credentials.passwords["adapter"]
    config = {
        "gateway": {"url": simulator.url, "ca_file": str(simulator.ca_file), "hold": HOLD_S, "timeout": HOLD_S + 3},
        "mqtt": mqtt,
        "agents": [{"work_no": agent.work_no, "guid": agent.guid} for agent in simulator.agents],
        "storage": {"path": "outbox.db"},
        "home_assistant": {"discovery": True},
    }
    path = write(tmp_path, config)
    with connected(broker, "sender") as sender, connected(broker, "operator") as operator:
        await asyncio.to_thread(sender.subscribe, "agents/+/calldata/result", "agents/+/event")
        await asyncio.to_thread(operator.subscribe, "agents/+/session/result", "agents/bridge/#")
        for number in range(2):
            async with running(path, timing=Timing(mark_s=0.1)):
                simulator.emit_sample("102", "AgentState_Ready")
                await asyncio.to_thread(sender.publish, TOPICS.command("102", "calldata"), f"{number}")
                await asyncio.to_thread(operator.publish, SESSION, '{"action":"sign_out"}')
                await asyncio.to_thread(operator.publish, RELOAD, "")
                await seen(lambda count=number + 1: len(sender.payloads(TOPICS.result("102", "calldata"))) == count)  # type: ignore[misc] # mypy cannot type a lambda's default
                await seen(lambda count=number + 1: len(sender.payloads(TOPICS.event("102"))) >= count)  # type: ignore[misc] # as above
                await seen(lambda count=number + 1: len(operator.payloads(RESPONSE)) == count)  # type: ignore[misc] # as above
                await seen(lambda count=number + 1: len(operator.payloads(SESSION_RESULT)) == count)  # type: ignore[misc] # as above
                await seen(lambda: b'"n":' in retained(broker, MARK))
                await seen(lambda: b"Agent 102" in retained(broker, AGENT))

    assert [record.getMessage() for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []
    used = load(path)
    shown: list[str] = []
    assert "retained topics cleared" in await purge(used, used.mqtt, yes=True, show=shown.append)
    assert {MARK, AGENT, TOPICS.event("102"), TOPICS.roster(1), TOPICS.bridge("availability")} <= set(shown)
    assert await asyncio.to_thread(retained, broker, MARK) == b""


async def seen(condition: Callable[[], bool]) -> None:
    """Wait for what a broker's clients see, while the adapter goes on in this process."""
    await asyncio.to_thread(wait_for, condition, "what the adapter does")


def retained(broker: Broker, topic: str) -> bytes:
    """Read what a broker has retained on a topic; empty for nothing yet."""
    with connected(broker, "adapter") as client:
        client.subscribe(topic)
        # Everything retained has come when what is published after the SUBACK is back.
        client.subscribe(TOPICS.availability("here"))
        client.publish(TOPICS.availability("here"))
        wait_for(lambda: TOPICS.availability("here") in client.topics(), "the last message")
        return b"".join(client.payloads(topic))


def test_nobody_comes_in_without_a_name(broker: Broker) -> None:
    """An anonymous client is refused at the CONNACK, on each listener."""
    with client_of(broker, None) as client:
        assert client.connect(broker.tls_port) == "Not authorized"
    with client_of(broker, None, "websockets") as client:
        assert client.connect(broker.wss_port) == "Not authorized"


def test_a_wrong_password_is_refused(broker: Broker) -> None:
    """A user's name alone opens nothing."""
    with client_of(broker, "dashboard") as client:
        client.client.username_pw_set("dashboard", "wrong")
        assert client.connect(broker.tls_port) == "Not authorized"


def test_the_wall_reads_over_websockets(broker: Broker) -> None:
    """A page's log-in works on the websockets listener, over TLS."""
    with client_of(broker, "dashboard", "websockets") as wall, connected(broker, "adapter") as adapter:
        assert wall.connect(broker.wss_port) == "Success"
        wall.subscribe("agents/+/state")
        adapter.publish(TOPICS.state("101"), "talking")

        wait_for(lambda: wall.payloads(TOPICS.state("101")) == [b"talking"], "the state on the wall")


def test_a_large_fleet_fits_the_queue_of_one_subscriber(broker: Broker) -> None:
    """A late subscriber is sent the retained states of 2,000 agents whole, and the adapter's window is 200."""
    agents = [str(number) for number in range(1, 2001)]
    with connected(broker, "adapter") as adapter, connected(broker, "dashboard") as dashboard:
        sent = [adapter.client.publish(TOPICS.state(agent), "x", qos=1, retain=True) for agent in agents]
        wait_for(lambda: all(message.is_published() for message in sent), "all states at the broker")

        dashboard.subscribe("agents/+/state")
        adapter.publish(TOPICS.state("last"))

        wait_for(lambda: TOPICS.state("last") in dashboard.topics(), "the last state")
        assert dashboard.topics() == {TOPICS.state(agent) for agent in [*agents, "last"]}
        assert adapter.receive_maximum == 200


def test_retained_messages_survive_a_restart(broker: Broker) -> None:
    """What the broker had retained is there again after it was stopped and started."""
    with connected(broker, "adapter") as adapter:
        adapter.publish(TOPICS.state("101"), "idle", retain=True)
    broker.stop()
    broker.start()

    with connected(broker, "dashboard") as dashboard:
        dashboard.subscribe("agents/+/state")
        wait_for(lambda: dashboard.payloads(TOPICS.state("101")) == [b"idle"], "the retained state")


def pair(make_broker: Callable[[str], Broker]) -> tuple[Broker, Broker]:
    """Make two brokers, the first with the shipped bridge to the second; both run."""
    first, second = make_broker("first"), make_broker("second")
    first.bridge_to(second)
    second.start()
    first.start()
    return first, second


def wait_for_bridge(near: Client, far: Client, probe: str) -> None:
    """Send call data from the far side until some arrives: then the bridge is up both ways."""

    def arrives() -> bool:
        far.publish(TOPICS.command(probe, "calldata"))
        return TOPICS.command(probe, "calldata") in near.topics()

    wait_for(arrives, "the bridge")


def test_the_bridge_carries_each_message_once(make_broker: Callable[[str], Broker]) -> None:
    """What the adapter publishes comes out on the second broker, call data comes in, each exactly once."""
    first, second = pair(make_broker)
    out = sorted((SHOWN | STATUS | {CALLDATA_RESULT}) - {TOPICS.bridge("health"), TOPICS.bridge("log")})
    numbers = [str(number).encode() for number in range(50)]
    with (
        connected(first, "adapter") as adapter,
        connected(second, "adapter") as head_office,
        connected(second, "sender") as sender,
    ):
        adapter.subscribe("agents/#")
        head_office.subscribe("agents/#")
        wait_for_bridge(adapter, sender, "probe")

        for number in numbers:
            for topic in out:
                adapter.client.publish(topic, number, qos=1)
            sender.client.publish(CALLDATA, number, qos=1)
        # Twice there and back: a loop would have brought its copies by then.
        for turn in ("turn1", "turn2"):
            adapter.publish(TOPICS.event(turn))
            wait_for(lambda turn=turn: TOPICS.event(turn) in head_office.topics(), "an event")  # type: ignore[misc] # mypy cannot type a lambda's default
            sender.publish(TOPICS.command(turn, "calldata"))
            wait_for(lambda turn=turn: TOPICS.command(turn, "calldata") in adapter.topics(), "call data")  # type: ignore[misc] # mypy cannot type a lambda's default

        for client in (adapter, head_office):
            assert {topic: client.payloads(topic) for topic in [*out, CALLDATA]} == dict.fromkeys(
                [*out, CALLDATA], numbers
            )


def test_the_bridge_keeps_other_commands_at_home(make_broker: Callable[[str], Broker]) -> None:
    """A sign-out or a reload that is asked for on the second broker does not reach the adapter."""
    first, second = pair(make_broker)
    with (
        connected(first, "adapter") as adapter,
        connected(second, "operator") as operator,
        connected(second, "sender") as sender,
    ):
        adapter.subscribe("agents/#")
        wait_for_bridge(adapter, sender, "probe")

        operator.publish(SESSION)
        operator.publish(RELOAD)
        sender.publish(CALLDATA)

        wait_for(lambda: CALLDATA in adapter.topics(), "the call data")
        assert not adapter.topics() & {SESSION, RELOAD}


def test_the_bridge_catches_up_on_the_events_of_an_outage(make_broker: Callable[[str], Broker]) -> None:
    """Events that were published while the second broker was away come out there afterwards, in order."""
    first, second = pair(make_broker)
    numbers = [str(number).encode() for number in range(20)]
    with connected(first, "adapter") as adapter:
        adapter.subscribe("agents/#")
        with (
            connected(second, "sender") as sender,
            client_of(second, "dashboard", client_id="wall") as dashboard,
        ):
            wait_for_bridge(adapter, sender, "probe")
            # Its session is kept by the second broker: the first events may be there before it is back.
            assert dashboard.connect(second.tls_port, lasting=True) == "Success"
            dashboard.subscribe("agents/+/events", "agents/+/state")
        second.stop()
        for number in numbers:
            adapter.publish(TOPICS.events("101"), number.decode())
        adapter.publish(TOPICS.state("101"), "idle", retain=True)
        second.start()

        with client_of(second, "dashboard", client_id="wall") as dashboard:
            assert dashboard.connect(second.tls_port, lasting=True) == "Success"
            wait_for(lambda: dashboard.payloads(TOPICS.state("101")) != [], "the state")
            wait_for(lambda: len(dashboard.payloads(TOPICS.events("101"))) >= len(numbers), "the events")
            assert dashboard.payloads(TOPICS.events("101")) == numbers


def test_the_bridge_brings_no_call_data_of_an_outage(make_broker: Callable[[str], Broker]) -> None:
    """Call data sent while the first broker was away is gone: it would belong to another call by now."""
    first, second = pair(make_broker)
    with connected(second, "sender") as sender:
        with connected(first, "adapter") as adapter:
            adapter.subscribe("agents/#")
            wait_for_bridge(adapter, sender, "probe")
        first.stop()
        sender.publish(CALLDATA, "stale")
        first.start()

        with connected(first, "adapter") as adapter:
            adapter.subscribe("agents/#")
            wait_for_bridge(adapter, sender, "probe2")
            assert CALLDATA not in adapter.topics()
