"""`ccgateway2mqtt watch`: a live table of all agents in the terminal, made of what is on the broker."""

import asyncio
import contextlib
import uuid
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adapter.broker import Dialer, Received
from adapter.config import Backoff, MqttConfig
from adapter.errors import BrokerConnectionError
from adapter.topics import BRIDGE, Topics

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


@dataclass(slots=True)
class _Agent:
    """What was heard of one agent; members of payloads by their names."""

    roster: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    session: dict[str, Any] = field(default_factory=dict)
    last_event: str = ""
    available: bool | None = None


class Board:
    """Gathers messages, and draws them as a table."""

    def __init__(self, prefix: str) -> None:
        self.trouble = ""
        self._topics = Topics(prefix)
        self._prefix = prefix
        self._agents: dict[str, _Agent] = {}
        self._bridge = "unknown"
        self._health: dict[str, Any] = {}

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
        """Take in a message; what is not ours, or not JSON, is left out."""
        levels = received.topic.removeprefix(f"{self._prefix}/").split("/")
        match levels:
            case ["bridge", "availability"]:
                self._bridge = received.payload.decode(errors="replace")
            case ["bridge", "health"]:
                self._health = _members(received.payload)
            case ["bridge", "agents", _]:
                for entry in _members(received.payload).get("agents", []):
                    self._agents.setdefault(entry["workNo"], _Agent()).roster = entry
            case [work_no, kind] if work_no != BRIDGE:
                self._receive_agent(work_no, kind, received.payload)
            case _:
                pass

    def _receive_agent(self, work_no: str, kind: str, payload: bytes) -> None:
        if not payload:
            # A cleared topic: the agent left the configuration.
            self._agents.pop(work_no, None)
            return
        agent = self._agents.setdefault(work_no, _Agent())
        match kind:
            case "state":
                agent.state = _members(payload)
            case "session":
                agent.session = _members(payload)
            case "availability":
                agent.available = payload == b"online"
            case "event" | "events":
                agent.last_event = str(_members(payload).get("eventType", ""))
            case _:
                pass

    def render(self) -> Group:
        """Draw everything as it is now."""
        table = Table(expand=True, header_style="bold")
        for heading in ("agent", "name", "group", "state", "for", "call", "session", "last event"):
            table.add_column(heading, no_wrap=heading != "last event")
        for work_no, agent in sorted(self._agents.items()):
            table.add_row(*self._row(work_no, agent))
        states = Counter(str(agent.state.get("state", "unknown")) for agent in self._agents.values())
        counts = "  ".join(f"{state} {count}" for state, count in sorted(states.items()))
        waiting = self._health.get("outbox", {}).get("depth", 0)
        head = f"bridge {self._bridge}   {len(self._agents)} agents   {counts}   waiting for the broker: {waiting}"
        return Group(Text(head, style="bold"), Text(self.trouble, style="bold red"), table)

    @staticmethod
    def _row(work_no: str, agent: _Agent) -> list[Text | str]:
        state = str(agent.state.get("state", "unknown"))
        style = _STYLES.get(state, "")
        call = agent.state.get("call") or {}
        other = " → ".join(str(call[end]) for end in ("caller", "called") if call.get(end))
        session = str(agent.session.get("phase", ""))
        if agent.available is False and session == "retrying":
            session = "retrying, offline"
        return [
            work_no,
            str(agent.roster.get("name") or agent.state.get("name") or ""),
            str(agent.roster.get("group") or agent.state.get("group") or ""),
            Text(state, style=style),
            _lasted(agent.state.get("since")),
            f"{call['phase']} {other}" if call else "",
            session,
            agent.last_event,
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
    with Live(board.render(), console=console, refresh_per_second=1 / _REFRESH_S, transient=False) as live:
        refreshing = asyncio.create_task(_refresh(live, board))
        delays = _AGAIN.delays()
        try:
            while True:
                try:
                    async with dialer.connect(client_id=client_id, on_message=board.receive) as connection:
                        await connection.subscribe(board.subscriptions())
                        board.trouble = ""
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
        live.update(board.render())
        await asyncio.sleep(_REFRESH_S)


def _members(payload: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _lasted(since: object) -> str:
    """Say how long ago a time was: ``42 s``, ``3:07``, ``2 h 05``."""
    try:
        seconds = int((datetime.now(UTC) - datetime.fromisoformat(str(since))).total_seconds())
    except ValueError:
        return ""
    minutes, seconds = divmod(max(0, seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02}"
    return f"{minutes}:{seconds:02}" if minutes else f"{seconds} s"
