"""One agent's session at the gateway: the newest GUID, where it came from, and the requests that it goes with.

Rules of this file: the GUID lives here and nowhere else in memory; any answer may renew it (P8). An ended
session is not a failure to retry: what follows it is the poller's decision. What a request told the gateway does not
come back in the gateway's words: these are logged and published (C6).

Source:
    CEC API Reference, "Agent Sign-In", "Forcible Sign-In", "Agent Sign-Out", "Querying the Agent Status".
"""

import hashlib
import logging
import re
from collections.abc import Awaitable
from dataclasses import replace
from urllib.parse import quote

from adapter.answer import Answer
from adapter.catalogue import ALREADY_SIGNED_IN, SUCCESS, AgentStateName, state_of_status
from adapter.config import AgentConfig, GatewayConfig
from adapter.errors import GatewayProtocolError, RetcodeError
from adapter.gateway import Line, Reply, is_guid, result_of
from adapter.store.records import AgentRecord

_log = logging.getLogger(__name__)

_STATUS = {"busy": "3", "idle": "4", "work": "5"}
"""The sign-in's ``status``, by our word for it. The vendor's own sample sends numbers as text."""


_MAX_MESSAGE = 500
"""Characters of the gateway's own words that are kept: they are logged and published."""

_TELLING = 6
"""Characters from which on a secret is looked for inside of words too."""


class Session:
    """The session of one agent.

    Attributes:
        guid: The newest GUID; `None` while signed out.
        own: Whether this program signed the agent in.
        stay_out: Whether a command signed the agent out.
    """

    def __init__(self, agent: AgentConfig, config: GatewayConfig, line: Line, record: AgentRecord) -> None:
        self._agent = agent
        self._dynamic = config.auth_mode == "dynamic"
        self._line = line
        self._origin = record.guid_origin
        self.guid = record.guid
        self.own = record.own
        self.stay_out = record.stay_out
        if agent.guid is not None:
            # At once, so that call data which comes before the first request finds a session to wait for.
            self.adopt_configured()

    def record(self, *, seq: int, state: bytes) -> AgentRecord:
        """Give the agent's row with this session as it is now."""
        return AgentRecord(
            work_no=self._agent.work_no,
            seq=seq,
            state=state,
            guid=self.guid,
            guid_origin=self._origin,
            cookies=tuple(self._line.cookies.items()),
            own=self.own,
            stay_out=self.stay_out,
        )

    def is_in(self, record: AgentRecord) -> bool:
        """Say whether a row holds this session as it is now."""
        return (
            self.guid == record.guid
            and self.own == record.own
            and self.stay_out == record.stay_out
            and self._origin == record.guid_origin
            and tuple(self._line.cookies.items()) == record.cookies
        )

    def adopt_configured(self) -> bool:
        """Take the configured GUID, or that of the GUID file, unless it is the one that the stored GUID came from.

        Returns:
            Whether there is another GUID than before.
        """
        guid = self._agent.guid
        if self._agent.guid_file is not None:
            try:
                guid = self._agent.guid_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as err:
                _log.warning(
                    "agent %s: guid_file %s: %s; waiting for it",
                    self._agent.work_no,
                    self._agent.guid_file,
                    getattr(err, "strerror", None) or "not UTF-8 text",
                    extra={"work_no": self._agent.work_no},
                )
                return False
            if not is_guid(guid):
                _log.warning(
                    "agent %s: guid_file %s: expected a GUID as printable ASCII without blanks",
                    self._agent.work_no,
                    self._agent.guid_file,
                    extra={"work_no": self._agent.work_no},
                )
                return False
        if guid is None:
            return False
        origin = hashlib.sha256(guid.encode()).hexdigest()
        if origin == self._origin:
            return False
        self._origin = origin
        self.adopt(guid)
        return True

    def adopt(self, guid: str) -> None:
        """Go on with the GUID of a session that was begun elsewhere."""
        self.guid = guid
        self.own = False
        self.stay_out = False

    def end(self) -> None:
        """Forget the GUID: the agent is signed out."""
        self.guid = None
        self.own = False

    async def poll(self, call_data: str | None) -> Reply:
        """Wait for the next event; keep a new GUID. Raises as `Line.poll`."""
        if self.guid is None:
            raise AssertionError("a poll without a session")
        told = () if call_data is None else (call_data, quote(call_data, safe=""))
        return await self._ask(self._line.poll(self.guid, call_data), self.guid, *told)

    async def state(self) -> AgentStateName | None:
        """Ask the gateway for the agent's state; `None` where it does not say. Raises as `Line.poll`."""
        if self.guid is None:
            return None
        reply = await self._ask(self._line.agent_status(self.guid), self.guid)
        return _state(reply.answer)

    async def sign_in(self, *, force: bool) -> None:
        """Sign in with the configured credentials.

        Args:
            force: Away from wherever the agent is signed in now. The caller tries without it first (C6).

        Raises:
            RetcodeError: The gateway refused.
            GatewayError: As `Line.poll`.
        """
        sign_in = self._agent.sign_in
        if sign_in is None:
            raise AssertionError("a sign-in without credentials")
        # Without callBackUri and serviceToken, which would switch the gateway from polling to pushing (P10).
        body = {"password": sign_in.password, "phonenum": sign_in.phone, "status": _STATUS[sign_in.status]}
        reply = await self._ask(self._line.sign_in(body, force=force), sign_in.password)
        if reply.answer.retcode != SUCCESS:
            raise RetcodeError(reply.answer.retcode, reply.answer.message)
        if self._line.new_guid is None:
            raise RetcodeError(SUCCESS, "signed in, but the answer brought no GUID that can be used")
        self.guid = self._line.new_guid
        self.own = True
        self.stay_out = False

    async def sign_out(self, guid: str) -> None:
        """Ask the gateway to sign the agent out.

        Args:
            guid: The GUID to do it with; after an end that the gateway announced, the last one.

        Raises:
            RetcodeError: The gateway refused, for example during a call.
            GatewayError: As `Line.poll`.
        """
        reply = await self._ask(self._line.sign_out(guid), guid)
        if reply.answer.retcode != SUCCESS:
            raise RetcodeError(reply.answer.retcode, reply.answer.message)

    async def close(self) -> None:
        """Close the connection to the gateway."""
        await self._line.close()

    async def _ask(self, request: Awaitable[Reply], *told: str) -> Reply:
        """Wait for an answer; keep the new GUID that it brings, also where its body cannot be read (P8).

        Args:
            request: The request; it begins only here.
            told: The secrets in it, besides cookies.
        """
        told = (*told, *self._line.cookies.values())
        try:
            reply = await request
        except GatewayProtocolError as error:
            head = self._hidden(error.head.decode(errors="surrogateescape"), told).encode(errors="surrogateescape")
            raise GatewayProtocolError(error.reason, head=head, size_bytes=error.size_bytes) from None
        finally:
            # With static authentication the sign-in's GUID serves for the whole session, whatever comes later; and
            # an answer to the sign-out of a session that has ended begins no new one.
            if self._dynamic and self.guid is not None and self._line.new_guid is not None:
                self.guid = self._line.new_guid
        # Cut only now: half of a secret could not be found.
        message = self._hidden(reply.answer.message, told)[:_MAX_MESSAGE]
        if message == reply.answer.message:
            return reply
        return replace(reply, answer=replace(reply.answer, message=message))

    def _hidden(self, text: str, told: tuple[str, ...]) -> str:
        """Put stars for secrets which the gateway repeats in its own words; events pass unchanged (P11)."""
        if not text:
            return text
        secrets = {*told, *self._line.cookies.values(), self._line.new_guid} - {None, ""}
        known = "|".join(map(_found_by, sorted(map(str, secrets), key=len, reverse=True)))
        return re.sub(known, "***", text, flags=re.IGNORECASE) if known else text


def _found_by(secret: str) -> str:
    """Make the pattern of a secret: a short one counts as a word alone, or it would be found in any text."""
    pattern = re.escape(secret)
    return pattern if len(secret) >= _TELLING else f"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])"


def needs_force(error: RetcodeError) -> bool:
    """Say whether a sign-in was refused because the agent is signed in elsewhere."""
    return error.retcode == ALREADY_SIGNED_IN


def _state(answer: Answer) -> AgentStateName | None:
    """Read the answer to ``agentstatus``: an object in the vendor's sample, a list of one in its table."""
    if answer.retcode != SUCCESS:
        return None
    result = result_of(answer)
    if isinstance(result, list) and result:
        result = result[0]
    return state_of_status(result.get("agentState")) if isinstance(result, dict) else None
