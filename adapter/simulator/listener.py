"""The listening socket and its connections: one task each, which reads requests and has them answered."""

import asyncio
import itertools
import ssl
from collections.abc import Awaitable, Callable

from adapter.simulator.wire import Connection, Request, RequestError, Sent, read_request

_HANDSHAKE_S = 10.0
_SHUTDOWN_S = 1.0
_BACKLOG = 4096

Answerer = Callable[[Request | str, Connection], Awaitable[Sent]]
"""Answers a request; gets a text in its place where what came is not one."""


class Listener:
    """Listens, and can go away and come back on the same port."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, answer: Answerer) -> None:
        self._host = host
        self._port = port
        self._context = context
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)

    def connections(self) -> tuple[Connection, ...]:
        """List the connections that are open."""
        return tuple(self._connections)

    async def open(self) -> int:
        """Listen, and say on which port."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(next(self._numbers), self._connected),
            self._host,
            self._port,
            ssl=self._context,
            ssl_handshake_timeout=_HANDSHAKE_S,
            ssl_shutdown_timeout=_SHUTDOWN_S,
            backlog=_BACKLOG,
        )
        port: int = self._server.sockets[0].getsockname()[1]
        self._port = port
        return port

    async def close(self) -> None:
        """Stop listening, cut every connection, and end what is still being answered."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self.connections():
            connection.cut()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _connected(self, connection: Connection) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(connection), name=f"simulator[{connection.number}]")
        self._connections.add(connection)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: Connection) -> None:
        try:
            while (request := await read_request(connection.reader)) is not None:
                sent = await self._answer(request, connection)
                if not sent.reusable:
                    break
        except RequestError as err:
            await self._answer(str(err), connection)
        finally:
            connection.writer.close()
            await connection.gone.wait()
            self._connections.discard(connection)
