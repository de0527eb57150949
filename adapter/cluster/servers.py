"""The connection to the NATS servers, which nats-py makes again when it is lost.

Rule of this file: where the address says TLS, nothing is sent without.
"""

import asyncio
import contextlib
import logging
import ssl
from typing import Any

import nats.errors
from nats.aio.client import Client

from adapter.config import ClusterConfig
from adapter.errors import ClusterUnavailableError, StartError

_log = logging.getLogger(__name__)

_CONNECT_S = 2
_RECONNECT_S = 0.25
_PING_S = 1.5
"""How often a server is asked whether it is still there; twice in vain, and another one is taken."""
_CLOSE_S = 1.0
_TRIES = 3
_REFUSED = "authorization violation"
_DENIED = "permissions violation"
_NOTHING_WRONG = ("returning true from eof_received()", "socket.send() raised exception")


class _Secured(Client):
    """A client that sends nothing, its password above all, to a server that should speak TLS and does not."""

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002 - nats-py's own signature
        server = self._current_server
        if initial_connection and server is not None and server.uri.scheme == "tls" and not info.get("tls_required"):
            raise nats.errors.Error(
                f"{server.uri.hostname}:{server.uri.port} does not demand TLS, and the address does"
            )
        await super()._process_info(info, initial_connection)


async def dial(config: ClusterConfig, name: str) -> Client:
    """Connect to the first server that answers, each tried for 2 s; once more where one hangs up.

    One that refuses the log-in says so and hangs up: with what was sent meanwhile unread, its words may be lost.

    Args:
        config: Where they are.
        name: What they shall call us.

    Raises:
        StartError: A server refuses the log-in.
        ClusterUnavailableError: None answers.
    """
    logging.getLogger("asyncio").addFilter(_is_something_wrong)
    for _ in range(_TRIES - 1):
        with contextlib.suppress(_HungUpError):
            return await _dial_once(config, name)
    return await _dial_once(config, name)


async def limit_of(config: ClusterConfig, name: str) -> int:
    """Say how many bytes a message may have, as a server tells who connects. Arguments and errors as of `dial`."""
    client = await dial(config, name)
    try:
        return client.max_payload
    finally:
        await hang_up(client)


class _HungUpError(ClusterUnavailableError):
    """A server hung up, and did not say why."""


async def _dial_once(config: ClusterConfig, name: str) -> Client:
    client = _Secured()
    told: dict[str, str] = {}

    async def failed(err: Exception) -> None:
        text = told["last"] = reason_of(err)
        if _DENIED in text.lower() and text not in told:
            told[text] = text
            _log.warning("cluster: denied to %s: %s", config.username or "this user", text)
        else:
            _log.debug("cluster: %s", text)

    try:
        async with asyncio.timeout(_CONNECT_S * len(config.urls) + 1):
            await client.connect(
                list(config.urls),
                name=name,
                error_cb=failed,
                connect_timeout=_CONNECT_S,
                reconnect_time_wait=_RECONNECT_S,  # type: ignore[arg-type] # it sleeps for so long
                max_reconnect_attempts=-1,
                allow_reconnect=False,
                ping_interval=_PING_S,  # type: ignore[arg-type] # as above
                tls=_tls_context(config),
                user=config.username,
                password=config.password,
                user_credentials=None if config.credentials is None else str(config.credentials),
            )
    except (nats.errors.Error, OSError, TimeoutError) as err:
        await hang_up(client)
        reason = told.get("last") or reason_of(err)
        if _REFUSED in reason.lower():
            raise StartError("cluster: log-in refused", exit_code=1) from err
        if isinstance(err, ConnectionResetError):
            raise _HungUpError(reason) from err
        raise ClusterUnavailableError(reason) from err
    client.options["allow_reconnect"] = True
    return client


def _is_something_wrong(record: logging.LogRecord) -> bool:
    """Leave out what asyncio says of nats-py: at the end over TLS, and where it writes on after a connection's end."""
    return not record.getMessage().startswith(_NOTHING_WRONG)


async def hang_up(client: Client) -> None:
    """Close a connection, whatever its state."""
    with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_S):  # after a handshake that failed, asyncio waits for ever
            await client.close()


def heed_cancellation() -> None:
    """End a task that was told to end: who waits for servers again and again asks here, each time.

    `asyncio.wait_for`, of which all of nats-py is made, loses a cancellation that comes together with an answer, up to
    Python 3.11: one stop of a member in a hundred did not come to an end.

    Raises:
        asyncio.CancelledError: It was told to.

    Source:
        CPython's issue 86296, "AsyncIO's wait_for can hide cancellation in a rare race condition".
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def reason_of(err: Exception) -> str:
    """Say what is wrong, as the servers do."""
    return getattr(err, "description", None) or str(err).removeprefix("nats: ") or type(err).__name__


def _tls_context(config: ClusterConfig) -> ssl.SSLContext | None:
    if not config.urls[0].startswith("tls://"):
        return None
    context = ssl.create_default_context(cafile=config.ca_file)
    if config.cert_file is not None:
        context.load_cert_chain(config.cert_file, config.key_file)
    return context
