"""Everything but the poll: sign-in, sign-out, the agent's state, and what a poller must not call.

Source: the vendor's pages on onlineagent; see docs/gateway.md, "Session".
"""

import asyncio
import json
import time
from collections.abc import Mapping
from http import HTTPStatus

from adapter.simulator.agent import IN_CALL, NO_PERMISSION, Agent
from adapter.simulator.answers import compact, refuse
from adapter.simulator.faults import NONE, Fault
from adapter.simulator.polling import Watcher
from adapter.simulator.records import Call
from adapter.simulator.samples import sample
from adapter.simulator.wire import Answer, Connection, Request, Sent, send

ACTIONS = {
    ("PUT", ""): "login",
    ("PUT", "/forcelogin"): "forcelogin",
    ("DELETE", "/logout"): "logout",
    ("DELETE", "/forcelogout"): "forcelogout",
    ("GET", "/agentstatus"): "agentstatus",
    ("POST", "/syncagentinfo"): "syncagentinfo",
}
"""Method and rest of the path behind ``onlineagent/{workNo}``."""

_STATUS_EVENTS = {"3": "AgentState_SetNotReady_Success", "5": "AgentState_Work"}
_PASSWORD_LIMIT = 32
_PHONE_LIMIT = 24


class SessionService:
    """Serves one request about an agent's session."""

    __slots__ = ("_agent", "_connection", "_request", "_watcher", "call")

    def __init__(self, watcher: Watcher, agent: Agent, request: Request, connection: Connection, action: str) -> None:
        self._watcher = watcher
        self._agent = agent
        self._request = request
        self._connection = connection
        self.call = Call(
            work_no=agent.work_no,
            action=action,
            at=request.at,
            method=request.method,
            target=request.target,
            headers=request.headers,
            body=request.body,
        )

    async def run(self) -> Sent:
        """Serve it."""
        agent, call = self._agent, self.call
        agent.calls.append(call)
        self._watcher.changed()
        in_progress = agent.signing_in
        signing_in = call.action in {"login", "forcelogin"}
        if in_progress and call.action in {"login", "forcelogin", "logout", "forcelogout"}:
            self._watcher.violate(agent.work_no, "overlap", f"{call.action} while a sign-in is still unanswered")
            return await self._send(refuse("100-021"), NONE)
        agent.signing_in = in_progress or signing_in
        try:
            return await self._serve(agent.next_fault(call.action))
        finally:
            if signing_in:
                agent.signing_in = False

    async def _serve(self, fault: Fault) -> Sent:
        if fault.delay_s:
            await asyncio.sleep(fault.delay_s)
        if fault.hang:
            await self._connection.gone.wait()
            return Sent(whole=False, written_at=time.monotonic(), reusable=False)
        if fault.drop or fault.raw is not None:
            if fault.raw is None:
                self._connection.cut()
            else:
                self._connection.writer.write(fault.raw)
            return Sent(whole=False, written_at=time.monotonic(), reusable=False)
        if fault.retcode is not None:
            return await self._send(refuse(fault.retcode, message=fault.message), fault)
        if fault.replaces:
            return await self._send(Answer(status=fault.status or 200, body=fault.body or b""), fault)
        return await self._send(self._answer(), fault)

    async def _send(self, answer: Answer, fault: Fault) -> Sent:
        self.call.status = answer.status
        if answer.status == HTTPStatus.OK and fault.body is None:
            self.call.retcode = json.loads(answer.body)["retcode"]
        sent = await send(self._connection, answer, fault=fault, keep_alive=self._request.keep_alive)
        self.call.ended_at = sent.written_at
        self._watcher.changed()
        return sent

    def _answer(self) -> Answer:
        action = self.call.action
        if action in {"login", "forcelogin"}:
            return self._sign_in(force=action == "forcelogin")
        code = self._agent.refusal(self._request.headers.get("guid"), time.monotonic())
        if code is not None:
            guid = self._request.headers.get("guid")
            if code == NO_PERMISSION and guid not in self._agent.issued:
                self._watcher.violate(self._agent.work_no, "guid", f"{action} with a GUID never given out")
            return refuse(code)
        if action == "agentstatus":
            code_now = self._agent.code
            result = {"agentState": code_now, "isWorking": code_now == IN_CALL}
            return Answer(body=compact({"message": "", "retcode": "0", "result": result}))
        if action == "syncagentinfo":
            return self._resync()
        if action == "logout" and self._agent.code == IN_CALL:
            return refuse("100-010")
        self._agent.end_session()
        return Answer(body=compact({"message": "success", "retcode": "0"}))

    def _resync(self) -> Answer:
        self._watcher.violate(
            self._agent.work_no, "syncagentinfo", f"clears the queue; {len(self._agent.queue)} events were lost"
        )
        self._agent.lost.extend(self._agent.queue)
        self._agent.queue.clear()
        info = {"agentStateInfo": {"state": 1, "agentStateBeginTime": int(time.time() * 1000)}, "callinfo": []}
        return Answer(body=compact({"message": "", "retcode": "0", "result": info}))

    def _sign_in(self, *, force: bool) -> Answer:
        agent = self._agent
        body = _json_object(self._request.body)
        if body is None:
            return refuse("000-006")
        for name in ("serviceToken", "callBackUri"):
            if name in body:
                self._watcher.violate(
                    agent.work_no, "service_token", f"{name} at sign-in; with it events cannot be polled"
                )
        code = _credentials_refusal(agent, body)
        if code is not None:
            return refuse(code)
        if agent.signed_in(time.monotonic()) and not force:
            return refuse("100-002")
        if agent.signed_in(time.monotonic()):
            agent.end_session()
        guid = agent.start_session(time.monotonic())
        for event_type in ("AgentOther_InService", "AgentState_Ready", _STATUS_EVENTS.get(str(body.get("status")))):
            if event_type is not None:
                agent.put(sample(event_type, agent.work_no))
        result = {
            "vdnid": 1,
            "workno": agent.work_no,
            "mediatype": "TTF",
            "loginTime": str(int(time.time() * 1000)),
            "isForceChange": "false",
            "serverName": "AgentGateway",
            "timeRemaining": "9",
        }
        reply = Answer(body=compact({"message": "", "retcode": "0", "result": result}))
        reply.headers.append(("Set-GUID", f"JSESSIONID={guid}"))
        return reply


def _credentials_refusal(agent: Agent, body: Mapping[str, object]) -> str | None:
    """Say with which retcode a sign-in's password and telephone are refused; `None` when they are good."""
    password, phone = body.get("password"), body.get("phonenum")
    if not isinstance(password, str) or not isinstance(phone, str):
        return "100-001"
    if not 0 < len(password) <= _PASSWORD_LIMIT:
        return "100-001"
    if password != agent.profile.password:
        return "100-004"
    return None if phone.isdecimal() and len(phone) <= _PHONE_LIMIT else "100-013"


def _json_object(body: bytes) -> Mapping[str, object] | None:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, Mapping) else None
