"""HTTP/1.1 over asyncio's streams: reads requests, and writes answers with whatever trouble is asked for.

Written by hand because a web framework refuses to send half of what a broken network sends: a cut answer,
a length that is not there, a byte a second. Nothing here knows about agents.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from adapter.simulator.faults import NONE, Fault

LINE_LIMIT = 64 * 1024
"""Longest request line or header line, bytes; Tomcat's own limit is 8 KB for the whole head."""
_BODY_LIMIT = 1024 * 1024
_PIECE = 16 * 1024
_SLOW_STEP_S = 0.05


class RequestError(Exception):
    """A request which is not HTTP; the connection cannot be used further."""


class Connection(asyncio.StreamReaderProtocol):
    """One client's connection, which remembers when it was lost.

    Attributes:
        number: Counts connections, to tell polls over the same one.
        lost_at: Monotonic seconds at which it ended; `None` while it is up.
        gone: Set once it has ended.
        on_lost: Called when it ends; whoever holds a request of it may set this.
        serving: Work number of the agent whose poll it carries at present.
        served: Work number of the agent whose poll it carried last.
    """

    def __init__(self, number: int, connected: Callable[["Connection"], None]) -> None:
        self.number = number
        self.lost_at: float | None = None
        self.gone = asyncio.Event()
        self.on_lost: Callable[[float], None] | None = None
        self.serving: str | None = None
        self.served: str | None = None
        self.reader = asyncio.StreamReader(limit=LINE_LIMIT)
        self.writer: asyncio.StreamWriter
        self._notify = connected
        super().__init__(self.reader, self._streams_ready)

    def _streams_ready(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self._notify(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the moment, for the rule on pauses after a failure."""
        self.lost_at = time.monotonic()
        if self.on_lost is not None:
            self.on_lost(self.lost_at)
        super().connection_lost(exc)
        self.gone.set()

    @property
    def up(self) -> bool:
        """Say whether what is written can still arrive."""
        return self.lost_at is None and not self.writer.transport.is_closing()

    def cut(self) -> None:
        """End it without a goodbye."""
        self.writer.transport.abort()


@dataclass(slots=True, kw_only=True)
class Request:
    """One HTTP request.

    Attributes:
        at: Monotonic seconds at which its first line arrived.
        method: ``GET``, ...
        target: As it was sent.
        path: The target before ``?``, not decoded.
        query: What stands after ``?``; `None` without one.
        headers: Header lines, names in lower case, the last one of a name wins.
        body: The whole body.
        keep_alive: Whether the client wants to use the connection again.
    """

    at: float
    method: str
    target: str
    path: str
    query: str | None
    headers: dict[str, str]
    body: bytes = b""
    keep_alive: bool = True


@dataclass(slots=True, kw_only=True)
class Answer:
    """One HTTP answer before any trouble is put into it."""

    status: int = 200
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of an answer.

    Attributes:
        whole: Whether all of it was written to a connection that was up.
        written_at: Monotonic seconds just before its last piece went to the socket, so that a client which
            is very quick, on a machine that is very busy, is never measured as quicker than it was.
        reusable: Whether the connection may carry another request.
    """

    whole: bool
    written_at: float
    reusable: bool


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """Read the next request of a connection; `None` when the client has closed it.

    Raises:
        RequestError: It is not HTTP, or too large.
    """
    try:
        line = await reader.readline()
        at = time.monotonic()
        while line in {b"\r\n", b"\n"}:
            line = await reader.readline()
            at = time.monotonic()
        if not line.endswith(b"\n"):
            return None
        parts = line.decode("latin-1").split()
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):  # noqa: PLR2004  method, target, version
            raise RequestError(f"not a request line: {line[:80]!r}")
        headers: dict[str, str] = {}
        while (line := await reader.readline()) not in {b"\r\n", b"\n"}:
            name, colon, value = line.decode("latin-1").partition(":")
            if not line.endswith(b"\n"):
                return None
            if not colon:
                raise RequestError(f"not a header line: {line[:80]!r}")
            headers[name.strip().lower()] = value.strip()
        body = await _read_body(reader, headers)
    except (ValueError, asyncio.IncompleteReadError, ConnectionError) as err:
        if isinstance(err, ValueError):
            raise RequestError(f"too long a line: {err}") from err
        return None
    method, target, version = parts
    path, question, query = target.partition("?")
    connection = headers.get("connection", "").lower()
    return Request(
        at=at,
        method=method,
        target=target,
        path=path,
        query=query if question else None,
        headers=headers,
        body=body,
        keep_alive=connection == "keep-alive" if version == "HTTP/1.0" else connection != "close",
    )


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "transfer-encoding" in headers:
        raise RequestError("a chunked request; the gateway wants a length")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > _BODY_LIMIT:
        raise RequestError(f"not a usable length: {length[:80]}")
    return await reader.readexactly(int(length)) if int(length) else b""


async def send(connection: Connection, answer: Answer, *, fault: Fault = NONE, keep_alive: bool) -> Sent:
    """Write an answer as the fault wants it.

    Cancellation leaves the connection in the middle of an answer; it cannot be used after that.
    """
    reusable = keep_alive and fault.framing != "close" and fault.drop_after_bytes is None
    data = _render(answer, fault, reusable=reusable)
    if fault.drop_after_bytes is not None:
        data = data[: fault.drop_after_bytes]
    written_at = time.monotonic()
    try:
        while data and connection.up:
            size = _PIECE if fault.bytes_per_s is None else max(1, int(fault.bytes_per_s * _SLOW_STEP_S))
            piece, data = data[:size], data[size:]
            written_at = time.monotonic()
            connection.writer.write(piece)
            await connection.writer.drain()
            if data and fault.bytes_per_s is not None:
                await asyncio.sleep(len(piece) / fault.bytes_per_s)
    except ConnectionError:
        return Sent(whole=False, written_at=written_at, reusable=False)
    if fault.drop_after_bytes is not None:
        connection.cut()
        return Sent(whole=False, written_at=written_at, reusable=False)
    return Sent(whole=not data and connection.up, written_at=written_at, reusable=reusable)


def _render(answer: Answer, fault: Fault, *, reusable: bool) -> bytes:
    replaced = {name.lower() for name, _ in fault.headers}
    lines = [("Content-Type", "application/json;charset=UTF-8"), *answer.headers]
    lines = [(name, value) for name, value in lines if name.lower() not in replaced] + list(fault.headers)
    body = answer.body
    if fault.framing == "chunked":
        lines.append(("Transfer-Encoding", "chunked"))
        # Odd pieces: a boundary falls inside names, numbers and multi-byte characters.
        pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    elif fault.framing == "length":
        lines.append(("Content-Length", str(len(body))))
    if not reusable:
        lines.append(("Connection", "close"))
    # Tomcat, in which the gateway runs, sends no reason phrase.
    head = f"HTTP/1.1 {answer.status} \r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines) + "\r\n"
    return head.encode("latin-1") + body
