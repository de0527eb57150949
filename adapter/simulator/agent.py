"""One agent as the gateway sees it: session, GUIDs, queue of events, state.

No task and no timer belongs to an agent: whatever ends with time (a GUID, a session without polls) is found to
have ended when somebody looks, so that thousands of agents cost nothing while they wait.

Source: the vendor's pages on sign-in, AUTHMODE, and agent states; see docs/gateway.md.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from adapter.simulator.faults import NONE, Fault
from adapter.simulator.records import Call, Pauses, Poll

Event = Mapping[str, object] | list[object] | bytes
"""What `Simulator.emit` takes: the member ``event``, or its JSON text, which then goes out as it is."""

RECORD_LIMIT = 10_000
"""How many polls and requests of one agent are kept; the oldest go first."""

QUEUE_LIMIT = 100_000
"""How many events wait for one agent; a simulator that nobody polls must not fill the memory."""

GUIDS_KEPT = 16
"""How many GUIDs of one agent are remembered, to tell an old one from one that was made up."""

SHUTDOWN = "AgentOther_ShutdownService"

NOT_SIGNED_IN = "100-006"
NO_PERMISSION = "000-003"

CODES = {
    "AgentState_Ready": 4,
    "AgentState_Busy": 7,
    "AgentState_Work": 5,
    "AgentState_SetNotReady_Success": 3,
    "AgentState_CancelNotReady_Success": 4,
    "AgentState_SetRest_Success": 8,
    "AgentState_CancelRest_Success": 4,
    "AgentState_SetWork_Success": 5,
    "AgentState_CancelWork_Success": 4,
    "AgentState_Force_Ready": 4,
    "AgentState_Force_SetNotReady": 3,
    "AgentOther_InService": 1,
    SHUTDOWN: 2,
}
"""What `agentstatus` says after an event: 1 signed in, 2 signed out, 3 busy, 4 idle, 5 work, 7 talking, 8 rest."""

IN_CALL = 7
SIGNED_OUT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SimAgent:
    """An agent that the gateway knows.

    Attributes:
        work_no: The agent's number, ``"101"``.
        name: For the demo's pages; the gateway itself tells no names.
        group: Likewise.
        password: For its sign-in; `None`: ``pw-<work_no>``.
        phone: Its telephone; `None`: ``8<work_no>``.
        guid: The GUID it begins with; `None`: a new one.
        signed_in: Whether it begins signed in; `None`: as the simulator's `signed_in` says.
    """

    work_no: str
    name: str | None = None
    group: str | None = None
    password: str | None = None
    phone: str | None = None
    guid: str | None = None
    signed_in: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the gateway is set up; all times in seconds.

    Attributes:
        hold_s: AGENT_POLL_WAIT_TIMES times AGENT_POLL_WAIT_INTERVAL: how long a poll waits for an event.
        poll_wait: AGENT_POLL_WAIT_FLAG; off, a poll is answered at once.
        auth_mode: AUTHMODE 1 is ``static``, 2 is ``dynamic``.
        guid_interval_s: GUIDINTERVAL: age at which a dynamic GUID is replaced.
        guid_timeout_s: GUIDTIMEOUT: age at which a dynamic GUID is no longer taken.
        poll_max_time_s: MAXTIME: without a poll for so long, the agent is signed out.
    """

    hold_s: float = 10.0
    poll_wait: bool = True
    auth_mode: Literal["dynamic", "static"] = "dynamic"
    guid_interval_s: float = 60.0
    guid_timeout_s: float = 120.0
    poll_max_time_s: float = 120.0


class Waiter:
    """A poll that is held: gets an event, a retcode, or nothing when the hold has passed."""

    __slots__ = ("event", "future", "retcode")

    def __init__(self, future: "asyncio.Future[None]") -> None:
        self.future = future
        self.event: Event | None = None
        self.retcode = "0"

    def wake(self) -> None:
        """End the hold."""
        if not self.future.done():
            self.future.set_result(None)


def is_shutdown(event: Event | None) -> bool:
    """Say whether an event means that the agent is signed out."""
    return isinstance(event, Mapping) and event.get("eventType") == SHUTDOWN


def new_guid() -> str:
    """Make a GUID of the form that the vendor's samples show."""
    return f"{uuid.uuid4()}.AgentGateway0"


class Agent:
    """An agent's session, GUIDs, queue and state, and what was recorded of its clients.

    Attributes:
        profile: Who it is.
        code: What `agentstatus` says, 2 while signed out.
        queue: Events that nobody has fetched.
        waiters: Polls that are held, the oldest first; one whose client has left stays and takes an event with it,
            as a servlet does that finds out only when it writes.
        polling: How many polls are under way over connections that are up.
        refused: GUIDs which were refused since the last sign-in.
        issued: The last GUIDs that were given out, valid or not.
        told_guid: The newest GUID that a poll's answer carried, and the number of the connection on which it is then
            certain that it arrived: that connection, or any (`None`) where the answer ended it in good order.
        signing_in: Whether a sign-in is under way.
        mark: Monotonic seconds of the last answer's end and what kind of pause must follow it.
    """

    __slots__ = (
        "calldata",
        "calls",
        "code",
        "every",
        "guid",
        "guid_at",
        "guids",
        "handed_out",
        "issued",
        "last_seen",
        "lost",
        "mark",
        "pauses",
        "poll_count",
        "polling",
        "polls",
        "profile",
        "queue",
        "refused",
        "scripts",
        "settings",
        "signing_in",
        "told_guid",
        "waiters",
    )

    def __init__(self, profile: SimAgent, settings: Settings, *, record: bool, lean: bool) -> None:
        self.profile = profile
        self.settings = settings
        self.code = SIGNED_OUT
        self.guid: str | None = None
        self.guid_at = 0.0
        self.guids: dict[str, float] = {}
        self.issued: deque[str] = deque(maxlen=GUIDS_KEPT)
        self.last_seen = 0.0
        self.queue: deque[Event] = deque(maxlen=QUEUE_LIMIT)
        self.waiters: deque[Waiter] = deque()
        self.polling = 0
        self.poll_count = 0
        self.signing_in = False
        self.refused: set[str] = set()
        self.told_guid: tuple[str, int | None] | None = None
        self.mark: tuple[float, Literal["good", "bad", "left"]] | None = None
        self.scripts: dict[str, deque[Fault]] = {}
        self.every: list[tuple[int, Fault]] = []
        limit = RECORD_LIMIT if record else 0
        self.polls: deque[Poll] = deque(maxlen=limit)
        self.calls: deque[Call] = deque(maxlen=limit)
        self.calldata: deque[tuple[float, str]] = deque(maxlen=limit)
        self.handed_out: deque[Event] = deque(maxlen=limit)
        self.lost: deque[Event] = deque(maxlen=limit)
        self.pauses = None if lean else Pauses()

    @property
    def work_no(self) -> str:
        """The agent's number."""
        return self.profile.work_no

    def signed_in(self, now: float) -> bool:
        """Say whether there is a session, and end one that went without a poll for too long."""
        if self.guid is None:
            return False
        if not self.waiters and now - self.last_seen > self.settings.poll_max_time_s:
            self.end_session()
            return False
        return True

    def start_session(self, now: float, *, guid: str | None = None, code: int = 4) -> str:
        """Sign the agent in; an older session, and the polls held for it, end."""
        self._release_waiters(NO_PERMISSION)
        self.guids.clear()
        self.refused.clear()
        self.told_guid = None
        self.mark = None
        self.last_seen = now
        self.code = code
        return self._issue(guid or new_guid(), now)

    def end_session(self) -> None:
        """Sign the agent out: its GUIDs, its queue, and the polls held for it end."""
        self.guid = None
        self.guids.clear()
        self.queue.clear()
        self.code = SIGNED_OUT
        self._release_waiters(NOT_SIGNED_IN)

    def expire_guids(self) -> None:
        """Let every GUID given out so far be refused; the agent stays signed in."""
        self.guids.clear()

    def _issue(self, guid: str, now: float) -> str:
        self.guid = guid
        self.guid_at = now
        self.guids[guid] = now
        self.issued.append(guid)
        return guid

    def rotate(self, now: float, *, used: str | None, force: bool) -> str | None:
        """Say which GUID an answer brings, if any: a new one when it is time, or when told.

        The old one lives on until its own timeout. A client that still uses it has missed the answer with the
        newer one and gets that again. (No document says whether the real gateway does so.)
        """
        if self.guid is None:
            return None
        due = self.settings.auth_mode == "dynamic" and now - self.guid_at >= self.settings.guid_interval_s
        if due or force:
            return self._issue(new_guid(), now)
        return self.guid if used != self.guid else None

    def refusal(self, guid: str | None, now: float) -> str | None:
        """Say with which retcode a request with this GUID is refused; `None` when it is good."""
        if not self.signed_in(now):
            return NOT_SIGNED_IN
        if self.settings.auth_mode == "dynamic":
            old = [key for key, issued in self.guids.items() if now - issued > self.settings.guid_timeout_s]
            for key in old:
                del self.guids[key]
        return None if guid in self.guids else NO_PERMISSION

    def put(self, event: Event) -> None:
        """Append to the queue, or hand to the poll that waits longest."""
        event_type = event.get("eventType") if isinstance(event, Mapping) else None
        if isinstance(event_type, str) and event_type in CODES:
            self.code = CODES[event_type]
        waiter = self.waiters[0] if self.waiters else None
        if waiter is None:
            self.queue.append(event)
            return
        self.waiters.popleft()
        waiter.event = event
        waiter.wake()

    def handed(self, event: Event) -> None:
        """Take note that an event was put on the wire: a session ends with its last event."""
        if is_shutdown(event):
            self.end_session()

    async def next_event(self, waiter: Waiter) -> None:
        """Wait in `waiter` for the next event, a refusal, or the end of the hold."""
        if self.queue:
            waiter.event = self.queue.popleft()
            return
        if not self.settings.poll_wait:
            return
        self.waiters.append(waiter)
        timer = asyncio.get_running_loop().call_later(self.settings.hold_s, waiter.wake)
        try:
            await waiter.future
        finally:
            timer.cancel()
            if waiter in self.waiters:
                self.waiters.remove(waiter)

    def _release_waiters(self, code: str) -> None:
        while self.waiters:
            waiter = self.waiters.popleft()
            waiter.retcode = code
            waiter.wake()

    def next_fault(self, action: str) -> Fault:
        """Take the next scripted fault of a kind of request; for a poll also those that come every so often."""
        waiting = self.scripts.get(action)
        fault = waiting.popleft() if waiting else NONE
        if action == "poll":
            for number, repeated in self.every:
                if self.poll_count % number == 0:
                    fault |= repeated
        return fault
