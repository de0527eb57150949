"""A gateway that repeats every secret it is told, wherever an answer has room for it, and what to look for then.

Written by hand, since a simulator of the real gateway has no such answers. All secrets of these tests begin with
`MARK`; a test that finds it where no secret belongs has found a leak, however the value was cut.
"""

import asyncio
import base64
import json
import re
import ssl
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self
from urllib.parse import unquote

import trustme

MARK = b"kanari"
PIECES = (MARK, *(base64.b64encode(b" " * blanks + MARK)[4:8] for blanks in (1, 2)), base64.b64encode(MARK)[:8])
"""The mark as it is, and what base64 makes of it at any of the three places where it can begin (a proxy's log-in)."""

_OK = b'{"retcode":"0","message":"","event":{}}'
_STATUS = b'{"retcode":"0","message":"","result":{"agentState":4}}'
_HOLD_S = 0.3


def secret(what: str) -> str:
    """Make a secret that can be told from all others; it is short enough for every place that takes one."""
    return f"{MARK.decode()}-{what}-{uuid.uuid4().hex[:8]}"


def leaks(data: bytes) -> list[bytes]:
    """Find secrets in what was said, with what stands around them."""
    pattern = b"|".join(re.escape(piece) for piece in PIECES)
    return [data[max(0, match.start() - 80) : match.end() + 40] for match in re.finditer(pattern, data, re.IGNORECASE)]


def answer(body: bytes | str = _OK, *headers: str, status: str = "200 OK", length: bool = True) -> bytes:
    """Write an answer out."""
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", *headers, *([f"Content-Length: {len(content)}"] if length else [])]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + content


def _refusal(code: str, message: str) -> bytes:
    return answer(json.dumps({"retcode": code, "message": message, "event": {}}))


FAULTS: dict[str, Callable[[str], bytes]] = {
    "redirect": lambda told: answer(told, f"Location: https://127.0.0.1/{told}", status="302 Found"),
    "error-page": lambda told: answer(told, f"X-Request: {told}", status="500 Error"),
    "status-text": lambda told: answer(told, status=f"503 {told}"),
    "no-http": lambda told: f"{told}\r\n\r\n".encode(),
    "status-line": lambda told: f"HTTP/1.1 200 \x01{told}\r\n\r\n".encode(),
    "header-line": lambda told: answer(_OK, f"Set-GUID: JSESSIONID={told}\0"),
    "header-name": lambda told: answer(_OK, f"{told} x: y"),
    "nul": lambda told: answer(_OK, f"Set-Cookie: sid={told}\0"),
    "chunk": lambda told: answer(f"{told}\r\n", "Transfer-Encoding: chunked", length=False),
    "coding": lambda told: answer(_OK, f"Transfer-Encoding: {told}", length=False),
    "length": lambda told: answer(_OK, f"Content-Length: {told}", length=False),
    "upgrade": lambda told: answer(told, f"Upgrade: {told}", status=f"101 {told}"),
    "charset": lambda told: answer(told, f"Content-Type: application/json; charset={told}"),
    "packed": lambda told: answer(told, "Content-Encoding: gzip"),
    "odd-guid": lambda told: answer(_OK, f"Set-GUID: JSESSIONID={told} and more"),
    "odd-cookie": lambda told: answer(_OK, f"Set-Cookie: {told}", f"Set-Cookie: a\x7f={told}"),
    "no-json": answer,
    "cut": lambda told: answer('{"retcode":"0","event":{"x":"' + told),
    "no-type": lambda told: answer(json.dumps({"retcode": "0", "event": {told: 1}})),
    "text-event": lambda told: answer(json.dumps({"retcode": "0", "event": told})),
    "no-retcode": lambda told: answer(json.dumps({"message": told})),
    "retcode": lambda told: _refusal(told, told),
    "refusal": lambda told: _refusal("100-005", f"not so: {told}"),
    "glued": lambda told: _refusal("100-005", f"guid{told}guid {told.upper()}"),
    "long": lambda told: _refusal("100-005", "x" * (490 - len(told) % 40) + f" {told}"),
    "new-cookie": lambda told: answer(
        json.dumps({"retcode": "100-005", "message": told}), f"Set-Cookie: lb={secret('cookie')}"
    ),
    "ended": lambda told: _refusal("100-006", f"no session {told}"),
    "deep": lambda told: answer('{"retcode":"0","event":' + '{"a":' * 70 + json.dumps(told) + "}" * 71),
    "large": lambda told: answer(told.encode() + b" " * 1_100_000),
    "half": lambda told: answer(told + " " * 9)[:-9],
}
"""Answers that repeat what the request told; each is the work number's in small letters too."""


class Parrot:
    """The gateway.

    Args:
        directory: For its certificate.
        scripts: The answers to the first requests of an agent, by work number; `FAULTS` of them where one is named so.

    Attributes:
        url: Its address, as `gateway.url`.
        asked: How many requests came, by work number.
        heard: Every head and body that it was sent.
        go_on: While it is not set, no poll is answered.
    """

    def __init__(self, directory: Path, scripts: dict[str, list[Callable[[str], bytes]]]) -> None:
        authority = trustme.CA()
        self.ca_file = directory / "parrot.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._tls)
        self._scripts = {work_no: deque(script) for work_no, script in scripts.items()}
        self._clients: set[asyncio.StreamWriter] = set()
        self.asked: dict[str, int] = {}
        self.heard: list[bytes] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.url = f"https://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/agentgateway"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._clients:
            writer.transport.abort()
        await self._server.wait_closed()

    def script(self, work_no: str, *answers: Callable[[str], bytes]) -> None:
        """Say how the next requests of an agent are answered."""
        self._scripts.setdefault(work_no, deque()).extend(answers)

    def spent(self) -> bool:
        """Say whether every answer of the scripts was given."""
        return not any(self._scripts.values())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?im)^content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                writer.write(await self._answer(head, body))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _answer(self, head: bytes, body: bytes) -> bytes:
        self.heard.append(head + body)
        path = head.split(b" ")[1].decode()
        work_no = path.removeprefix("/agentgateway/resource/").split("/")[1].split("?")[0]
        self.asked[work_no] = self.asked.get(work_no, 0) + 1
        # The state is asked for beside the polls; it is answered as usual, so that the script is the polls'.
        if path.endswith("agentstatus"):
            return answer(_STATUS)
        await self.go_on.wait()
        script = self._scripts.get(work_no)
        if script:
            return script.popleft()(_told(head, body))
        if b"GET" in head:
            await asyncio.sleep(_HOLD_S)
        return answer(_OK)


def _told(head: bytes, body: bytes) -> str:
    """List the secrets that a request told: GUID, cookies, call data, password."""
    text = unquote(head.decode("latin-1")) + body.decode()
    return " ".join(dict.fromkeys(re.findall(rf"{MARK.decode()}-[a-z]+-[0-9a-f]{{8}}", text)))
