"""The topic tree: every topic that this program uses is made here, and nowhere else.

The tree is public interface (docs/topics.md); the prefix is `mqtt.topic_prefix`.
"""

import re
from dataclasses import dataclass

WORK_NO = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a work number looks like: one topic level, safe in ids and file names. ``bridge`` is ours."""

BRIDGE = "bridge"


def is_work_no(text: str) -> bool:
    """Say whether `text` can be an agent's work number, and so a level of the topic tree."""
    return WORK_NO.fullmatch(text) is not None and text != BRIDGE


def is_event(topic: str) -> bool:
    """Say whether a topic is one of `Topics.event`."""
    return topic.endswith("/event")


def discovery(prefix: str, object_id: str) -> str:
    """Name the topic of a device's discovery message (retained); `object_id` may be ``+``.

    Args:
        prefix: `home_assistant.prefix`.
        object_id: The device, in letters, digits, ``_`` and ``-``.
    """
    return f"{prefix}/device/{object_id}/config"


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics below one prefix.

    Attributes:
        prefix: `mqtt.topic_prefix`, for example ``agents``.
    """

    prefix: str

    def event(self, work_no: str) -> str:
        """Name the agent's newest event (retained)."""
        return f"{self.prefix}/{work_no}/event"

    def events(self, work_no: str) -> str:
        """Name the agent's stream of events (never retained), for automations."""
        return f"{self.prefix}/{work_no}/events"

    def state(self, work_no: str) -> str:
        """Name the agent's state and call (retained)."""
        return f"{self.prefix}/{work_no}/state"

    def session(self, work_no: str) -> str:
        """Name the state of the agent's session at the gateway (retained)."""
        return f"{self.prefix}/{work_no}/session"

    def availability(self, work_no: str) -> str:
        """Name the agent's `online` or `offline` (retained)."""
        return f"{self.prefix}/{work_no}/availability"

    def retained(self, work_no: str) -> tuple[str, ...]:
        """List every retained topic of an agent, to clear them when it leaves the configuration."""
        return (self.event(work_no), self.state(work_no), self.session(work_no), self.availability(work_no))

    def command(self, work_no: str, kind: str) -> str:
        """Name the topic of commands of `kind` ``calldata`` or ``session``; `work_no` may be ``+``."""
        return f"{self.prefix}/{work_no}/{kind}/set"

    def result(self, work_no: str, kind: str) -> str:
        """Name the topic of the results of an agent's commands."""
        return f"{self.prefix}/{work_no}/{kind}/result"

    def bridge(self, name: str) -> str:
        """Name a topic of the adapter itself: ``availability info health mark log``."""
        return f"{self.prefix}/{BRIDGE}/{name}"

    def member(self, instance: str, name: str) -> str:
        """Name a topic of one member of a fleet: ``availability info health mark``."""
        return f"{self.prefix}/{BRIDGE}/member/{instance}/{name}"

    def roster(self, page: int) -> str:
        """Name a page of the roster (retained); pages count from 1."""
        return f"{self.prefix}/{BRIDGE}/agents/{page}"

    def request(self, name: str) -> str:
        """Name the topic of a request to the adapter; `name` may be ``+``."""
        return f"{self.prefix}/{BRIDGE}/request/{name}"

    def response(self, name: str) -> str:
        """Name the topic of the adapter's response to a request."""
        return f"{self.prefix}/{BRIDGE}/response/{name}"

    def parse_command(self, topic: str) -> tuple[str, str] | None:
        """Split a command's topic into work number and kind; `None` where it is not one."""
        levels = topic.removeprefix(f"{self.prefix}/").split("/")
        if len(levels) == 3 and levels[2] == "set" and levels[1] in ("calldata", "session"):  # noqa: PLR2004 - <workNo>/<kind>/set
            return levels[0], levels[1]
        return None

    def parse_request(self, topic: str) -> str | None:
        """Take the name of a request from its topic; `None` where it is not one."""
        start = self.request("")
        return topic.removeprefix(start) if topic.startswith(start) else None
