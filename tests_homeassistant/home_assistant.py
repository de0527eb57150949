"""The real Home Assistant, as a process in a chroot of its own.

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
from typing import Any

import aiohttp
import httpx

from tests.broker_support import HOST, Broker, free_ports
from tests_homeassistant.hub import DEADLINE_S, Hub

ROOT = Path(__file__).parent.parent
TREE = ROOT / "build/home-assistant/root"
FIRST_START_S = 300.0
"""At its first start it installs what the configured integrations need, the whole frontend among that."""
_INSIDE = Path(__file__).parent / "inside"
_HASS = ("/srv/homeassistant/bin/hass", "--config", "/config", "--log-no-color")
_STOP_S = 60.0
_STEPS_DONE = ["core_config", "analytics", "integration"]
_TRY_AGAIN_S = 0.1
_LINE = re.compile(r"^(?:\x1b\[\d+m)?\d{4}-\d\d-\d\d \S+ (?P<level>[A-Z]+) ")


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
