"""An answer as it comes: bytes in, status, headers and body out, each within its bound."""

import asyncio

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
    """One answer, read by httptools.

    Attributes:
        head: Done when status and headers are there.
        whole: Done when the body is there too, or as much of it as may be.
        reusable: Whether the connection may serve another request.
    """

    def __init__(self, max_body_bytes: int) -> None:
        loop = asyncio.get_running_loop()
        self.head: asyncio.Future[None] = loop.create_future()
        self.whole: asyncio.Future[None] = loop.create_future()
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.reusable = True
        self._max_body_bytes = max_body_bytes
        self._received_bytes = 0
        self._framed = False
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)

    def close(self) -> None:
        """Let go of what refers back to this: thousands of such circles would be the collector's work.

        The parser does; and an error, by its traceback.
        """
        del self._parser, self.head, self.whole

    @property
    def is_whole(self) -> bool:
        """Whether all of it came, or as much as may."""
        return self.whole.done() and not self.whole.cancelled() and self.whole.exception() is None

    def feed(self, data: bytes) -> None:
        """Take a part of it.

        Raises:
            httpx.RemoteProtocolError: It is not HTTP, or its head is too large.
        """
        if self.whole.done():
            self.reusable = False
            return
        self._received_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as err:
            self.reusable = False
            if not self.whole.done():
                raise httpx.RemoteProtocolError(f"no HTTP answer: {err}") from err
        limit = MAX_HEAD_BYTES + _OVERHEAD * self._max_body_bytes if self.head.done() else MAX_HEAD_BYTES
        if self._received_bytes > limit and not self.whole.done():
            raise httpx.RemoteProtocolError(f"over {limit} bytes without an end")

    def end(self, error: httpx.TransportError, *, in_order: bool) -> None:
        """Note that no more comes. In order, that is the end of a body whose length nothing else says."""
        self.reusable = False
        if in_order and self.head.done() and not self._framed:
            self._finish()
        for part in (self.head, self.whole):
            if not part.done():
                part.set_exception(error)
                part.exception()  # whoever waits is told; nobody has to

    def _finish(self) -> None:
        if not self.whole.done():
            self.whole.set_result(None)

    # What httptools calls. After `whole` it may go on with what nobody asked for.

    def on_message_begin(self) -> None:
        """Note that another message begins: the first, one that follows a 1xx, or one that nobody asked for."""
        self.reusable = not self.whole.done()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        if not self.head.done():  # else it is a trailer
            self.headers.append((name, value))
            self._framed = self._framed or name.lower() in _FRAMING

    def on_headers_complete(self) -> None:
        """Take the status; an informational answer is followed by another."""
        if self.head.done():
            return
        self.status = self._parser.get_status_code()
        if self.status < _INFORMATIONAL.start:
            raise ValueError(self.status)
        if self.status in _INFORMATIONAL:
            self.headers.clear()
            self._framed = False
        else:
            self.head.set_result(None)

    def on_body(self, data: bytes) -> None:
        """Take a part of the body, as far as there may be more of it."""
        if self.whole.done():
            return
        self.body += data
        if len(self.body) > self._max_body_bytes:
            self.reusable = False
            self._finish()

    def on_message_complete(self) -> None:
        """Note the end, where headers or chunks say it."""
        if self.head.done() and not self.whole.done():
            self.reusable = self._parser.should_keep_alive()
            self._finish()
