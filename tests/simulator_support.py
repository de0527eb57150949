"""Drives the simulator with curl and with raw TLS streams, never with the program's own client."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from adapter.simulator import Simulator

CONTENT_TYPE = "application/json; charset=UTF-8"
DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What curl saw: `exit_code` is curl's own, 0 when a whole answer came."""

    exit_code: int
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401  whatever JSON can say
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def retcode(self) -> str:
        """The answer's retcode."""
        return str(self.json["retcode"])

    @property
    def guid(self) -> str | None:
        """The new GUID which the answer brought, if any."""
        value = self.headers.get("set-guid")
        return None if value is None else value.removeprefix("JSESSIONID=")


async def curl(simulator: Simulator, *arguments: str) -> Reply:
    """Run curl with the simulator's CA; the answer's head is parsed, its body is not."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "-i", "--raw", "--max-time", "8", "--cacert", str(simulator.ca_file), *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    head, _, body = output.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    status = int(lines[0].split()[1]) if lines[0].startswith("HTTP/") else 0
    return Reply(exit_code=process.returncode or 0, status=status, headers=headers, body=body)


def poll_url(simulator: Simulator, work_no: str, query: str = "") -> str:
    """Make the address of an agent's poll."""
    return f"{simulator.url}/resource/agentevent/{work_no}{query}"


def session_url(simulator: Simulator, work_no: str, action: str = "") -> str:
    """Make the address of a request about an agent's session."""
    return f"{simulator.url}/resource/onlineagent/{work_no}{action}"


def poll_headers(guid: str) -> list[str]:
    """Make curl's options for the headers that the document asks for."""
    return ["-H", f"Content-Type: {CONTENT_TYPE}", "-H", f"Guid: {guid}"]


async def poll(
    simulator: Simulator, work_no: str = "101", *options: str, guid: str | None = None, query: str = ""
) -> Reply:
    """Poll once as the document asks for, with the agent's newest GUID unless another is given."""
    guid = simulator.guid(work_no) if guid is None else guid
    return await curl(simulator, *poll_headers(guid), *options, poll_url(simulator, work_no, query))


async def sign_in(
    simulator: Simulator,
    work_no: str = "101",
    *,
    force: bool = False,
    body: Mapping[str, object] | None = None,
) -> Reply:
    """Sign an agent in with its own credentials, or other members given in `body`."""
    content = {"password": f"pw-{work_no}", "phonenum": f"8{work_no}", "status": "4", **(body or {})}
    url = session_url(simulator, work_no, "/forcelogin" if force else "")
    return await curl(simulator, "-X", "PUT", "-H", f"Content-Type: {CONTENT_TYPE}", "-d", json.dumps(content), url)


@contextlib.asynccontextmanager
async def raw_connection(
    simulator: Simulator,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a TLS connection to the simulator, for what curl would not send."""
    port = int(simulator.url.split(":")[2].split("/")[0])
    context = ssl.create_default_context(cafile=str(simulator.ca_file))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()


def raw_poll(simulator: Simulator, work_no: str = "101", *, guid: str | None = None) -> bytes:
    """Write out a poll."""
    guid = simulator.guid(work_no) if guid is None else guid
    return (
        f"GET /agentgateway/resource/agentevent/{work_no} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Type: {CONTENT_TYPE}\r\nGuid: {guid}\r\n\r\n"
    ).encode()


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """Read one answer with a length from a raw connection, and give its body."""
    async with asyncio.timeout(DEADLINE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        return await reader.readexactly(length)


def kinds(simulator: Simulator) -> list[str]:
    """List the kinds of violations so far."""
    return [violation.kind for violation in simulator.violations]


async def keep_polling(simulator: Simulator, work_no: str) -> None:
    """Poll an agent over and over on raw connections, until cancelled; a connection that ends is made anew."""
    while True:
        try:
            async with raw_connection(simulator) as (reader, writer):
                while True:
                    writer.write(raw_poll(simulator, work_no))
                    await read_answer(reader)
        except (ConnectionError, asyncio.IncompleteReadError, StopIteration, ssl.SSLError):
            await asyncio.sleep(0.01)
