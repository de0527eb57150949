"""Home Assistant's websocket API, which the frontend uses too: all states, what changes, and what a user does."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

DEADLINE_S = 60.0

_Found = TypeVar("_Found")


@dataclass(slots=True)
class Entity:
    """An entity's state and attributes, as the websocket API gives them."""

    entity_id: str
    state: str
    attributes: dict[str, Any]


@dataclass(slots=True)
class Hub:
    """A connection to the websocket API, which follows all states and events.

    Source: https://developers.home-assistant.io/docs/api/websocket

    Attributes:
        states: By entity id, the newest.
        changes: Every change of a state since the connection, oldest first.
        events: Everything else that was subscribed to, oldest first.
    """

    _socket: aiohttp.ClientWebSocketResponse
    states: dict[str, Entity] = field(default_factory=dict)
    changes: list[Entity] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    _results: dict[int, "asyncio.Future[Any]"] = field(default_factory=dict)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _sent: int = 0

    async def ask(self, kind: str, **members: Any) -> Any:  # noqa: ANN401 - any JSON
        """Send a command and give its result.

        Raises:
            AssertionError: Home Assistant refused it.
        """
        self._sent += 1
        future = self._results[self._sent] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._sent, "type": kind, **members})
        async with asyncio.timeout(DEADLINE_S):
            answer = await future
        assert answer["success"], f"{kind} {members}: {answer['error']}"
        return answer["result"]

    async def call(self, action: str, entity_id: str | None = None, **data: Any) -> None:  # noqa: ANN401 - any JSON
        """Call an action, such as ``button.press``, as the frontend does."""
        domain, _, name = action.partition(".")
        target = {} if entity_id is None else {"target": {"entity_id": entity_id}}
        await self.ask("call_service", domain=domain, service=name, service_data=data, **target)

    async def wait_for(self, found: Callable[[], _Found | None], what: str) -> _Found:
        """Wait until `found()` is true, asked again at each change; give what it gave."""
        try:
            async with asyncio.timeout(DEADLINE_S), self._news:
                while not (value := found()):
                    await self._news.wait()
                return value
        except TimeoutError:
            states = {entity.entity_id: entity.state for entity in self.states.values()}
            raise AssertionError(f"waited {DEADLINE_S:.0f} s in vain for {what}; states: {states}") from None

    async def wait_state(self, entity_id: str, state: str) -> Entity:
        """Wait until an entity is in a state."""

        def found() -> Entity | None:
            entity = self.states.get(entity_id)
            return entity if entity is not None and entity.state == state else None

        return await self.wait_for(found, f"{entity_id} to be {state}")

    async def registry(self) -> list[dict[str, Any]]:
        """List what the entity registry knows of MQTT entities, those that are disabled too."""
        entries = await self.ask("config/entity_registry/list")
        return [entry for entry in entries if entry["platform"] == "mqtt"]

    async def devices(self) -> list[dict[str, Any]]:
        """List the device registry."""
        devices: list[dict[str, Any]] = await self.ask("config/device_registry/list")
        return devices

    async def follow(self) -> None:
        """Take messages until the connection ends."""
        async for message in self._socket:
            got = message.json()
            if got["type"] == "result":
                self._results.pop(got["id"]).set_result(got)
                continue
            event = got["event"]
            if event.get("event_type") == "state_changed":
                self._take(event["data"])
            else:
                self.events.append(event)
            async with self._news:
                self._news.notify_all()

    def _take(self, data: dict[str, Any]) -> None:
        new = data["new_state"]
        if new is None:
            self.states.pop(data["entity_id"], None)
            return
        entity = Entity(new["entity_id"], new["state"], new["attributes"])
        self.states[entity.entity_id] = entity
        self.changes.append(entity)

    async def begin(self) -> None:
        """Learn all states, and follow them from now on; confirm its port, or it goes back to its usual one."""
        if (await self.ask("http/config"))["pending"]:
            await self.ask("http/config/promote")
        await self.ask("subscribe_events", event_type="state_changed")
        for new in await self.ask("get_states"):
            self.states.setdefault(new["entity_id"], Entity(new["entity_id"], new["state"], new["attributes"]))
