"""The port to the CC-Gateway: HTTPS requests of one agent, and their answers as values.

Rules of this file: no session state beyond a connection and its cookies; ports only raise, they never retry or
log. Each agent has a connection of its own: httpx's shared pool looks at all connections for every request, which
grows with the square of the agents (encode/httpcore issue 1035).

Source:
    CEC API Reference, "Obtaining Events of One Agent in Polling Mode", and the sign-in pages beside it.
"""

import asyncio
import json
import re
import ssl
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from typing import Any
from urllib.parse import quote

import httpx

from adapter.answer import HEAD_BYTES, MAX_ANSWER_BYTES, Answer, parse_answer
from adapter.config import GatewayConfig
from adapter.errors import GatewayConnectionError, GatewayProtocolError

_GUID = re.compile(r"[!-:<-~]{1,1024}")
"""What a GUID may be made of: printable ASCII, no blank and no semicolon, so that it can be a header's value."""

_CONNECT_S = 8.0
"""Seconds for the TCP connection, and again for TLS: both together stay under the smallest sensible `timeout`, so
that a gateway which is not there is told apart from one whose answer was lost."""

_KEEP_ALIVE_S = 120.0
"""How long an idle connection is kept: longer than the longest pause between two polls of an agent (P5)."""


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
    """The gateway's address and trust, shared by the lines of all agents."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._tls = tls_context(config)

    def line(self, work_no: str, cookies: Mapping[str, str]) -> "Line":
        """Make an agent's line; it connects with its first request."""
        return Line(self._config, self._tls, work_no, cookies)


class Line:
    """One agent's connection to the gateway. One request at a time: its user sees to that (P1).

    Attributes:
        cookies: The load balancer's cookies (P9), by name.
        new_guid: The GUID that the last answer brought in ``Set-GUID``, whatever became of its body (P8); `None` where
            it brought none that could be sent back.
    """

    def __init__(self, config: GatewayConfig, tls: ssl.SSLContext, work_no: str, cookies: Mapping[str, str]) -> None:
        self._timeout_s = config.timeout_s
        self._poll_url = f"{config.url}/resource/agentevent/{work_no}"
        self._agent_url = f"{config.url}/resource/onlineagent/{work_no}"
        # The transport alone: httpx's client above it would add a cookie jar, redirects and headers of its own.
        self._transport = httpx.AsyncHTTPTransport(
            verify=tls,
            proxy=config.proxy,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=_KEEP_ALIVE_S),
        )
        # Reading has no limit of its own: the limit of the whole request covers it, one byte at a time too.
        self._extensions = {"timeout": {"connect": min(_CONNECT_S, config.timeout_s / 2.5)}}
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
        query = "" if call_data is None else f"?calldata={quote(call_data, safe='')}"
        return await self._request("GET", self._poll_url + query, guid)

    async def sign_in(self, body: Mapping[str, str], *, force: bool) -> Reply:
        """Sign the agent in; with `force` away from wherever it is signed in. Raises as `poll`."""
        url = self._agent_url + ("/forcelogin" if force else "")
        return await self._request("PUT", url, None, json.dumps(dict(body)).encode())

    async def sign_out(self, guid: str) -> Reply:
        """Sign the agent out; refused during a call. Raises as `poll`."""
        return await self._request("DELETE", f"{self._agent_url}/logout", guid)

    async def agent_status(self, guid: str) -> Reply:
        """Ask for the agent's state; unlike ``syncagentinfo`` this leaves the event queue alone. Raises as `poll`."""
        return await self._request("GET", f"{self._agent_url}/agentstatus", guid)

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.aclose()

    async def _request(self, method: str, url: str, guid: str | None, body: bytes | None = None) -> Reply:
        self.new_guid = None
        headers = {
            "Content-Type": "application/json; charset=UTF-8",
            "Accept-Encoding": "identity",
            "User-Agent": "ccgateway2mqtt",
        }
        if guid is not None:
            headers["Guid"] = guid
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        request = httpx.Request(method, url, headers=headers, content=body, extensions=self._extensions)
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._transport.handle_async_request(request)
                try:
                    return await self._read(response)
                finally:
                    await response.aclose()
        except TimeoutError:
            reason = f"no answer within {self._timeout_s:g} s"
            raise GatewayConnectionError(reason, answer_lost=True) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as err:
            raise GatewayConnectionError(f"cannot connect: {_reason(err)}", answer_lost=False) from err
        except (httpx.TransportError, ssl.SSLError) as err:
            # httpcore lets the errors of a TLS connection through that breaks after its handshake.
            raise GatewayConnectionError(f"connection lost: {_reason(err)}", answer_lost=True) from err

    async def _read(self, response: httpx.Response) -> Reply:
        headers = response.headers
        self.new_guid = _guid(headers.get("set-guid"))
        for header in headers.get_list("set-cookie"):
            self._take_cookie(header)
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                break
        if response.status_code != httpx.codes.OK:
            reason = f"HTTP status {response.status_code}"
            raise GatewayConnectionError(reason, answer_lost=False, status=response.status_code)
        text = _unpacked(bytes(body), headers.get("content-encoding", ""))
        if len(text) > MAX_ANSWER_BYTES:
            reason = f"over {MAX_ANSWER_BYTES} bytes"
            raise GatewayProtocolError(reason, head=text[:HEAD_BYTES], size_bytes=len(text))
        return Reply(parse_answer(text, response.charset_encoding), asyncio.get_running_loop().time())

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


def _guid(header: str | None) -> str | None:
    """Take the GUID out of ``JSESSIONID=<guid>``; `None` where there is none, or none that could be sent back."""
    if header is None or not header.startswith("JSESSIONID="):
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


def _unpacked(body: bytes, coding: str) -> bytes:
    """Unpack what came packed although it was not asked for, up to a little over `MAX_ANSWER_BYTES`."""
    if coding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    try:
        # 32 more than the window's bits: the header tells gzip from zlib.
        return zlib.decompressobj(zlib.MAX_WBITS + 32).decompress(body, MAX_ANSWER_BYTES + 1)
    except zlib.error as err:
        reason = f"packed as {coding}, and damaged"
        raise GatewayProtocolError(reason, head=body[:HEAD_BYTES], size_bytes=len(body)) from err


def _reason(err: Exception) -> str:
    """Say what happened; some of httpx's errors have no text of their own."""
    return str(err) or type(err).__name__


def result_of(answer: Answer) -> Any:  # noqa: ANN401 - whatever JSON the gateway sent
    """Decode the member ``result`` of an answer; `None` where it has none."""
    return None if answer.result is None else json.loads(bytes(answer.result))
