"""The simulator: a CC-Gateway over real HTTPS, to be driven from the same process.

It shares no code with the client. What a client does against the interface document is refused where the gateway
would refuse it, and in any case noted in `violations`.
"""

import asyncio
import contextlib
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar, cast
from urllib.parse import quote

from adapter.simulator.agent import RECORD_LIMIT, Agent, Event, Settings, SimAgent
from adapter.simulator.answers import refuse
from adapter.simulator.certificates import Certificate, SimulatorError, make_context
from adapter.simulator.faults import Fault
from adapter.simulator.listener import Listener
from adapter.simulator.polling import PollService
from adapter.simulator.records import Call, Pauses, PauseStatistics, Poll, Violation
from adapter.simulator.samples import sample
from adapter.simulator.sessions import ACTIONS, SessionService
from adapter.simulator.wire import Answer, Connection, Request, Sent, send

_T = TypeVar("_T")

_POLL_PATH = re.compile(r"/agentgateway/resource/agentevent/([^/]+)")
_SESSION_PATH = re.compile(r"/agentgateway/resource/onlineagent/([^/]+)(/[a-z]+)?")
_LOOK_AGAIN_S = 0.05


class Simulator:
    """A gateway with its agents, as an asynchronous context manager.

    Attributes:
        url: What a client's configuration takes as the gateway's address.
        ca_file: The CA that signed the simulator's certificate.
        violations: What clients did against the interface document, oldest first.
        requests: Every request that was not a poll, oldest first.
        all_pauses: The pauses of all agents after good answers.
        settings: How the gateway is set up.
    """

    def __init__(  # noqa: PLR0913  each is one setting of a gateway or of a test
        self,
        *,
        agents: Sequence[str] | Sequence[SimAgent],
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
        """
        self.settings = Settings(
            hold_s=hold_s,
            poll_wait=poll_wait,
            auth_mode=auth_mode,
            guid_interval_s=guid_interval_s,
            guid_timeout_s=guid_timeout_s,
            poll_max_time_s=poll_max_time_s,
        )
        self.url = ""
        self.ca_file = Path()
        self.violations: deque[Violation] = deque(maxlen=RECORD_LIMIT)
        self.requests: deque[Call] = deque(maxlen=RECORD_LIMIT if record and not lean else 0)
        self.all_pauses = Pauses()
        self.poll_count = 0
        self._host = host
        self._port = port
        self._directory = directory
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._strict = strict
        self._record = record and not lean
        self._lean = lean
        self._certificate: Certificate = certificate
        self._signed_in = signed_in
        self._agents: dict[str, Agent] = {}
        for profile in agents:
            self.add_agent(profile)
        self._listener: Listener
        self._change = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Make the certificate and listen."""
        if self._directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="ccgateway-simulator-")
        directory = self._directory or Path(cast("tempfile.TemporaryDirectory[str]", self._temporary).name)
        context, self.ca_file = make_context(self._host, directory, self._certificate)
        self._listener = Listener(self._host, self._port, context, self._answer)
        now = time.monotonic()
        for agent in self._agents.values():
            agent.last_seen = now
        await self.come_back()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close everything."""
        await self.go_away()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    async def come_back(self) -> None:
        """Listen, at the start or after `go_away`; the port stays the same."""
        port = await self._listener.open()
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"https://{host}:{port}/agentgateway"

    async def go_away(self) -> None:
        """Stop listening and cut every connection, as a machine does that goes down; sessions stay."""
        await self._listener.close()

    def add_agent(self, profile: str | SimAgent) -> None:
        """Let the gateway know one more agent."""
        if isinstance(profile, str):
            profile = SimAgent(work_no=profile)
        if profile.work_no in self._agents:
            raise SimulatorError(f"agent {profile.work_no} is there twice")
        profile = replace(
            profile,
            password=profile.password or f"pw-{profile.work_no}",
            phone=profile.phone or f"8{profile.work_no}",
        )
        agent = Agent(profile, self.settings, record=self._record, lean=self._lean)
        self._agents[profile.work_no] = agent
        if self._signed_in if profile.signed_in is None else profile.signed_in:
            agent.start_session(time.monotonic(), guid=profile.guid)

    # What tests and scenarios do.

    @property
    def agents(self) -> tuple[SimAgent, ...]:
        """All agents with what a client's configuration needs of them, and their present GUIDs."""
        return tuple(replace(agent.profile, guid=agent.guid) for agent in self._agents.values())

    def emit(self, work_no: str, event: Event) -> None:
        """Let something happen to an agent: append to its queue, or hand to the poll that waits.

        Args:
            work_no: The agent.
            event: The member ``event`` of the answer; as bytes, its JSON text to the byte.
        """
        self._agents[work_no].put(event)

    def emit_sample(self, work_no: str, event_type: str, content: object = ...) -> dict[str, object]:
        """Emit the vendor's sample of an event type, with members of `content` put over its own."""
        event = sample(event_type, work_no, content)
        self.emit(work_no, event)
        return event

    def script(self, work_no: str, *faults: Fault, on: str = "poll") -> None:
        """Say how the next requests of an agent are answered, one fault each.

        Args:
            work_no: The agent.
            faults: In the order of the requests.
            on: Kind of request: ``poll``, or an action of `Call`.
        """
        self._agents[work_no].scripts.setdefault(on, deque()).extend(faults)

    def every(self, work_no: str, number: int, fault: Fault) -> None:
        """Put a fault on each poll of an agent whose count is a multiple of `number`."""
        self._agents[work_no].every.append((number, fault))

    def sign_in(self, work_no: str) -> str:
        """Sign an agent in, as if elsewhere; an older session ends. Gives the new GUID."""
        return self._agents[work_no].start_session(time.monotonic())

    def sign_out(self, work_no: str, *, notify: bool = False) -> None:
        """Sign an agent out, as a supervisor would.

        Args:
            work_no: The agent.
            notify: Whether it is told by the event ``AgentOther_ShutdownService``, after which the session ends;
                else the session ends at once and polls are refused.
        """
        if notify:
            self.emit_sample(work_no, "AgentOther_ShutdownService")
        else:
            self._agents[work_no].end_session()

    def expire_guid(self, work_no: str) -> None:
        """Let every GUID that the agent has be refused from now on."""
        self._agents[work_no].expire_guids()

    def set_status(self, work_no: str, code: int) -> None:
        """Set what `agentstatus` says; else it follows from the events."""
        self._agents[work_no].code = code

    def cut(self, work_no: str) -> None:
        """Cut the connections over which polls of an agent are held."""
        for connection in self._listener.connections():
            if connection.serving == work_no:
                connection.cut()

    # What tests look at.

    def guid(self, work_no: str) -> str:
        """Give the agent's newest GUID; empty while it is signed out."""
        return self._agents[work_no].guid or ""

    def signed_in(self, work_no: str) -> bool:
        """Say whether the agent has a session."""
        return self._agents[work_no].signed_in(time.monotonic())

    def polls(self, work_no: str) -> list[Poll]:
        """List the agent's polls, oldest first; the last one may still be waiting."""
        return list(self._agents[work_no].polls)

    def polling(self, work_no: str) -> bool:
        """Say whether a poll of the agent is under way."""
        return self._agents[work_no].polling > 0

    def calldata(self, work_no: str) -> list[tuple[float, str]]:
        """List the call data that came for an agent, each with its time (monotonic seconds)."""
        return list(self._agents[work_no].calldata)

    def queued(self, work_no: str) -> int:
        """Count the events that nobody has fetched."""
        return len(self._agents[work_no].queue)

    def handed_out(self, work_no: str) -> list[Event]:
        """List the events that were written to a connection which was up."""
        return list(self._agents[work_no].handed_out)

    def lost(self, work_no: str) -> list[Event]:
        """List the events that were taken from the queue for a connection which was gone."""
        return list(self._agents[work_no].lost)

    def pauses(self, work_no: str | None = None) -> PauseStatistics | None:
        """Sum up the pauses after good answers, of one agent or of all; `None` when there were none."""
        if work_no is None:
            return self.all_pauses.statistics()
        pauses = self._agents[work_no].pauses
        return None if pauses is None else pauses.statistics()

    async def wait_for(self, predicate: Callable[[], _T], timeout_s: float = 10.0) -> _T:
        """Wait until `predicate` gives something true, and give that.

        It is asked again after every request and answer, and every 50 ms, since sessions and GUIDs end with time.

        Raises:
            TimeoutError: It did not within `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            while not (value := predicate()):
                self._change.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._change.wait(), _LOOK_AGAIN_S)
        return value

    # What the services of requests call.

    def violate(self, agent: str, kind: str, text: str) -> None:
        """Note a violation."""
        if self._strict:
            self.violations.append(Violation(agent=agent, kind=kind, text=text, at=time.monotonic()))

    def changed(self) -> None:
        """Wake whoever waits for something to have happened."""
        self._change.set()

    # What the listener calls.

    async def _answer(self, request: Request | str, connection: Connection) -> Sent:
        if isinstance(request, str):
            self.violate("", "http", request)
            return await send(connection, refuse("000-002", status=400), keep_alive=False)
        found = _POLL_PATH.fullmatch(request.path)
        if found is not None and found[1] in self._agents:
            self.poll_count += 1
            connection.serving = found[1]
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
            self.requests.append(service.call)
            return await service.run()
        self.violate("", "unknown_request", f"{request.method} {quote(request.path)}: no such interface or agent")
        return await send(connection, Answer(status=404), keep_alive=request.keep_alive)
