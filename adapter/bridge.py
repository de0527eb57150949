"""What the adapter says of itself, and the requests that it answers: the topics below `agents/bridge`.

Beside the way from answer to topic: nothing here is needed for an event to go out.
"""

import logging
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from adapter import __version__
from adapter.agent.poller import Poller
from adapter.agent.presence import Shared
from adapter.config import Config
from adapter.config.report import public
from adapter.errors import AdapterError, CommandError
from adapter.event import timestamp
from adapter.intake import Flood, Line, when_stored
from adapter.mqtt import Message, Received
from adapter.payloads import (
    AgentCounts,
    AgentSnapshot,
    CommandId,
    HealthPayload,
    InfoPayload,
    OutboxHealth,
    RequestPayload,
    ResponsePayload,
    RosterAgent,
    RosterPage,
)
from adapter.store.records import Change, Outgoing

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_PAGE = 200
"""Agents on a page of the roster."""

_SHOWN = 64
"""Characters of a request's name that a log line shows."""

_MAX_REQUEST_BYTES = 1024
"""Longest request: an id, and a word."""

_REST_S = 0.02
_CLOSE_S = 2.0
"""How long requests that were received may take to be answered at the end."""


@dataclass(frozen=True, slots=True)
class Request:
    """What answers a request.

    Attributes:
        answer: Takes the payload; gives the response's `data`, a list for one response each, or raises AdapterError.
        kind: The type of the payload; one that asks for more than an id must not be empty.
        expected: The payload, as a sender of another one is told.
    """

    answer: Callable[[Any], Awaitable[Any]]
    kind: type[msgspec.Struct] = RequestPayload
    expected: str = '{"id": "..."} or nothing'


class Bridge:
    """The adapter as others see it.

    Args:
        pollers: The agents of the configuration, as they are at each moment.
        flood: Counts requests.
        started_at: What `info` says.

    Attributes:
        requests: What answers a request, by its name.
    """

    def __init__(self, shared: Shared, pollers: Mapping[str, Poller], flood: Flood, started_at: datetime) -> None:
        self.requests: dict[str, Request] = {}
        self._flood = flood
        # One after the other: reloads that wait for each other would be as many as somebody cares to send.
        self._line = Line("requests", batch=1, rest_s=_REST_S)
        self._refusal = ""
        self._shared = shared
        self._topics = shared.topics
        self._pollers = pollers
        self._config = shared.config
        self._told = b""
        self._started_at = started_at
        self._started = time.monotonic()

    async def introduce(self, config: Config) -> None:
        """Publish the roster and `info` of a configuration.

        Pages of the roster that are left over are cleared, and so is what was retained under another prefix before:
        where the broker has no mark yet, it would be published again.
        """
        self._config = config
        change = Change()
        pages = paged(
            [RosterAgent(work_no=agent.work_no, name=agent.name, group=agent.group) for agent in config.agents]
        )
        for number, page in enumerate(pages, start=1):
            roster = RosterPage(page=number, pages=len(pages), agents=page)
            change.slots[self._topics.roster(number)] = roster.render()
        all_pages, all_topics = self._topics.bridge("agents/"), f"{self._topics.prefix}/"
        for topic in await self._shared.outbox.known_topics():
            if topic not in change.slots and (topic.startswith(all_pages) or not topic.startswith(all_topics)):
                change.slots[topic] = b""
        # Last, with nothing awaited before it is handed in: an older one must not follow a newer one.
        self._told = change.slots[self._topics.bridge("info")] = self.describe().render()
        await self._shared.outbox.insist(change)

    async def refresh_info(self) -> None:
        """Publish `info` as it is now, where it is not what was told last.

        Raises:
            StorageFullError: It cannot be stored.
        """
        info = self.describe().render()
        if info != self._told:
            await self._shared.outbox.commit(Change(slots={self._topics.bridge("info"): info}))
            self._told = info

    async def health(self) -> Message:
        """Make the message that tells how the adapter is. Raises as `measure`."""
        payload = await self.measure()
        return Message(topic=self._topics.bridge("health"), payload=payload.render(), retain=True, qos=0)

    async def measure(self) -> HealthPayload:
        """Measure how the adapter is.

        Raises:
            StorageError: The outbox cannot be read.
        """
        counters, outbox = self._shared.counters, self._shared.outbox
        oldest_s, size_bytes = await outbox.measure()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return HealthPayload(
            at=timestamp(datetime.now(UTC)),
            uptime=round(time.monotonic() - self._started, 3),
            polls=counters.polls,
            poll_errors=counters.poll_errors,
            lost_answers=counters.lost_answers,
            unreadable=counters.unreadable,
            events=counters.events,
            publishes=counters.publishes,
            outbox=OutboxHealth(
                depth=outbox.depth, oldest_seconds=round(oldest_s, 3), bytes=size_bytes, at_risk=outbox.at_risk
            ),
            agents=self.phases(),
            cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
            rss_bytes=resident_bytes(),
        )

    def phases(self) -> dict[str, int]:
        """Count the agents by the phase of their session; those before their first request are not in it."""
        return dict(Counter(poller.presence.phase for poller in self._pollers.values() if poller.presence.phase))

    def receive(self, name: str, received: Received) -> None:
        """Take a request, and answer it when those before it are."""
        if len(received.payload) > _MAX_REQUEST_BYTES:  # enough of it to say so
            received = replace(received, payload=received.payload[: _MAX_REQUEST_BYTES + 1])
        size_bytes = len(received.topic) + len(received.payload) + len(received.correlation or b"")
        if self._flood.admits("requests") and not self._line.put(size_bytes, partial(self._answer, name, received)):
            self._flood.drop("requests")

    async def close(self) -> None:
        """Answer what was received for as long as that may take, and nothing after that."""
        await self._line.close(_CLOSE_S)

    async def _answer(self, name: str, received: Received) -> None:
        identifier: str | None = None
        reason: str | None = None
        data: Any = None
        try:
            identifier = _request_id(received)
            if name not in self.requests:
                raise CommandError(f"unknown request; expected one of {', '.join(sorted(self.requests))}")
            request = self.requests[name]
            data = await request.answer(_parse(received.payload, request))
        except AdapterError as error:
            reason = str(error)
            self._log_refusal(f"request {name[:_SHOWN]}: {reason}")
        many = data if isinstance(data, list) else [data]
        responses = [
            ResponsePayload(id=identifier, status="ok" if reason is None else "error", reason=reason, data=part)
            for part in many
        ]
        topic = self._topics.response(name if name in self.requests else "unknown")
        outgoing = [
            Outgoing(topic=topic, payload=response.render(), correlation=received.correlation) for response in responses
        ]
        await when_stored(self._shared, "requests", partial(self._shared.outbox.commit, Change(outgoing=outgoing)))

    def _log_refusal(self, text: str) -> None:
        """Log a refusal, unless it is the last one once more: whoever asked is told, and may ask without end."""
        if text != self._refusal:
            self._refusal = text
            _log.warning("%s", text)

    async def agents(self) -> list[dict[str, Any]]:
        """Give the roster with states, a response for each page of it."""
        agents = [
            AgentSnapshot(
                work_no=poller.presence.agent.work_no,
                name=poller.presence.agent.name,
                group=poller.presence.agent.group,
                state=poller.presence.state.state,
                phase=poller.presence.phase,
            )
            for poller in self._pollers.values()
        ]
        return on_pages(agents)

    def describe(self) -> InfoPayload:
        """Say what runs here, with the configuration that may be shown."""
        polling = sum(poller.presence.phase == "polling" for poller in self._pollers.values())
        return InfoPayload(
            version=__version__,
            instance=self._config.instance,
            agents=AgentCounts(configured=len(self._pollers), polling=polling),
            config=public(self._config),
            started_at=timestamp(self._started_at),
        )


def resident_bytes() -> int:
    """Measure the memory of this process; 0 where the system does not tell.

    Source:
        proc(5), /proc/pid/statm: the second field is the resident set in pages.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - read once a minute, in the hot process
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def on_pages(agents: list[_T]) -> list[dict[str, Any]]:
    """Give what answers the request for agents, a response for each page of them."""
    pages = paged(agents)
    return [{"page": number, "pages": len(pages), "agents": page} for number, page in enumerate(pages, start=1)]


def paged(items: list[_T]) -> list[list[_T]]:
    """Cut a list into pages of the roster, of which there is one at least."""
    return [items[first : first + _PAGE] for first in range(0, len(items), _PAGE)] or [[]]


class _Identified(msgspec.Struct):
    id: CommandId | UnsetType = UNSET


def _request_id(received: Received) -> str | None:
    """Take the id of a request, of one that is no good otherwise too; `None` where it has none."""
    if received.retain:
        raise CommandError("retained")
    if len(received.payload) > _MAX_REQUEST_BYTES:
        raise CommandError(f"over {_MAX_REQUEST_BYTES} bytes")
    try:
        identifier = msgspec.json.decode(received.payload, type=_Identified).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if identifier is UNSET else identifier


def _parse(payload: bytes, request: Request) -> msgspec.Struct:
    """Read what is asked for."""
    try:
        return msgspec.json.decode(payload or b"{}", type=request.kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise CommandError(f"expected {request.expected}") from None
