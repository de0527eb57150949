"""What the simulator remembers of its clients: requests, violations, and the pauses between polls."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["waiting", "event", "empty", "refused", "fault", "lost", "cut"]
"""How a poll ended.

``event`` and ``empty``: the regular answers, written to a connection that was up. ``refused``: a retcode by the
gateway's own rules. ``fault``: a scripted answer. ``lost``: an event was taken from the queue for it, and the
connection was gone or cut. ``cut``: the same with an answer that carried no event. ``waiting``: not ended.
"""


@dataclass(slots=True, kw_only=True)
class Poll:
    """One poll.

    Attributes:
        work_no: The agent.
        started_at: Monotonic seconds at which the request's first line arrived.
        target: The request target as it was sent, with its query.
        headers: Header lines, names in lower case.
        guid: What the header ``Guid`` said.
        calldata: The decoded call data; `None` without.
        ended_at: Monotonic seconds at which the last byte of the answer was written, or the connection gone.
        status: The answer's HTTP status; `None` where there was none.
        retcode: The answer's retcode; `None` where it had none.
        outcome: How it ended.
        event: What was handed out, as it was given to `Simulator.emit`.
        set_guid: The new GUID which the answer carried.
        pause_s: Seconds since the answer before; `None` for a first poll.
        connection: Number of the connection; polls over one connection have the same.
    """

    work_no: str
    started_at: float
    target: str
    headers: dict[str, str]
    guid: str | None
    calldata: str | None = None
    ended_at: float | None = None
    status: int | None = None
    retcode: str | None = None
    outcome: Outcome = "waiting"
    event: object = None
    set_guid: str | None = None
    pause_s: float | None = None
    connection: int = 0


@dataclass(slots=True, kw_only=True)
class Call:
    """One request which was not a poll: a sign-in, a sign-out, `agentstatus`, or something unknown.

    Attributes:
        work_no: The agent it was about; empty where the path names none.
        action: ``login forcelogin logout forcelogout agentstatus syncagentinfo``, or ``unknown``.
        at: Monotonic seconds at which its first line arrived.
        method: The HTTP method.
        target: The request target as it was sent.
        headers: Header lines, names in lower case.
        body: The request's body.
        ended_at: Monotonic seconds at which it was answered; `None` before, and where it never was.
        status: The answer's HTTP status.
        retcode: The answer's retcode.
    """

    work_no: str
    action: str
    at: float
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    ended_at: float | None = None
    status: int | None = None
    retcode: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """Something that the interface document forbids, done by a client.

    Attributes:
        agent: The work number, or the text that stood in its place.
        kind: One word: see the table in examples/scenarios/README.md.
        text: What happened, for a person.
        at: Monotonic seconds.
    """

    agent: str
    kind: str
    text: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseStatistics:
    """Pauses between an answer and the next poll, in seconds; the quantiles are good to a millisecond."""

    count: int
    min_s: float
    p50_s: float
    p99_s: float
    max_s: float


@dataclass(slots=True)
class Pauses:
    """Collects pauses in millisecond steps, so that its size does not grow with the number of polls."""

    count: int = 0
    min_s: float = float("inf")
    max_s: float = 0.0
    steps: Counter[int] = field(default_factory=Counter)

    def add(self, pause_s: float) -> None:
        """Take one pause in."""
        self.count += 1
        self.min_s = min(self.min_s, pause_s)
        self.max_s = max(self.max_s, pause_s)
        self.steps[int(pause_s * 1000)] += 1

    def _quantile(self, share: float) -> float:
        rank = share * (self.count - 1)
        seen = 0
        value = 0
        for value in sorted(self.steps):
            seen += self.steps[value]
            if seen > rank:
                break
        return value / 1000

    def statistics(self) -> PauseStatistics | None:
        """Sum up what was collected; `None` when that is nothing."""
        if not self.count:
            return None
        return PauseStatistics(
            count=self.count,
            min_s=self.min_s,
            p50_s=self._quantile(0.5),
            p99_s=self._quantile(0.99),
            max_s=self.max_s,
        )
