"""The real Home Assistant, as a process in a chroot of its own, and its websocket API to look at it with.

Rules of this file: what a user does by hand is done the same way here: the first user is made by onboarding, the broker
is set up by the config flow, a restart is a stop and a start of the process.
"""

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import httpx

from tests.broker_support import HOST, Broker, free_ports

ROOT = Path(__file__).parent.parent
TREE = ROOT / "build/home-assistant/root"
DEADLINE_S = 60.0
FIRST_START_S = 180.0
"""At its first start it installs what the configured integrations need, the whole frontend among that."""
_INSIDE = Path(__file__).parent / "inside"
_HASS = ("/srv/homeassistant/bin/hass", "--config", "/config", "--log-no-color")
_STOP_S = 60.0
_STEPS_DONE = ["core_config", "analytics", "integration"]
_TRY_AGAIN_S = 0.1
_LINE = re.compile(r"^(?:\x1b\[\d+m)?\d{4}-\d\d-\d\d \S+ (?P<level>[A-Z]+) ")

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


@dataclass(slots=True, kw_only=True)
class HomeAssistant:
    """A Home Assistant on 127.0.0.1.

    Attributes:
        directory: Its configuration, which it sees as ``/config``.
        port: Of its web interface.
        tokens: What the log-in gave; see https://developers.home-assistant.io/docs/auth_api.
    """

    directory: Path
    port: int = 0
    tokens: dict[str, Any] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where its web interface is."""
        return f"http://{HOST}:{self.port}"

    @property
    def client_id(self) -> str:
        """What a page of the frontend calls itself at the log-in."""
        return f"{self.url}/"

    def log(self) -> str:
        """Read all that it has logged, over its restarts."""
        return (self.directory / "output").read_text(errors="replace")

    def complaints(self) -> list[str]:
        """List what it logged at level WARNING and above, each with the lines that belong to it."""
        found: list[str] = []
        complains = False
        for line in self.log().splitlines():
            if head := _LINE.match(line):
                complains = head["level"] in {"WARNING", "ERROR", "CRITICAL"}
                if complains:
                    found.append(line)
            elif complains:
                found[-1] += f"\n{line}"
        return found

    def start(self) -> None:
        """Start the process; it dies with the thread that called this."""
        with (self.directory / "output").open("ab") as output:
            command = [*map(str, (_INSIDE, TREE, self.directory)), *_HASS]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def wait(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait until all its integrations are set up; the first time, make its user."""
        if not self.tokens:
            self._wait_for(self._serves, deadline_s)
            self._onboard()
        self._wait_for(self._runs, deadline_s)

    def _wait_for(self, condition: Callable[[], bool], deadline_s: float) -> None:
        assert self._process is not None
        end = time.monotonic() + deadline_s
        while not condition():
            assert self._process.poll() is None, f"Home Assistant ended: {self.log()[-3000:]}"
            assert time.monotonic() < end, f"Home Assistant did not start: {self.log()[-3000:]}"
            time.sleep(_TRY_AGAIN_S)

    def _serves(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/api/onboarding").is_success
        return False

    def _runs(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{self.url}/api/config", headers=self._headers())
            return answer.is_success and answer.json()["state"] == "RUNNING"
        return False

    def stop(self) -> None:
        """End it in good order: it writes what it remembers."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens['access_token']}"}

    def _post(self, path: str, **content: Any) -> dict[str, Any]:  # noqa: ANN401 - httpx's
        answer = httpx.post(
            f"{self.url}{path}", headers=self._headers() if self.tokens else {}, timeout=DEADLINE_S, **content
        )
        assert answer.is_success, f"{path}: {answer.status_code} {answer.text}"
        made: dict[str, Any] = answer.json()
        return made

    def _onboard(self) -> None:
        """Make the first user and log in."""
        user = {"name": "Test", "username": "test", "password": "test", "language": "en", "client_id": self.client_id}
        code = self._post("/api/onboarding/users", json=user)["auth_code"]
        grant = {"grant_type": "authorization_code", "code": code, "client_id": self.client_id}
        self.tokens = self._post("/auth/token", data=grant)

    def connect(self, broker: Broker) -> None:
        """Set up the MQTT integration, as Settings > Devices & services > Add integration does."""
        flow = self._post("/api/config/config_entries/flow", json={"handler": "mqtt", "show_advanced_options": False})
        settings = {
            "broker": HOST,
            "port": broker.ports["mqtt"],
            "protocol": "5",
            "other_settings": {"set_client_cert": False, "set_ca_cert": "off", "transport": "tcp"},
        }
        done = self._post(f"/api/config/config_entries/flow/{flow['flow_id']}", json=settings)
        assert done["type"] == "create_entry", done

    @contextlib.asynccontextmanager
    async def hub(self) -> AsyncIterator[Hub]:
        """Connect to the websocket API; states are known from the start."""
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://{HOST}:{self.port}/api/websocket", max_msg_size=0) as socket,
        ):
            assert (await socket.receive_json())["type"] == "auth_required"
            await socket.send_json({"type": "auth", "access_token": self.tokens["access_token"]})
            assert (await socket.receive_json())["type"] == "auth_ok"
            hub = Hub(socket)
            following = asyncio.create_task(hub.follow(), name="hub")
            try:
                await hub.begin()
                yield hub
            finally:
                following.cancel()
                await asyncio.wait([following])


def _onboarded(directory: Path) -> None:
    """Note those steps of onboarding as done that would set up integrations which look for others on the network.

    Source: homeassistant/components/onboarding, its store; a version that is too old is brought up to date.
    """
    (directory / ".storage").mkdir(exist_ok=True)
    store = {"version": 4, "minor_version": 1, "key": "onboarding", "data": {"done": _STEPS_DONE}}
    (directory / ".storage/onboarding").write_text(json.dumps(store), encoding="utf-8")


@contextlib.contextmanager
def home_assistant(directory: Path, configuration: str, broker: Broker) -> Iterator[HomeAssistant]:
    """Run a Home Assistant that is connected to `broker`.

    Args:
        directory: Its configuration directory, with whatever files `configuration` includes.
        configuration: What stands in configuration.yaml beside the parts that every test needs.
        broker: Set up by the config flow.
    """
    assert (TREE / ".complete").exists(), "Home Assistant is not installed: make test-homeassistant"
    made = HomeAssistant(directory=directory, port=free_ports(1)[0])
    text = (
        "homeassistant: {name: Contact centre, country: GB, time_zone: Europe/London, unit_system: metric}\n"
        f"http: {{server_host: {HOST}, server_port: {made.port}}}\nfrontend:\n{configuration}"
    )
    (directory / "configuration.yaml").write_text(text, encoding="utf-8")
    _onboarded(directory)
    try:
        made.start()
        made.wait(FIRST_START_S)
        made.connect(broker)
        yield made
    finally:
        made.stop()
