"""Answers as they come over one connection: bytes in, status, headers and body out, each within its bound."""

import asyncio
from collections.abc import AsyncIterator

import httptools
import httpx

MAX_HEAD_BYTES = 64 * 1024
"""The largest head of an answer: some cookies of 4 KiB fit."""

_OVERHEAD = 4
"""How many times the largest body may come on its way, chunks and trailers counted in."""
_INFORMATIONAL = range(100, 200)
_FRAMING = (b"content-length", b"transfer-encoding")
"""Headers that say where a body ends. Without them it ends with the connection (RFC 9112, 6.3)."""


class Reading:
    """One answer after the other, read by httptools.

    Attributes:
        over: Done when no more of the answer is to come, for whatever reason.
        status: The answer's status; 0 before its head is there.
        whole: Whether its body is there too, or as much of it as may be.
        reusable: Whether the connection may serve another request.
    """

    __slots__ = (
        "__weakref__",
        "_body",
        "_error",
        "_framed",
        "_headers",
        "_max_body_bytes",
        "_parser",
        "_received_bytes",
        "_room",
        "over",
        "reusable",
        "status",
        "whole",
    )

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)
        self.over: asyncio.Future[None] | None = None
        self._headers: list[tuple[bytes, bytes]]
        self._body: list[bytes]
        self._error: httpx.TransportError | None
        self._forget()

    @property
    def expected(self) -> bool:
        """Whether an answer is waited for."""
        return self.over is not None

    def begin(self) -> asyncio.Future[None]:
        """Expect an answer; give `over`."""
        self.over = asyncio.get_running_loop().create_future()
        return self.over

    def response(self, request: httpx.Request) -> httpx.Response:
        """Give what came; where that is not all, the body raises what ended it.

        Raises:
            httpx.TransportError: It ended before there was a head.
        """
        error, self._error = self._error, None
        if error is not None and not self.status:
            try:
                raise error
            finally:
                del error  # whose traceback refers to this frame
        stream = _Body(b"".join(self._body), error)
        return httpx.Response(self.status, headers=self._headers, stream=stream, request=request)

    def done(self) -> None:
        """Have done with an answer."""
        self.over = None
        self._forget()

    def close(self) -> None:
        """Let go of the parser, which refers back to this: thousands of such circles would be the collector's work."""
        self.done()
        del self._parser

    def feed(self, data: memoryview) -> None:
        """Take a part of it.

        Raises:
            httpx.RemoteProtocolError: It is not HTTP, or its head is too large.
        """
        if self.whole:
            self.reusable = False
            return
        self._received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as err:
            self.reusable = False
            if not self.whole:
                raise httpx.RemoteProtocolError(f"no HTTP answer: {err}") from err
        limit = MAX_HEAD_BYTES + _OVERHEAD * self._max_body_bytes if self.status else MAX_HEAD_BYTES
        if self._received_bytes > limit and not self.whole:
            raise httpx.RemoteProtocolError(f"over {limit} bytes without an end")

    def end(self, error: httpx.TransportError, *, in_order: bool = False) -> None:
        """Note that no more comes. In order, that is the end of a body whose length nothing else says."""
        self.reusable = False
        if in_order and self.status and not self._framed:
            self._finish()
        elif not self.whole:
            # Without its traceback and what led to it, which refer to this.
            self._error = error.with_traceback(None)
            error.__cause__ = error.__context__ = None
            self._wake()

    def _finish(self) -> None:
        self.whole = True
        self._wake()

    def _wake(self) -> None:
        if self.over is not None and not self.over.done():
            self.over.set_result(None)

    def _forget(self) -> None:
        self.status = 0
        self.whole = False
        self.reusable = True
        self._headers = []
        self._body = []
        self._room = self._max_body_bytes
        self._received_bytes = 0
        self._framed = False
        self._error = None

    # What httptools calls. After the end it may go on with what nobody asked for.

    def on_message_begin(self) -> None:
        """Note that another message begins: the first, one that follows a 1xx, or one that nobody asked for."""
        self.reusable = not self.whole

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        if not self.status:  # else it is a trailer
            self._headers.append((name, value))
            self._framed = self._framed or name.lower() in _FRAMING

    def on_headers_complete(self) -> None:
        """Take the status; an informational answer is followed by another."""
        if self.status:
            return
        status = self._parser.get_status_code()
        if status < _INFORMATIONAL.start:
            raise ValueError(status)
        if status in _INFORMATIONAL:
            self._headers.clear()
            self._framed = False
        else:
            self.status = status

    def on_body(self, data: bytes) -> None:
        """Take a part of the body, as far as there may be more of it."""
        if self.whole:
            return
        self._body.append(data)
        self._room -= len(data)
        if self._room < 0:
            self.reusable = False
            self._finish()

    def on_message_complete(self) -> None:
        """Note the end, where headers or chunks say it."""
        if self.status and not self.whole:
            self.reusable = self._parser.should_keep_alive()
            self._finish()


class _Body(httpx.AsyncByteStream):
    """The body of an answer, or why there is none."""

    def __init__(self, body: bytes, error: httpx.TransportError | None) -> None:
        self._body = body
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the whole body at once: nobody has use for half of one."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # as above
        yield self._body
