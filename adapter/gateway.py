"""The port to the CC-Gateway: HTTPS requests of one agent, and their answers as values.

Rules of this file:
1. No session state beyond a connection and its cookies; ports only raise, they never retry or log.
2. Each agent has a connection of its own (`adapter.transport`), used for one request after the other.
3. No error quotes what the gateway or a proxy sent: a GUID may be in it.

Source:
    CEC API Reference, "Obtaining Events of One Agent in Polling Mode", and the sign-in pages beside it.
"""

import asyncio
import json
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import Any, cast
from urllib.parse import quote

import httpx

from adapter.answer import HEAD_BYTES, MAX_ANSWER_BYTES, Answer, parse_answer, unpack
from adapter.config import GatewayConfig
from adapter.errors import GatewayConnectionError, GatewayProtocolError
from adapter.event import read_json
from adapter.transport import Common, Permit, Transport

_GUID = re.compile(r"[!-:<-~]{1,1024}")
"""What a GUID may be made of: printable ASCII, no blank and no semicolon, so that it can be a header's value."""

_CONNECT_S = 8.0
"""Seconds for the TCP connection, and again for TLS: both together stay under the smallest sensible `timeout`, so
that a gateway which is not there is told apart from one whose answer was lost."""

_CHARSET = re.compile(r""";\s*charset\s*=\s*["']?([^\s"';]+)""", re.IGNORECASE)
"""What Content-Type declares. httpx asks the email package, which fails with a TypeError at some such headers."""

_COOKIES = 16
"""How many cookies of one agent are kept, the newest: one that makes up names must not fill each request's head."""

_COOKIE_BYTES = 4096
"""The longest cookie. Source: RFC 6265, 6.1."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that came as HTTP 200 and could be read.

    Attributes:
        answer: Its retcode, message, events and result.
        received_at: When its last byte was there, on the event loop's clock.
    """

    answer: Answer
    received_at: float


def is_guid(text: str) -> bool:
    """Say whether `text` can be a GUID, and so travel as the value of a header."""
    return _GUID.fullmatch(text) is not None


def tls_context(config: GatewayConfig) -> ssl.SSLContext:
    """Build what TLS to the gateway needs, once for all lines."""
    context = ssl.create_default_context(cafile=config.ca_file)
    if not config.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Gateway:
    """The gateway's address and trust, shared by the lines of all agents.

    Args:
        config: Where it is.
        permit: What each request waits for; `None` for nothing.
    """

    def __init__(self, config: GatewayConfig, permit: Permit | None = None) -> None:
        self._config = config
        self._url = httpx.URL(config.url)
        self._proxy = None if config.proxy is None else httpx.URL(config.proxy)
        self._common = Common(
            tls=tls_context(config),
            timeout_s=config.timeout_s,
            connect_timeout_s=min(_CONNECT_S, config.timeout_s / 2.5),
            max_body_bytes=MAX_ANSWER_BYTES,
            permit=permit,
        )

    def line(self, work_no: str, cookies: Mapping[str, str]) -> "Line":
        """Make an agent's line; it connects with its first request."""
        transport = Transport(self._url, self._common, self._proxy)
        return Line(self._config, transport, work_no, cookies)


class Line:
    """One agent's connection to the gateway. One request at a time: its user sees to that (P1).

    Attributes:
        cookies: The load balancer's cookies (P9), by name.
        new_guid: The GUID that the last answer brought in ``Set-GUID``, whatever became of its body (P8), also where
            the request was cancelled meanwhile; `None` where it brought none that could be sent back.
    """

    def __init__(self, config: GatewayConfig, transport: Transport, work_no: str, cookies: Mapping[str, str]) -> None:
        self._poll_url = f"{config.url}/resource/agentevent/{work_no}"
        self._agent_url = f"{config.url}/resource/onlineagent/{work_no}"
        self._transport = transport
        self._status: int | None = None
        self._usual: httpx.Request | None = None
        self._usual_guid = ""
        self.cookies = dict(cookies)
        self.new_guid: str | None = None

    async def poll(self, guid: str, call_data: str | None = None) -> Reply:
        """Wait for the agent's next event (``getAgentEvent``).

        The gateway holds the request for about 10 s when nothing happens, so an answer without events is the usual
        one and no error.

        Args:
            guid: The newest GUID of the session.
            call_data: Goes along as the parameter ``calldata`` (P2); `None` for none.

        Raises:
            GatewayConnectionError: No answer within `gateway.timeout`, or none with status 200.
            GatewayProtocolError: A 200 answer that cannot be read.
        """
        return await self._request(self._poll_request(guid, call_data))

    async def sign_in(self, body: Mapping[str, str], *, force: bool) -> Reply:
        """Sign the agent in; with `force` away from wherever it is signed in. Raises as `poll`."""
        url = self._agent_url + ("/forcelogin" if force else "")
        return await self._request(self._make("PUT", url, None, json.dumps(dict(body)).encode()))

    async def sign_out(self, guid: str) -> Reply:
        """Sign the agent out; refused during a call. Raises as `poll`."""
        return await self._request(self._make("DELETE", f"{self._agent_url}/logout", guid))

    async def agent_status(self, guid: str) -> Reply:
        """Ask for the agent's state; unlike ``syncagentinfo`` this leaves the event queue alone. Raises as `poll`."""
        return await self._request(self._make("GET", f"{self._agent_url}/agentstatus", guid))

    async def close(self) -> None:
        """Close the connection; a later request makes a new one."""
        await self._transport.aclose()

    def _poll_request(self, guid: str, call_data: str | None) -> httpx.Request:
        """Make the request of a poll; the usual one is the last one again."""
        if call_data is not None:
            return self._make("GET", f"{self._poll_url}?calldata={quote(call_data, safe='')}", guid)
        if self._usual is None or self._usual_guid != guid:
            self._usual, self._usual_guid = self._make("GET", self._poll_url, guid), guid
        return self._usual

    def _make(self, method: str, url: str, guid: str | None, body: bytes | None = None) -> httpx.Request:
        headers = {
            "Content-Type": "application/json; charset=UTF-8",
            "Accept-Encoding": "identity",
            "User-Agent": "ccgateway2mqtt",
        }
        if guid is not None:
            headers["Guid"] = guid
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return httpx.Request(method, url, headers=headers, content=body)

    async def _request(self, request: httpx.Request) -> Reply:
        self.new_guid = self._status = None
        packed = b""
        try:
            response = await self._transport.handle_async_request(request)
            coding, charset = self._take_head(response)
            async for part in cast("httpx.AsyncByteStream", response.stream):
                packed = part
        except httpx.TransportError as err:
            raise self._failure(err) from None
        except asyncio.CancelledError:
            if self._transport.begun is not None:
                self._take_head(self._transport.begun)
            raise
        if response.status_code != httpx.codes.OK:
            raise self._failure(None)
        text = unpack(packed, coding)
        if len(text) > MAX_ANSWER_BYTES:
            reason = f"over {MAX_ANSWER_BYTES} bytes"
            raise GatewayProtocolError(reason, head=text[:HEAD_BYTES], size_bytes=len(text))
        return Reply(parse_answer(text, charset), asyncio.get_running_loop().time())

    def _take_head(self, response: httpx.Response) -> tuple[str, str | None]:
        """Take what the head of an answer brings; give how its body is packed, and its charset where it says one."""
        self._status = response.status_code
        coding, charset = "", None
        for name, value in response.headers.raw:
            match name.lower():
                case b"content-type":
                    charset = _CHARSET.search(value.decode("latin-1"))
                case b"content-encoding":
                    coding = value.decode("latin-1")
                case b"set-guid":
                    self.new_guid = _guid(value.decode("latin-1")) or self.new_guid
                case b"set-cookie":
                    self._take_cookie(value.decode("latin-1"))
                    self._usual = None
        return coding, None if charset is None else charset[1]

    def _failure(self, err: Exception | None) -> GatewayConnectionError:
        """Say what became of a request that brought no whole answer with status 200."""
        if self._status not in (None, httpx.codes.OK):
            # However its body ended, there was no event in it.
            return GatewayConnectionError(f"HTTP status {self._status}", answer_lost=False, status=self._status)
        reason = _reason(err)
        if not self._transport.sending:
            return GatewayConnectionError(f"cannot connect: {reason}", answer_lost=False)
        if isinstance(err, httpx.ReadTimeout):
            return GatewayConnectionError(reason, answer_lost=True)
        return GatewayConnectionError(f"connection lost: {reason}", answer_lost=True)

    def _take_cookie(self, header: str) -> None:
        """Keep the pair of a ``Set-Cookie`` header; forget it where the header says that it is over.

        Path and domain are not looked at: the line speaks to one address alone.
        """
        pair, *attributes = header.split(";")
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals) or len(pair) > _COOKIE_BYTES or not (pair.isprintable() and pair.isascii()):
            return
        self.cookies.pop(name, None)
        if not any(_ends_cookie(attribute) for attribute in attributes):
            self.cookies[name] = value
        while len(self.cookies) > _COOKIES:
            del self.cookies[next(iter(self.cookies))]


def _guid(header: str) -> str | None:
    """Take the GUID out of ``JSESSIONID=<guid>``; `None` where there is none, or none that could be sent back."""
    if not header.startswith("JSESSIONID="):
        return None
    guid = header.removeprefix("JSESSIONID=").split(";")[0].strip()
    return guid if is_guid(guid) else None


def _ends_cookie(attribute: str) -> bool:
    """Say whether an attribute ends its cookie: ``Max-Age`` of nothing, or ``Expires`` in the past."""
    name, _, value = (part.strip().lower() for part in attribute.partition("="))
    if name == "max-age":
        return value.startswith("-") or value == "0"
    moment = parsedate_tz(value) if name == "expires" else None
    try:
        return moment is not None and mktime_tz(moment) <= time.time()
    except (ValueError, OverflowError):  # no such date
        return False


def _reason(err: Exception | None) -> str:
    return str(err) or type(err).__name__


def result_of(answer: Answer) -> Any:  # noqa: ANN401 - whatever JSON the gateway sent
    """Decode the member ``result`` of an answer, as `read_json` does; `None` where it has none."""
    return None if answer.result is None else read_json(answer.result)
