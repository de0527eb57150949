"""Discovery on its own at a real broker, without a gateway; and what Home Assistant makes of a template."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml

from adapter.config import Config, load
from adapter.home_assistant import Announcing
from adapter.mqtt import Connection, Dialer
from tests.broker_support import Broker, Peer

AFTER_BIRTH_S = (0.1, 0.3)

_TEMPLATES = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - as Home Assistant does
_TEMPLATES.filters["to_json"] = json.dumps


def rendered(template: str, payload: str) -> str:
    """Render a value template as Home Assistant does: `value_json` is there where the payload is JSON."""
    variables: dict[str, Any] = {"value": payload}
    with contextlib.suppress(ValueError):
        variables["value_json"] = json.loads(payload)
    return _TEMPLATES.from_string(template).render(variables).strip()


def configured(directory: Path, *agents: str | dict[str, Any], **sections: Any) -> Config:  # noqa: ANN401 - YAML's values
    """Make a configuration with some agents."""
    values: dict[str, Any] = {
        "gateway": {"url": "https://gateway.example/x"},
        "agents": [{"work_no": agent, "guid": "g"} if isinstance(agent, str) else agent for agent in agents],
        "home_assistant": {"discovery": True, "prefix": "ha", "birth_topic": "ha/status"},
    }
    for name, value in sections.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    path = directory / "home-assistant.yaml"
    path.write_text(yaml.safe_dump(values))
    return load(path)


def topic(name: str, instance: str = "main", prefix: str = "ha") -> str:
    """Name the discovery topic of a device."""
    return f"{prefix}/device/ccgateway2mqtt_{instance}_{name}/config"


@dataclass(slots=True)
class Announcer:
    """What announces, over real connections, and what it asked for.

    Attributes:
        remembered: The prefixes that it remembered, newest last.
        shown: What was to be shown again.
    """

    announcing: Announcing
    config: Config
    remembered: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Connection]:
        """Connect, and announce meanwhile."""
        async with Dialer(self.config.mqtt).connect(
            client_id=self.config.mqtt.client_id, on_message=self.announcing.receive
        ) as connection:
            self.announcing.connected(connection)
            yield connection


@contextlib.asynccontextmanager
async def announcer(config: Config, *, before: str = "") -> AsyncIterator[Announcer]:
    """Run what announces, not connected yet."""
    remembered: list[str] = []
    shown: list[str] = []

    async def remember(prefix: str) -> None:
        remembered.append(prefix)

    announcing = Announcing(config, before=before, remember=remember, show=shown.append, after_birth_s=AFTER_BIRTH_S)
    task = asyncio.create_task(announcing.run())
    try:
        yield Announcer(announcing, config, remembered, shown)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def retained(broker: Broker, filters: str = "ha/device/+/config") -> dict[str, Any]:
    """Read what a late subscriber finds, by topic; whatever is not JSON as text."""
    end = f"end/{id(object())}"
    with Peer(broker, [end]) as marker:
        await marker.publish(end, "x", retain=True)
    found: dict[str, Any] = {}
    with Peer(broker, [filters, end]) as late:
        # Mosquitto sends what it retains subscription by subscription, in the order of the SUBSCRIBE.
        await late.wait_for(lambda: late.on(end))
        for message in late.messages:
            if message.topic != end:
                text = message.payload.decode()
                try:
                    found[message.topic] = json.loads(text)
                except ValueError:
                    found[message.topic] = text
        await late.publish(end, b"", retain=True)
    return found
