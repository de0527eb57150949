"""A gateway that answers at once, always in the same words: `python -m bench.instructions.peer DIRECTORY`.

It prints one line of JSON when it is ready, and ends when its standard input does. Whom it serves, a client says in its
address: ``/PID/KIND/COUNT``. After COUNT polls the session is over, and shortly after that the client gets a SIGTERM.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from adapter.simulator import sample
from adapter.simulator.certificates import make_context
from bench.support import HOST

SIGNED_OUT = "100-006"
EVENT_TYPES = ("AgentState_Ready", "AgentEvent_Ringing", "AgentEvent_Talking", "AgentEvent_Customer_Release")

_SETTLE_S = 0.3
"""How long a client has for what the last answer brought."""


def _answer(kind: str, number: int) -> str:
    """Make the answer to a client's poll: empty, or with the next event of a call."""
    if kind == "idle":
        return '{"message":"","retcode":"0"}'
    event = sample(EVENT_TYPES[number % len(EVENT_TYPES)], "101") | {"eventGenTime": 1_750_000_000_000 + number}
    return json.dumps({"message": "", "retcode": "0", "event": event})


class Peer:
    """Counts the polls of each client."""

    def __init__(self) -> None:
        self._polls: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                body = self._body(head.split(b" ", 2)[1].decode())
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _body(self, path: str) -> str:
        _, pid, kind, count, *rest = path.split("/")
        if "agentevent" not in rest:
            return _answer("idle", 0)
        self._polls[pid] += 1
        if self._polls[pid] <= int(count):
            return _answer(kind, self._polls[pid])
        asyncio.get_running_loop().call_later(_SETTLE_S, os.kill, int(pid), signal.SIGTERM)
        return json.dumps({"message": "", "retcode": SIGNED_OUT})


async def _run(directory: Path) -> None:
    tls, ca_file = make_context(HOST, directory, "right")
    server = await asyncio.start_server(Peer().serve, HOST, 0, ssl=tls)
    async with server:
        port = server.sockets[0].getsockname()[1]
        print(json.dumps({"port": port, "ca_file": str(ca_file)}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_run(Path(sys.argv[1])))
