"""What is stored: the rows of the database as values, and the change that one answer or command makes.

A `Change` is the hinge of the program: to its left the gateway's answer, to its right the broker's topics. It is
stored whole or not at all, before the agent's next poll (P12, D1).
"""

from dataclasses import dataclass, field

from adapter.clock import steady_time


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRecord:
    """What outlives a restart of one agent.

    Attributes:
        work_no: The agent's work number.
        guid: The newest GUID, or `None` while signed out.
        guid_origin: A hash of the configured GUID from which `guid` came, to notice that the configured one changed.
        cookies: The load balancer's cookies of this agent (P9), as ``name=value`` pairs.
        seq: The number of the last event.
        state: The folded state (`adapter.state`), encoded; empty before the first.
        own: Whether the adapter itself signed this session in.
        stay_out: Whether a command signed the agent out, so that no sign-in follows by itself (C6).
    """

    work_no: str
    guid: str | None = field(default=None, repr=False)
    guid_origin: str | None = field(default=None, repr=False)
    cookies: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    seq: int = 0
    state: bytes = field(default=b"", repr=False)
    own: bool = False
    stay_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """A command that was taken off the broker, and its result once there is one.

    Attributes:
        work_no: The agent, as the topic named it.
        kind: ``calldata`` or ``session``.
        id: The sender's id, or one made for it.
        body: The call data, or the action as JSON; emptied once there is a result.
        received_at: Unix time in seconds.
        expires_at: When tries end, by `steady_time`; `None` where they do not.
        correlation: MQTT 5 correlation data of the sender (C8).
        response_topic: Where the result goes besides its own topic (C8).
        result: The rendered result; `None` while pending.
    """

    work_no: str
    kind: str
    id: str
    body: bytes = field(repr=False)
    received_at: float
    expires_at: float | None = None
    correlation: bytes | None = field(default=None, repr=False)
    response_topic: str | None = None
    result: bytes | None = None
    finished_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """The head of an answer that could not be read and may have held an event (P14).

    Attributes:
        head: The first 4 KiB of the body; empty where `privacy` is set.
        size_bytes: How long the body was, as far as it was read.
        at: Unix time in seconds.
    """

    work_no: str
    reason: str
    head: bytes = field(repr=False)
    size_bytes: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A finished message that waits in line: an event, a result, or the clearing of a retained event.

    Attributes:
        topic: Where it goes.
        payload: UTF-8 JSON; empty to clear a retained topic.
        retain: Whether the broker keeps it as the topic's value.
        stream_topic: Where the same payload goes too, never retained; `None` for nowhere.
        correlation: MQTT 5 correlation data of the command that it answers.
    """

    topic: str
    payload: bytes = field(repr=False)
    retain: bool = False
    stream_topic: str | None = None
    correlation: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Entry:
    """An `Outgoing` in its place in line.

    Attributes:
        row: Its place; grows by the order of storing, and begins again only where nothing waits.
        made_at: Time in seconds, by `steady_time`, at which it came, however long storing it took.
        message: What goes out.
    """

    row: int
    made_at: float
    message: Outgoing

    @property
    def is_event(self) -> bool:
        """Whether it is an event: of what waits in line, only events are retained, and only clearings are empty."""
        return self.message.retain and self.message.payload != b""


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """The newest value of a retained topic, as it was sent once: the same bytes sent again are another one.

    Attributes:
        topic: Its topic.
        payload: The value; empty to clear the topic.
    """

    topic: str
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removals:
    """What the broker has acknowledged, and the disk need not keep for it any more.

    Attributes:
        rows: Entries, by their places.
        kept: Those of them that are the newest on a retained topic: the broker may need them again (D4a).
        slots: Newest values as they were sent; the disk may hold a newer one by now.

    Both come with the counter of the moment of their acknowledgment: no mark beyond it had been sent then (D4a).
    """

    rows: tuple[int, ...]
    kept: tuple[tuple[int, Entry], ...]
    slots: tuple[tuple[int, Slot], ...]

    def __bool__(self) -> bool:
        return bool(self.rows or self.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivors:
    """What is in memory when the database turns out to be damaged, and goes into the new one (D6).

    Attributes:
        agents: The agents as they were stored last.
        entries: What waits in line and is known without reading, in its places.
        slots: The newest values that wait for the broker.
    """

    agents: tuple[AgentRecord, ...] = ()
    entries: tuple[Entry, ...] = ()
    slots: dict[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(slots=True, kw_only=True)
class Change:
    """All that one answer, command or decision changes.

    Attributes:
        agent: The agent as it is from now on.
        outgoing: What gets in line for the broker, in order.
        slots: The newest payload by retained topic; empty clears the topic.
        commands: Commands that now have their result.
        unreadable: An answer to keep for a person.
        forgotten: Agents that left the configuration.
        made_at: Time in seconds, by `steady_time`, at which it was begun.
    """

    agent: AgentRecord | None = None
    outgoing: list[Outgoing] = field(default_factory=list)
    slots: dict[str, bytes] = field(default_factory=dict, repr=False)
    commands: list[CommandRecord] = field(default_factory=list)
    unreadable: Unreadable | None = None
    forgotten: tuple[str, ...] = ()
    made_at: float = field(default_factory=steady_time)

    def entries(self, row: int) -> list[Entry]:
        """Give its outgoing messages places in line, from `row` on."""
        return [Entry(place, self.made_at, message) for place, message in enumerate(self.outgoing, row)]

    def __bool__(self) -> bool:
        return bool(
            self.agent or self.outgoing or self.slots or self.commands or self.unreadable is not None or self.forgotten
        )
