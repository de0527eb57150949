"""`ccgateway2mqtt watch`: the table as a person sees it, made of what is on a real broker."""

import asyncio
import contextlib
import io
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from adapter import watch as watching
from adapter.config import Backoff, broker_at
from adapter.errors import BrokerAuthError
from adapter.mqtt import Received
from adapter.payloads import (
    CallPayload,
    HealthPayload,
    OutboxHealth,
    RosterAgent,
    RosterPage,
    SessionPayload,
    SessionPhase,
    StateName,
    StatePayload,
)
from adapter.watch import Board, lasted, watch
from tests.adapter_support import write
from tests.broker_support import DEADLINE_S, Broker, Peer, mosquitto
from tests.cli_support import invoke, told_soon


def at(seconds_ago: float = 0) -> str:
    """Write down a time as payloads do."""
    moment = datetime.now(UTC) - timedelta(seconds=seconds_ago)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def state(name: StateName, *, call: CallPayload | None = None, seconds_ago: float = 0) -> bytes:
    """Make the payload of agent 101's state."""
    return StatePayload(
        work_no="101", name=None, group=None, state=name, reason=None, since=at(seconds_ago), previous=None,
        call=call, event_id=None, seq=None,
    ).render()  # fmt: skip


def session(phase: SessionPhase) -> bytes:
    """Make the payload of a session."""
    return SessionPayload(phase=phase, since=at(), retcode=None, message=None).render()


def received(topic: str, payload: bytes) -> Received:
    """Make a message as the broker sends it."""
    return Received(topic=topic, payload=payload, retain=True, qos=0, mid=0, correlation=None, response_topic=None)


def roster(*agents: tuple[str, str | None, str | None]) -> bytes:
    """Make a page of the roster."""
    entries = [RosterAgent(work_no=work_no, name=name, group=group) for work_no, name, group in agents]
    return RosterPage(page=1, pages=1, agents=entries).render()


def health(depth: int) -> bytes:
    """Make the payload of a health with a backlog."""
    outbox = OutboxHealth(depth=depth, oldest_seconds=0, bytes=0, at_risk=0)
    return HealthPayload(
        at=at(), uptime=1, polls=0, poll_errors=0, lost_answers=0, unreadable=0, events=0, publishes=0, outbox=outbox,
        agents={}, cpu_seconds=0, rss_bytes=0,
    ).render()  # fmt: skip


def drawn(board: Board) -> str:
    """Draw a board on a wide terminal."""
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(board.render())
    return console.export_text()


def row(text: str, work_no: str) -> list[str] | None:
    """Take an agent's row out of a drawing, cell by cell; `None` where there is none."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if cells and cells[0] == work_no:
            return cells
    return None


class Screen:
    """What a running `watch` shows on a terminal of its own."""

    def __init__(self) -> None:
        self._file = io.StringIO()
        self.console = Console(file=self._file, width=160, height=40, force_terminal=True, color_system=None)

    async def shows(self, wanted: Callable[[str], object]) -> str:
        """Wait until what is drawn last is as wanted, and give it."""
        end = time.monotonic() + DEADLINE_S
        while not wanted(self._last()):
            assert time.monotonic() < end, self._last()
            await asyncio.sleep(0.01)
        return self._last()

    def _last(self) -> str:
        text = self._file.getvalue()
        return text[max(0, text.rfind("adapter ")) :]


@contextlib.asynccontextmanager
async def watched(broker: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Screen]:
    """Run `watch` while the context lasts, drawing often, and connecting again soon."""
    monkeypatch.setattr(watching, "_REFRESH_S", 0.02)
    monkeypatch.setattr(watching, "_AGAIN", Backoff(initial_s=0.05, maximum_s=0.1))
    screen = Screen()
    task = asyncio.create_task(watch(broker_at(broker.url(), prefix), console=screen.console))
    try:
        yield screen
    finally:
        assert not task.done() or task.exception() is None
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
def prefix() -> str:
    """Name a prefix of the test's own."""
    return f"watch-{uuid.uuid4().hex[:8]}"


async def test_agents_appear_change_and_vanish(
    shared_broker: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent's row follows its topics, and goes when they are cleared."""
    with Peer(shared_broker, ["none"]) as adapter:
        await adapter.publish(f"{prefix}/bridge/availability", b"online", retain=True)
        await adapter.publish(f"{prefix}/bridge/agents/1", roster(("101", "Amina", "Orders"), ("9", None, None)))
        async with watched(shared_broker, prefix, monkeypatch) as screen:
            await screen.shows(lambda text: "adapter online" in text)
            await adapter.publish(f"{prefix}/bridge/agents/1", roster(("101", "Amina", "Orders"), ("9", None, None)))
            shown = await screen.shows(lambda text: row(text, "101"))
            assert row(shown, "101") == ["101", "Amina", "Orders", "unknown", "", "", "", ""]
            assert shown.index("│ 9 ") < shown.index("│ 101 ")

            call = CallPayload(call_id="1", phase="talking", caller="4711", called="8101", direction="in")
            await adapter.publish(f"{prefix}/101/state", state("in_call", call=call, seconds_ago=187), retain=True)
            await adapter.publish(f"{prefix}/101/session", session("polling"), retain=True)
            await adapter.publish(f"{prefix}/101/events", b'{"eventType": "AgentEvent_Talking"}')
            shown = await screen.shows(lambda text: "AgentEvent_Talking" in text)
            assert "2 agents   in_call 1  unknown 1" in shown
            cells = row(shown, "101")
            assert cells is not None
            assert cells[3] == "in_call"
            assert cells[4].startswith("3:0")
            assert cells[5:] == ["talking 4711 → 8101", "polling", "AgentEvent_Talking"]

            await adapter.publish(f"{prefix}/101/session", session("retrying"), retain=True)
            await adapter.publish(f"{prefix}/101/availability", b"offline", retain=True)
            await adapter.publish(f"{prefix}/bridge/health", health(7))
            await screen.shows(lambda text: "retrying, offline" in text and "waiting for the broker: 7" in text)

            for kind in ("state", "session", "availability"):
                await adapter.publish(f"{prefix}/101/{kind}", b"", retain=True)
            await screen.shows(lambda text: row(text, "9") and not row(text, "101"))


async def test_a_broker_that_is_away_is_said_and_found_again(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old rows stay while the broker is away, marked as old; what was cleared meanwhile is gone after it."""
    with Peer(broker, ["none"]) as adapter:
        await adapter.publish("agents/101/state", state("idle"), retain=True)
        async with watched(broker, "agents", monkeypatch) as screen:
            await screen.shows(lambda text: row(text, "101"))
            broker.stop()
            shown = await screen.shows(lambda text: "cut off from the broker" in text)
            assert row(shown, "101") is not None
            assert "what you see is old" in shown

            broker.restart(keep_data=False)
            await adapter.wait_subscribed()
            await adapter.publish("agents/102/state", state("busy"), retain=True)
            shown = await screen.shows(lambda text: row(text, "102"))
            assert row(shown, "101") is None
            assert "cut off" not in shown


async def test_a_refused_log_in_ends_it(tmp_path: Path) -> None:
    """A broker that refuses the log-in is no broker to wait for."""
    with (
        mosquitto(tmp_path / "mosquitto", users={"adapter": "a"}) as broker,
        pytest.raises(BrokerAuthError),
    ):
        await watch(broker_at(broker.url(), "agents"), console=Screen().console)


JUNK = [
    b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff", b'{"state":"\xff"}', b'{"a":' + b"[" * 50_000,
    b'{"state": 1}', b'{"state": "idle", "since": "yesterday"}', b'{"state": "idle", "call": "x"}',
    b'{"agents": null}', b'{"agents": [1]}', b'{"agents": [{}]}', b'{"outbox": []}', b'{"outbox": {"depth": "x"}}',
    b'{"phase": []}', b'{"eventType": 1}', "\u0000".encode(),
]  # fmt: skip


@pytest.mark.parametrize("payload", JUNK)
def test_junk_breaks_nothing(payload: bytes) -> None:
    """Whatever comes on whichever topic, the table is drawn, and the agents in it are those that there are."""
    board = Board("agents")

    def receive(topic: str, content: bytes) -> None:
        board.receive(received(topic, content))

    receive("agents/101/state", state("busy"))
    kinds = ("state", "session", "event", "events", "nonsense")
    for topic in (*(f"202/{kind}" for kind in kinds), "bridge/health", "bridge/agents/1", "bridge/x", "a/b/c/d", ""):
        receive(f"agents/{topic}", payload)

    assert row(drawn(board), "101") is not None
    assert row(drawn(board), "202") is None


def test_what_another_version_publishes_is_shown() -> None:
    """Members that it does not know, and states, are no reason to leave an agent out."""
    board = Board("agents")
    content = b'{"state": "lunch", "since": "2020-01-01T00:00:00", "mood": {"a": []}, "name": "Mei", "call": null}'
    board.receive(received("agents/101/state", content))

    cells = row(drawn(board), "101")
    assert cells is not None
    assert (cells[1], cells[3]) == ("Mei", "lunch")


def test_a_name_is_no_markup_and_no_control_sequence() -> None:
    """Neither rich's markup nor an escape sequence in a payload reaches the terminal as such."""
    board = Board("agents")
    for work_no, name in (("1", "[red]R"), ("2", "[/]"), ("3", "\x1b[2J\x9b2J"), ("4", "a\nb\u202e")):
        board.receive(received("agents/bridge/agents/1", roster((work_no, name, None))))
    text = drawn(board)

    assert "[red]R" in text
    assert "[/]" in text
    assert "·[2J·2J" in text
    assert "a·b·" in text
    assert not {"\x1b", "\x9b", "\u202e"} & set(text)


@pytest.mark.parametrize(
    ("seconds", "said"), [(-5, "0 s"), (0, "0 s"), (59, "59 s"), (60, "1:00"), (187, "3:07"), (7500, "2 h 05")]
)
def test_how_long_ago(seconds: int, said: str) -> None:
    """Times are said as a person would."""
    assert lasted(datetime.now(UTC) - timedelta(seconds=seconds)) == said


def test_the_command_ends_with_ctrl_c(shared_broker: Broker, prefix: str) -> None:
    """Ctrl-C is how it ends: exit 0, and the table stays on the terminal."""
    before = shared_broker.log.count("-watch-")
    teller = told_soon(signal.SIGINT, lambda: shared_broker.log.count("-watch-") > before)
    done = invoke("watch", "--broker", shared_broker.url(), "--prefix", prefix)
    teller.join()

    assert (done.exit_code, done.stderr) == (0, "")
    assert "last event" in done.stdout


def test_the_command_takes_the_broker_of_a_configuration(tmp_path: Path) -> None:
    """With `-c` the broker's section is used, with another user where one is given; refused, it ends with 1."""
    with mosquitto(tmp_path / "mosquitto", users={"adapter": "a"}) as broker:
        values = {
            "gateway": {"url": "https://gateway.example/agentgateway"},
            "mqtt": {"url": broker.url()},
            "agents": [{"work_no": "101", "guid": "g"}],
        }
        done = invoke("watch", "-c", write(tmp_path, values), "--username", "wall")

    assert done.exit_code == 1
    assert "uthor" in done.stderr
