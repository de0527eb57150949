"""The poll: GET /agentgateway/resource/agentevent/{workNo}.

Each poll goes one way through this file: note it, apply the document's rules, take the scripted fault, wait for
an event, answer, note what became of the answer.
"""

import asyncio
import time
from http import HTTPStatus
from typing import Protocol

from adapter.simulator.agent import NO_PERMISSION, Agent, Event, Settings, Waiter, is_shutdown
from adapter.simulator.answers import EMPTY, is_readable, refuse, render
from adapter.simulator.faults import NONE, Fault
from adapter.simulator.records import Outcome, Pauses, Poll
from adapter.simulator.rules import (
    ENDED,
    QueryError,
    guid_violation,
    header_violations,
    parse_calldata,
    pause_violation,
)
from adapter.simulator.wire import Answer, Connection, Request, Sent, send


class Watcher(Protocol):
    """What serving a request needs of the simulator around it."""

    settings: Settings
    all_pauses: Pauses

    def violate(self, agent: str, kind: str, text: str) -> None:
        """Note a violation."""
        ...

    def ended(self, poll: Poll) -> None:
        """Note that a poll has ended."""
        ...

    def changed(self) -> None:
        """Say that something happened which somebody may wait for."""
        ...


class PollService:
    """Serves one poll from its arrival to its answer."""

    __slots__ = ("_agent", "_connection", "_event", "_fault", "_open", "_record", "_request", "_watcher")

    def __init__(self, watcher: Watcher, agent: Agent, request: Request, connection: Connection) -> None:
        self._watcher = watcher
        self._agent = agent
        self._request = request
        self._connection = connection
        self._fault = NONE
        self._event: Event | None = None
        self._open = True
        self._record = Poll(
            work_no=agent.work_no,
            started_at=request.at,
            target=request.target,
            headers=request.headers,
            guid=request.headers.get("guid"),
            connection=connection.number,
        )

    async def run(self) -> Sent:
        """Serve it."""
        agent = self._agent
        agent.polls.append(self._record)
        self._check_headers()
        if agent.polling:
            self._violate("second_poll", "a poll came while another one was under way")
            self._record.retcode = "000-007"
            self._open = False
            sent = await self._send(refuse("000-007"))
            return self._end(sent, "refused" if sent.whole else "cut")
        self._check_pause()
        agent.polling += 1
        agent.poll_count += 1
        agent.signed_in(self._request.at)  # ends a session that went without a poll for too long
        agent.last_seen = self._request.at
        self._connection.on_lost = self._left
        self._watcher.changed()
        try:
            return await self._serve()
        finally:
            self._connection.on_lost = None
            agent.last_seen = time.monotonic()
            if self._record.outcome == "waiting":
                self._break_down(agent.last_seen)
            if self._open:
                agent.polling -= 1

    def _break_down(self, at: float) -> None:
        """Note that the gateway itself went away with this poll under way."""
        self._record.event = self._event
        outcome: Outcome = "cut" if self._event is None else "lost"
        if self._event is not None:
            self._agent.lost.append(self._event)
        self._end(Sent(whole=False, written_at=at, reusable=False), outcome)

    def _left(self, at: float) -> None:
        """Note that the client left while its poll was under way; the servlet does not know yet."""
        self._open = False
        self._agent.polling -= 1
        self._agent.mark = (at, "left")
        self._watcher.changed()

    def _violate(self, kind: str, text: str) -> None:
        self._watcher.violate(self._agent.work_no, kind, text)

    def _check_headers(self) -> None:
        for violation in header_violations(self._request):
            self._violate(*violation)
        found = guid_violation(self._agent, self._record.guid, self._connection.number)
        if found is not None:
            self._violate(*found)

    def _check_pause(self) -> None:
        agent = self._agent
        pause_s, found = pause_violation(agent, self._request.at)
        self._record.pause_s = pause_s
        if pause_s is not None and agent.mark is not None and agent.mark[1] == "good":
            self._watcher.all_pauses.add(pause_s)
            if agent.pauses is not None:
                agent.pauses.add(pause_s)
        if found is not None:
            self._violate(*found)

    async def _serve(self) -> Sent:
        if self._request.method != "GET":
            self._violate("method", f"only GET is allowed, got {self._request.method}")
            self._record.retcode = "000-001"
            answer = refuse("000-001", status=405)
            answer.headers.append(("Allow", "GET"))
            return await self._finish(answer)
        fault = self._fault = self._agent.next_fault("poll")
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault.hang:
            await self._connection.gone.wait()
            return self._end(Sent(whole=False, written_at=time.monotonic(), reusable=False), "cut")
        if fault.drop or fault.raw is not None:
            return self._break_off(fault.raw)
        if fault.replaces:
            return await self._finish(self._scripted(fault))
        return await self._finish(await self._regular())

    def _break_off(self, data: bytes | None) -> Sent:
        """Send something that is not HTTP, or nothing, and end the connection."""
        sent = Sent(whole=False, written_at=time.monotonic(), reusable=False)
        if data is None:
            self._connection.cut()
        else:
            self._connection.writer.write(data)
        self._mark(sent, good=False)
        return self._end(sent, "fault")

    def _scripted(self, fault: Fault) -> Answer:
        """Make the answer that comes in place of the gateway's own."""
        answer = Answer(status=fault.status or 200, body=fault.body or b"")
        if fault.retcode is not None:
            self._record.retcode = fault.retcode
            answer = refuse(fault.retcode, status=answer.status, message=fault.message)
        if fault.rotate:
            self._add_guid(answer)
        return answer

    def _add_guid(self, answer: Answer) -> None:
        guid = self._agent.rotate(time.monotonic(), used=self._record.guid, force=self._fault.rotate)
        self._record.set_guid = guid
        if guid is not None:
            answer.headers.append(("Set-GUID", f"JSESSIONID={guid}"))

    async def _regular(self) -> Answer:
        """Make the gateway's own answer, after holding the poll for as long as it takes."""
        agent, record = self._agent, self._record
        code = agent.refusal(record.guid, time.monotonic())
        if code == NO_PERMISSION and record.guid is not None and record.guid not in agent.issued:
            self._violate("guid", "a GUID that was never given out for this agent")
        if code is None:
            code = self._take_calldata()
        if code is None:
            waiter = Waiter(asyncio.get_running_loop().create_future())
            try:
                await agent.next_event(waiter)
            finally:
                self._event = waiter.event
            code = waiter.retcode
        record.retcode = code
        if code != "0":
            return refuse(code)
        answer = Answer(body=EMPTY if self._event is None else render(self._event))
        self._add_guid(answer)
        return answer

    def _take_calldata(self) -> str | None:
        try:
            calldata = parse_calldata(self._request.query)
        except QueryError as err:
            self._violate(err.kind, str(err))
            return "000-002"
        if calldata is not None:
            self._record.calldata = calldata
            self._agent.calldata.append((self._request.at, calldata))
            self._watcher.changed()
        return None

    async def _send(self, answer: Answer) -> Sent:
        self._record.status = answer.status
        return await send(self._connection, answer, fault=self._fault, keep_alive=self._request.keep_alive)

    async def _finish(self, answer: Answer) -> Sent:
        """Send the answer, then note what became of it."""
        agent, record, fault = self._agent, self._record, self._fault
        sent = await self._send(answer)
        outcome: Outcome
        if self._event is not None:
            outcome = "event" if sent.whole else "lost"
            (agent.handed_out if sent.whole else agent.lost).append(self._event)
            agent.handed(self._event)
            record.event = self._event
        elif fault.replaces:
            outcome = "fault"
        elif not sent.whole:
            outcome = "cut"
        else:
            outcome = "empty" if record.retcode == "0" else "refused"
        arrived = sent.whole and answer.status == HTTPStatus.OK
        self._mark(sent, good=arrived and self._readable(fault))
        ended = record.retcode in ENDED or is_shutdown(self._event)
        if sent.whole and record.guid is not None and ended:
            agent.refused.add(record.guid)
        if arrived and record.set_guid is not None:
            agent.told_guid = (record.set_guid, self._connection.number if sent.reusable else None)
        return self._end(sent, outcome)

    @staticmethod
    def _readable(fault: Fault) -> bool:
        if fault.readable is not None:
            return fault.readable
        return fault.body is None or is_readable(fault.body)

    def _mark(self, sent: Sent, *, good: bool) -> None:
        # A client that left has its own mark already, and may even have begun its next poll.
        if self._open:
            self._agent.mark = (sent.written_at, "good" if good else "bad")

    def _end(self, sent: Sent, outcome: Outcome) -> Sent:
        self._record.ended_at = sent.written_at
        self._record.outcome = outcome
        self._watcher.ended(self._record)
        return sent
