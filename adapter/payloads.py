"""Every payload that others meet on a topic, as one type each.

The JSON Schemas in schemas/ are generated from these types (`python -m adapter.contracts`), so what is
published and what is promised cannot drift. Rules of this file: what a type lists is always there, null when not known;
a member that may be left out says so with `UnsetType`. Times are RFC 3339 UTC with milliseconds.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

WorkNo = Annotated[str, Meta(description="The agent's work number.")]
Time = Annotated[
    str,
    Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$", description="RFC 3339, UTC, milliseconds."),
]
CommandId = Annotated[str, Meta(min_length=1, max_length=64, description="The sender's; results carry it.")]
StateName = Literal["idle", "busy", "rest", "work", "in_call", "signed_out", "unknown"]
CallPhase = Literal["ringing", "talking", "held", "conference", "calling_out"]
Direction = Literal["in", "out", "internal"]
SessionPhase = Literal["signed_out", "signing_in", "polling", "retrying", "stopped"]
Status = Literal["applied", "rejected", "expired"]
RequestName = Literal["agents", "diagnostics", "log_level", "reload", "restart", "snapshot"]
LogLevel = Literal["debug", "info", "warning", "error"]


class _Payload(msgspec.Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A JSON object with exactly the members of its type."""

    def render(self) -> bytes:
        """Encode as UTF-8 JSON."""
        return msgspec.json.encode(self)


class EventPayload(msgspec.Struct, kw_only=True, rename="camel"):
    """One event of an agent, as the gateway sent it, with our members; any other member is the gateway's.

    Rendered by `adapter.event`, which passes the gateway's bytes through; this type is its description.
    """

    event_type: Annotated[str, Meta(description="The gateway's name of the event, unchanged.")]
    work_no: Annotated[str | None, Meta(description="The work number as the gateway named it.")]
    content: Annotated[Any, Meta(description="The gateway's content: null, text or an object.")]
    id: Annotated[str, Meta(description="UUID text, the same on every redelivery.")]
    seq: Annotated[int, Meta(ge=1, description="Counts the agent's events, goes on over restarts.")]
    received_at: Time
    replayed: (
        Annotated[bool, Meta(description="True where it goes out over 30 s late or after a restart.")] | UnsetType
    ) = UNSET
    gateway: Annotated[dict[str, Any], Meta(description="The gateway's members whose names are ours.")] | UnsetType = (
        UNSET
    )


class PreviousState(_Payload):
    """The state before the present one."""

    state: StateName
    seconds: Annotated[float, Meta(ge=0, description="How long it lasted.")]


class CallPayload(_Payload):
    """The call that an agent is in."""

    call_id: str | None
    phase: CallPhase
    caller: str | None
    called: str | None
    direction: Direction | None


class StatePayload(_Payload):
    """The state of an agent, and its call."""

    work_no: WorkNo
    name: str | None
    group: str | None
    state: StateName
    reason: Annotated[str | None, Meta(description="The gateway's reason for the state, as it sent it.")]
    since: Annotated[Time, Meta(description="When `state` began, or the adapter first met the agent.")]
    previous: PreviousState | None
    call: CallPayload | None
    event_id: Annotated[str | None, Meta(description="`id` of the last event taken in.")]
    seq: Annotated[int | None, Meta(description="`seq` of the last event taken in.")]


class SessionPayload(_Payload):
    """The agent's session at the gateway, as the adapter sees it."""

    phase: SessionPhase
    since: Time
    retcode: Annotated[str | None, Meta(description="The gateway's code that led to this phase.")]
    message: Annotated[str | None, Meta(description="What happened, for a person.")]
    attempt: Annotated[int, Meta(ge=1, description="Only while retrying.")] | UnsetType = UNSET


class AgentCounts(_Payload):
    """How many agents there are."""

    configured: int
    polling: int


class InfoPayload(_Payload):
    """What runs here."""

    version: str
    instance: str
    agents: AgentCounts
    config: Annotated[dict[str, Any], Meta(description="The configuration that may be shown.")]
    started_at: Time


class RosterAgent(_Payload):
    """An agent as every interface shows it."""

    work_no: WorkNo
    name: str | None
    group: str | None


class RosterPage(_Payload):
    """A page of the roster; pages count from 1."""

    page: Annotated[int, Meta(ge=1)]
    pages: Annotated[int, Meta(ge=1)]
    agents: Annotated[list[RosterAgent], Meta(max_length=200)]


class OutboxHealth(_Payload):
    """What waits for the broker."""

    depth: Annotated[int, Meta(description="Events and results that wait.")]
    oldest_seconds: Annotated[float, Meta(description="Age of the oldest; 0 where nothing waits.")]
    bytes: Annotated[int, Meta(description="Size of the database and its write-ahead log.")]
    at_risk: Annotated[int, Meta(description="Events in memory alone, since storage is full.")]


class HealthPayload(_Payload):
    """How the adapter is, every 60 s. Counters run from its start."""

    at: Time
    uptime: Annotated[float, Meta(description="Seconds since the start.")]
    polls: int
    poll_errors: int
    lost_answers: int
    unreadable: int
    events: int
    publishes: int
    outbox: OutboxHealth
    agents: Annotated[dict[str, int], Meta(description="Number of agents by phase of their session.")]
    cpu_seconds: float
    rss_bytes: int


class LogPayload(_Payload):
    """A warning or an error of the adapter's log."""

    level: Literal["warning", "error", "critical"]
    message: str
    work_no: WorkNo | None
    at: Time


class MarkPayload(_Payload):
    """A counter which follows retained writes."""

    n: Annotated[int, Meta(ge=0)]


class CallDataCommand(_Payload):
    """Call data for an agent's next poll. Text which is not such an object is itself the call data."""

    calldata: Annotated[str, Meta(min_length=1, description="At most 2,048 bytes of UTF-8.")]
    id: CommandId | UnsetType = UNSET
    ttl: Annotated[float, Meta(ge=1, le=3600, description="Seconds for which to try; 60.")] | UnsetType = UNSET


class SessionCommand(_Payload):
    """A sign-in or sign-out."""

    action: Literal["sign_in", "sign_out"]
    guid: Annotated[str, Meta(min_length=1, description="With sign_in: of a session begun elsewhere.")] | UnsetType = (
        UNSET
    )
    id: CommandId | UnsetType = UNSET


class ResultPayload(_Payload):
    """What became of a command; repeated, it is the same to the byte."""

    id: str
    work_no: WorkNo
    status: Status
    retcode: str | None
    reason: str | None
    received_at: Time
    finished_at: Time


class RequestPayload(_Payload):
    """A request to the adapter; an empty payload is one without an id."""

    id: CommandId | UnsetType = UNSET


class LogLevelRequest(_Payload):
    """The request `log_level`."""

    level: Annotated[LogLevel, Meta(description="What is logged from now on: this level and all above it.")]
    id: CommandId | UnsetType = UNSET


class ResponsePayload(_Payload):
    """The adapter's response to a request."""

    id: str | None
    status: Literal["ok", "error"]
    reason: str | None
    data: Any


class AgentSnapshot(_Payload):
    """An agent with its state, in the response to the request `agents`."""

    work_no: WorkNo
    name: str | None
    group: str | None
    state: StateName
    phase: SessionPhase | None


class SnapshotBegun(_Payload):
    """What the request `snapshot` has begun."""

    topics: Annotated[int, Meta(description="How many retained topics are sent again.")]
    seconds: Annotated[float, Meta(description="How long that takes at the least.")]


class LogLevelSet(_Payload):
    """What the request `log_level` has changed."""

    level: LogLevel
    before: LogLevel


class CommandCounts(_Payload):
    """What came from the broker since the start."""

    taken: Annotated[int, Meta(description="Commands and requests that were taken in.")]
    dropped: Annotated[int, Meta(description="Those beyond the limits of C5.")]


class BrokerDiagnosis(_Payload):
    """The connection to the broker."""

    protocol: Annotated[Literal["5", "3.1.1"] | None, Meta(description="Null while there is no connection.")]
    connections: Annotated[int, Meta(description="How many were made since the start.")]
    in_flight: Annotated[int, Meta(description="Messages that wait for their acknowledgment.")]
    receive_maximum: Annotated[int | None, Meta(description="How many may be in flight, as the broker says.")]
    maximum_packet_size: Annotated[int | None, Meta(description="Null where the broker names none.")]


class StorageDiagnosis(_Payload):
    """The database and the disk that it lies on."""

    writable: bool
    newest_waiting: Annotated[int, Meta(description="Retained values that wait for the broker.")]
    unreadable_kept: Annotated[int, Meta(description="Answers that are kept for a person to look at.")]
    aside_kept: Annotated[int, Meta(description="Messages that the broker refused for good.")]
    free_bytes: int
    filesystem: Annotated[str | None, Meta(description="ext4, tmpfs, ...; null where the system does not tell.")]


class SystemDiagnosis(_Payload):
    """What the adapter runs on, and the limits that this sets."""

    python: str
    platform: str
    libraries: Annotated[dict[str, str], Meta(description="Versions by name.")]
    cores: int | None
    open_files: int
    open_files_limit: Annotated[int | None, Meta(description="Null for none.")]
    ephemeral_ports: Annotated[int | None, Meta(description="Ports for connections that go out.")]


class DiagnosticsPayload(_Payload):
    """The answer to the request `diagnostics`: what a person who helps wants to know, without secrets or calls."""

    info: InfoPayload
    health: HealthPayload
    log_level: LogLevel
    states: Annotated[dict[str, int], Meta(description="Number of agents by state.")]
    commands: CommandCounts
    broker: BrokerDiagnosis
    storage: StorageDiagnosis
    system: SystemDiagnosis
