"""The simulator: a CC-Gateway over real HTTPS, to be driven from the same process.

It shares no code with the client. What a client does against the interface document is refused where the gateway
would refuse it, and in any case noted in `violations`.
"""

import asyncio
import contextlib
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from adapter.simulator.agent import Settings, SimAgent
from adapter.simulator.answers import refuse
from adapter.simulator.certificates import Certificate, make_context
from adapter.simulator.gateway import Gateway
from adapter.simulator.listener import Listener
from adapter.simulator.player import Player
from adapter.simulator.polling import PollService
from adapter.simulator.scenario import Scenario, load_scenario
from adapter.simulator.sessions import ACTIONS, SessionService
from adapter.simulator.wire import Answer, Connection, Request, Sent, send

_POLL_PATH = re.compile(r"/agentgateway/resource/agentevent/([^/]+)")
_SESSION_PATH = re.compile(r"/agentgateway/resource/onlineagent/([^/]+)(/[a-z]+)?")


class Simulator(Gateway):
    """A gateway with its agents on HTTPS, as an asynchronous context manager.

    Attributes:
        url: What a client's configuration takes as the gateway's address.
        ca_file: The CA that signed the simulator's certificate.
        playing: The scenario's task, done when the scenario is; `None` without a scenario.
    """

    def __init__(  # noqa: PLR0913  each is one setting of a gateway or of a test
        self,
        *,
        agents: Sequence[str] | Sequence[SimAgent] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        hold_s: float = 10.0,
        auth_mode: Literal["dynamic", "static"] = "dynamic",
        poll_wait: bool = True,
        guid_interval_s: float = 60.0,
        guid_timeout_s: float = 120.0,
        poll_max_time_s: float = 120.0,
        signed_in: bool = True,
        directory: Path | None = None,
        strict: bool = True,
        record: bool = True,
        lean: bool = False,
        certificate: Certificate = "right",
        scenario: Scenario | Path | None = None,
    ) -> None:
        """Take the settings; nothing is opened before the context is entered.

        Args:
            agents: Work numbers, or agents with all that is known of them.
            host: Address to listen on.
            port: Port to listen on; 0: a free one.
            hold_s: See `Settings`, as for the next five.
            auth_mode: See `Settings`.
            poll_wait: See `Settings`.
            guid_interval_s: See `Settings`.
            guid_timeout_s: See `Settings`.
            poll_max_time_s: See `Settings`.
            signed_in: Whether agents begin signed in, as if elsewhere.
            directory: Where ``ca.pem`` goes; `None`: a temporary directory, removed at the end.
            strict: Whether violations are noted.
            record: Whether requests are kept to look at.
            lean: Spend as little as possible on an agent, for thousands of them: nothing is recorded but violations
                and the pauses of all agents together.
            certificate: What kind of certificate to show.
            scenario: What is to happen from the start on; its agents come in addition, and the gateway's settings
                that it names win.

        Raises:
            ScenarioError: The scenario's file cannot be used.
        """
        super().__init__(
            Settings(
                hold_s=hold_s,
                poll_wait=poll_wait,
                auth_mode=auth_mode,
                guid_interval_s=guid_interval_s,
                guid_timeout_s=guid_timeout_s,
                poll_max_time_s=poll_max_time_s,
            ),
            signed_in=signed_in,
            strict=strict,
            record=record,
            lean=lean,
        )
        self.url = ""
        self.ca_file = Path()
        self.playing: asyncio.Task[None] | None = None
        self._host = host
        self._port = port
        self._directory = directory
        self._certificate: Certificate = certificate
        self._closing: contextlib.ExitStack
        self._listener: Listener
        self._scenario = load_scenario(scenario) if isinstance(scenario, Path) else scenario
        if self._scenario is not None:
            self.settings = replace(self.settings, **self._scenario.settings)
        for profile in (*agents, *(self._scenario.agents if self._scenario is not None else ())):
            self.add_agent(profile)

    async def __aenter__(self) -> Self:
        """Make the certificate and listen."""
        with contextlib.ExitStack() as opening:
            directory = self._directory or Path(
                opening.enter_context(tempfile.TemporaryDirectory(prefix="ccgateway-simulator-"))
            )
            context, self.ca_file = make_context(self._host, directory, self._certificate)
            self._listener = Listener(self._host, self._port, context, self._answer)
            now = time.monotonic()
            for agent in self._agents.values():
                agent.last_seen = now
            await self.come_back()
            self._closing = opening.pop_all()
        if self._scenario is not None:
            self.playing = asyncio.get_running_loop().create_task(Player(self, self._scenario).run(), name="scenario")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything."""
        if self.playing is not None:
            self.playing.cancel()
            await asyncio.wait({self.playing})
        await self.go_away()
        self._closing.close()

    async def come_back(self) -> None:
        """Listen, at the start or after `go_away`; the port stays the same."""
        port = await self._listener.open()
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"https://{host}:{port}/agentgateway"

    async def go_away(self) -> None:
        """Stop listening and cut every connection, as a machine does that goes down; sessions stay."""
        await self._listener.close()

    def cut(self, work_no: str, *, idle: bool = False) -> None:
        """Cut the connections over which polls of an agent are held.

        Args:
            work_no: The agent.
            idle: Cut also those which carried its last poll, and wait for the next.
        """
        for connection in self._listener.connections():
            if connection.serving == work_no or (idle and connection.served == work_no):
                connection.cut()

    async def _answer(self, request: Request | str, connection: Connection) -> Sent:
        if isinstance(request, str):
            self.violate("", "http", request)
            return await send(connection, refuse("000-002", status=400), keep_alive=False)
        if request.path.rstrip("/") == "/agentgateway":  # somebody sees whether it is there
            now = ("Date", formatdate(usegmt=True))
            return await send(connection, Answer(status=404, headers=[now]), keep_alive=request.keep_alive)
        found = _POLL_PATH.fullmatch(request.path)
        if found is not None and found[1] in self._agents:
            self.poll_count += 1
            connection.serving = connection.served = found[1]
            try:
                return await PollService(self, self._agents[found[1]], request, connection).run()
            finally:
                connection.serving = None
        if found is not None:
            self.violate(found[1], "unknown_agent", "a poll for an agent that the gateway does not know")
            return await send(connection, refuse("100-006"), keep_alive=request.keep_alive)
        found = _SESSION_PATH.fullmatch(request.path)
        action = ACTIONS.get((request.method, found[2] or "")) if found is not None else None
        if found is not None and action is not None and found[1] in self._agents:
            service = SessionService(self, self._agents[found[1]], request, connection, action)
            self.note(service.call)
            return await service.run()
        self.violate("", "unknown_request", f"{request.method} {quote(request.path)}: no such interface or agent")
        return await send(connection, Answer(status=404), keep_alive=request.keep_alive)
