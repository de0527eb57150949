"""Every topic as others meet it: direction, retain, QoS, and which payloads come there.

The description that schemas/asyncapi.yaml is made from; tests hold the running program and docs/topics.md against it.
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from adapter.payloads import RequestName
from adapter.topics import Topics, discovery

EMPTY: Final = "empty"
"""The name of a payload without a byte."""

REQUESTS: Final = get_args(RequestName)
"""The requests that the adapter answers."""

_TOPICS = Topics("agents")
_MEMBER = "{instance}"
_AGENT = "{workNo}"
_HOME_ASSISTANT = "homeassistant"


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A topic, with what the adapter does there.

    Attributes:
        name: Its name in the document.
        address: The topic with its parameters in braces, below the default prefix.
        action: Whether the adapter sends there or receives, as AsyncAPI has it.
        messages: What may come, by the names of the payloads.
        retain: Whether what is sent is retained; what the adapter receives must not be (C4).
        reply: The name of the channel where what is received is answered.
    """

    name: str
    address: str
    what: str
    messages: tuple[str, ...]
    action: Literal["send", "receive"] = "send"
    retain: bool = False
    qos: int = 1
    reply: str | None = None

    @property
    def parameters(self) -> list[str]:
        """List the parameters of the address."""
        return [level[1:-1] for level in self.address.split("/") if level.startswith("{")]


CHANNELS: Final = (
    Channel(
        name="event",
        address=_TOPICS.event(_AGENT),
        what="The agent's newest event, for what shows something.",
        messages=("event", EMPTY),
        retain=True,
    ),
    Channel(
        name="events",
        address=_TOPICS.events(_AGENT),
        what="Every event of the agent, for what sets something off; mqtt.stream: false turns it off.",
        messages=("event",),
    ),
    Channel(
        name="state",
        address=_TOPICS.state(_AGENT),
        what="The agent's state and call.",
        messages=("state", EMPTY),
        retain=True,
    ),
    Channel(
        name="session",
        address=_TOPICS.session(_AGENT),
        what="How the agent's session at the gateway stands.",
        messages=("session", EMPTY),
        retain=True,
    ),
    Channel(
        name="availability",
        address=_TOPICS.availability(_AGENT),
        what="offline while the agent is signed out or stopped, or has been retrying for more than 30 s.",
        messages=("availability", EMPTY),
        retain=True,
    ),
    Channel(
        name="calldataSet",
        address=_TOPICS.command(_AGENT, "calldata"),
        what="Call data for the agent's next poll.",
        messages=("calldata-command", "calldata-text"),
        action="receive",
        reply="calldataResult",
    ),
    Channel(
        name="calldataResult",
        address=_TOPICS.result(_AGENT, "calldata"),
        what="What became of call data.",
        messages=("result",),
    ),
    Channel(
        name="sessionSet",
        address=_TOPICS.command(_AGENT, "session"),
        what="Signs the agent in or out.",
        messages=("session-command",),
        action="receive",
        reply="sessionResult",
    ),
    Channel(
        name="sessionResult",
        address=_TOPICS.result(_AGENT, "session"),
        what="What became of a sign-in or sign-out.",
        messages=("result",),
    ),
    Channel(
        name="bridgeAvailability",
        address=_TOPICS.bridge("availability"),
        what="Whether the adapter is connected; the last will says offline.",
        messages=("availability",),
        retain=True,
    ),
    Channel(
        name="bridgeInfo",
        address=_TOPICS.bridge("info"),
        what="What runs here, in under 8 KB.",
        messages=("info",),
        retain=True,
    ),
    Channel(
        name="bridgeAgents",
        address=_TOPICS.bridge("agents/{page}"),
        what="The roster, 200 agents a page.",
        messages=("roster", EMPTY),
        retain=True,
    ),
    Channel(
        name="bridgeHealth",
        address=_TOPICS.bridge("health"),
        what="How the adapter is, every 60 s.",
        messages=("health",),
        retain=True,
        qos=0,
    ),
    Channel(
        name="bridgeMark",
        address=_TOPICS.bridge("mark"),
        what="By it the adapter sees which retained messages the broker may lack; nobody else should write it.",
        messages=("mark",),
        retain=True,
    ),
    Channel(
        name="bridgeLog",
        address=_TOPICS.bridge("log"),
        what="Warnings and errors.",
        messages=("log",),
        qos=0,
    ),
    Channel(
        name="bridgeRequest",
        address=_TOPICS.request("{request}"),
        what="Asks the adapter for something.",
        messages=("request", "log-level-request", EMPTY),
        action="receive",
        reply="bridgeResponse",
    ),
    Channel(
        name="bridgeResponse",
        address=_TOPICS.response("{response}"),
        what="The answer to a request; agents gives one for each page.",
        messages=("response",),
    ),
    Channel(
        name="memberAvailability",
        address=_TOPICS.member(_MEMBER, "availability"),
        what="Whether this member of a fleet is connected; its last will says offline.",
        messages=("availability",),
        retain=True,
    ),
    Channel(
        name="memberInfo",
        address=_TOPICS.member(_MEMBER, "info"),
        what="What runs as this member.",
        messages=("info",),
        retain=True,
    ),
    Channel(
        name="memberHealth",
        address=_TOPICS.member(_MEMBER, "health"),
        what="How this member is, every 60 s.",
        messages=("health",),
        retain=True,
        qos=0,
    ),
    Channel(
        name="memberMark",
        address=_TOPICS.member(_MEMBER, "mark"),
        what="This member's mark, as bridgeMark.",
        messages=("mark",),
        retain=True,
    ),
    Channel(
        name="discovery",
        address=discovery(_HOME_ASSISTANT, "{objectId}"),
        what="Where home_assistant.discovery is on: announces an agent, or the adapter, to Home Assistant. "
        "The first level is home_assistant.prefix.",
        messages=("discovery", EMPTY),
        retain=True,
    ),
    Channel(
        name="birth",
        address=f"{_HOME_ASSISTANT}/status",
        what="Where home_assistant.discovery is on: has all of it sent again; home_assistant.birth_topic.",
        messages=("birth",),
        action="receive",
        qos=0,
    ),
)
"""Every topic, in the order of docs/topics.md."""
