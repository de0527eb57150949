"""`ccgateway2mqtt watch`: a live table of all agents in the terminal, made of what is on the broker."""

import asyncio
import contextlib
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adapter.config import Backoff, MqttConfig
from adapter.errors import BrokerConnectionError
from adapter.mqtt import Dialer, Received
from adapter.topics import BRIDGE, Topics

_T = TypeVar("_T")

_REFRESH_S = 0.5
_AGAIN = Backoff(initial_s=0.75, maximum_s=10.0)

_STYLES: Final = {
    "idle": "green",
    "in_call": "bold red",
    "work": "yellow",
    "busy": "magenta",
    "rest": "cyan",
    "signed_out": "dim",
    "unknown": "dim italic",
}


# What is read of each payload. Types of our own, not those of `payloads`: what is not shown does not matter, so that
# it also shows what an adapter of another version publishes, and what is of another type is as if it had not come.


class _Call(msgspec.Struct, rename="camel"):
    phase: str
    caller: str | None = None
    called: str | None = None


class _State(msgspec.Struct, rename="camel"):
    state: str
    since: datetime | None = None
    call: _Call | None = None
    name: str | None = None
    group: str | None = None


class _Session(msgspec.Struct, rename="camel"):
    phase: str


class _Event(msgspec.Struct, rename="camel"):
    event_type: str


class _Entry(msgspec.Struct, rename="camel"):
    work_no: str
    name: str | None = None
    group: str | None = None


class _Page(msgspec.Struct, rename="camel"):
    agents: list[_Entry]


class _Outbox(msgspec.Struct, rename="camel"):
    depth: int


class _Health(msgspec.Struct, rename="camel"):
    outbox: _Outbox


@dataclass(slots=True)
class _Agent:
    """What was heard of one agent."""

    entry: _Entry | None = None
    state: _State = field(default_factory=lambda: _State(state="unknown"))
    session: _Session | None = None
    event: _Event | None = None
    available: bool | None = None


class Board:
    """Gathers messages, and draws them as a table."""

    def __init__(self, prefix: str) -> None:
        self.trouble = ""
        self._topics = Topics(prefix)
        self._prefix = prefix
        self.forget()

    def forget(self) -> None:
        """Begin anew, with a connection: what was cleared meanwhile is not told, and all the rest comes again."""
        self._agents: dict[str, _Agent] = {}
        self._bridge = "unknown"
        self._waiting = 0

    def subscriptions(self) -> list[tuple[str, int]]:
        """List what it wants to hear; read-only, and never the commands."""
        topics = self._topics
        kinds = (
            topics.state("+"),
            topics.session("+"),
            topics.availability("+"),
            topics.event("+"),
            topics.events("+"),
        )
        bridge = (topics.bridge("availability"), topics.bridge("health"), topics.bridge("agents/+"))
        return [(topic, 0) for topic in (*kinds, *bridge)]

    def receive(self, received: Received) -> None:
        """Take in a message; what is not ours, or not as we know it, is left out."""
        levels = received.topic.removeprefix(f"{self._prefix}/").split("/")
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            match levels:
                case ["bridge", "availability"]:
                    self._bridge = "online" if received.payload == b"online" else "offline"
                case ["bridge", "health"]:
                    self._waiting = _read(received, _Health).outbox.depth
                case ["bridge", "agents", _] if received.payload:
                    for entry in _read(received, _Page).agents:
                        self._agent(entry.work_no).entry = entry
                case [work_no, kind] if work_no != BRIDGE:
                    self._receive_agent(work_no, kind, received)
                case _:
                    pass

    def _receive_agent(self, work_no: str, kind: str, received: Received) -> None:
        if not received.payload:
            # A cleared topic: the agent left the configuration.
            self._agents.pop(work_no, None)
            return
        match kind:
            case "state":
                state = _read(received, _State)
                self._agent(work_no).state = state
            case "session":
                session = _read(received, _Session)
                self._agent(work_no).session = session
            case "availability":
                self._agent(work_no).available = received.payload == b"online"
            case "event" | "events":
                event = _read(received, _Event)
                self._agent(work_no).event = event
            case _:
                pass

    def _agent(self, work_no: str) -> _Agent:
        return self._agents.setdefault(work_no, _Agent())

    def render(self) -> Group:
        """Draw everything as it is now."""
        table = Table(expand=True, header_style="bold")
        for heading in ("agent", "name", "group", "state", "for", "call", "session", "last event"):
            table.add_column(heading, no_wrap=True, overflow="ellipsis")
        for work_no, agent in sorted(self._agents.items(), key=lambda item: (len(item[0]), item[0])):
            table.add_row(*_row(work_no, agent))
        states = Counter(agent.state.state for agent in self._agents.values())
        counts = "  ".join(f"{state} {count}" for state, count in sorted(states.items()))
        head = f"adapter {self._bridge}   {len(self._agents)} agents   {counts}"
        if self._waiting:
            head += f"   waiting for the broker: {self._waiting}"
        return Group(_text(head, "bold"), *([_text(self.trouble, "bold red")] if self.trouble else []), table)


def _row(work_no: str, agent: _Agent) -> list[Text]:
    state, call = agent.state, agent.state.call
    known = agent.entry or state
    session = "" if agent.session is None else agent.session.phase
    if agent.available is False and session == "retrying":
        session = "retrying, offline"
    return [
        _text(work_no),
        _text(known.name or ""),
        _text(known.group or ""),
        _text(state.state, _STYLES.get(state.state, "")),
        _text("" if state.since is None else lasted(state.since)),
        _text("" if call is None else " ".join([call.phase, " → ".join(filter(None, (call.caller, call.called)))])),
        _text(session),
        _text("" if agent.event is None else agent.event.event_type),
    ]


async def watch(config: MqttConfig, *, console: Console | None = None) -> None:
    """Show the table until cancelled; a broker that goes away is waited for.

    Raises:
        BrokerAuthError: The broker refuses the log-in.
        BrokerError: The broker refuses a subscription.
    """
    board = Board(config.topic_prefix)
    client_id = f"{config.client_id}-watch-{uuid.uuid4().hex[:8]}"
    dialer = Dialer(config)
    with Live(board.render(), console=console, auto_refresh=False) as live:
        refreshing = asyncio.create_task(_refresh(live, board), name="watch.refresh")
        delays = _AGAIN.delays()
        try:
            while True:
                try:
                    async with dialer.connect(client_id=client_id, on_message=board.receive) as connection:
                        board.forget()
                        board.trouble = ""
                        await connection.subscribe(board.subscriptions())
                        delays = _AGAIN.delays()
                        await connection.lost()
                except BrokerConnectionError as error:
                    board.trouble = f"cut off from the broker: {error}; what you see is old"
                    await asyncio.sleep(next(delays))
        finally:
            refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await refreshing


async def _refresh(live: Live, board: Board) -> None:
    while True:
        live.update(board.render(), refresh=True)
        await asyncio.sleep(_REFRESH_S)


def _read(received: Received, kind: type[_T]) -> _T:
    return msgspec.json.decode(received.payload, type=kind)


def _text(value: str, style: str = "") -> Text:
    """Make text of somebody's words: neither rich's markup nor a terminal's control sequences have a meaning in it."""
    return Text("".join(char if char.isprintable() else "·" for char in value), style=style)


def lasted(since: datetime) -> str:
    """Say how long ago a time was: ``42 s``, ``3:07``, ``2 h 05``."""
    moment = since if since.tzinfo is not None else since.replace(tzinfo=UTC)
    minutes, seconds = divmod(max(0, int((datetime.now(UTC) - moment).total_seconds())), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02}"
    return f"{minutes}:{seconds:02}" if minutes else f"{seconds} s"
