"""`check --online` and `health`: looks from outside, which change nothing."""

import asyncio
import contextlib
import ssl
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from adapter.config import Config, GatewayConfig, MqttConfig
from adapter.errors import BrokerError, StartError
from adapter.gateway import tls_context
from adapter.mqtt import Dialer
from adapter.store.database import Lock

_TIMEOUT_S = 10.0
_CLOSE_S = 1.0
"""How long the gateway may take to say goodbye: whatever it does, it was reached."""
_BEAT_MISSED_S = 45.0
"""How old the sign of life may be: four of them are missing then."""


async def online(config: Config, mqtt: MqttConfig, tell: Callable[[str], None]) -> int:
    """Try the gateway's TLS and the broker's log-in; give the number of those that failed.

    Args:
        config: The configuration.
        mqtt: The broker, with the user to log in as.
        tell: Takes a line for each.
    """
    return await _gateway(config.gateway, tell) + await _broker(mqtt, tell)


async def _gateway(config: GatewayConfig, tell: Callable[[str], None]) -> int:
    address = urlsplit(config.url)
    port = address.port or (443 if address.scheme == "https" else 80)
    place = f"gateway {address.hostname}:{port}"
    if config.proxy is not None:
        tell(f"{place}: not tried, since it is reached through a proxy")
        return 0
    tls = tls_context(config) if address.scheme == "https" else None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            _, writer = await asyncio.open_connection(address.hostname, port, ssl=tls)
    except TimeoutError:
        tell(f"{place}: no answer within {_TIMEOUT_S:g} s")
        return 1
    except ssl.SSLCertVerificationError as error:
        tell(f"{place}: its certificate is refused: {error.verify_message}")
        return 1
    except (OSError, UnicodeError) as error:  # the latter: a name that cannot be looked up
        tell(f"{place}: {error}")
        return 1
    version = "without TLS" if tls is None else writer.get_extra_info("ssl_object").version()
    tell(f"{place}: reached, {version}")
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            await writer.wait_closed()
    return 0


async def _broker(config: MqttConfig, tell: Callable[[str], None]) -> int:
    client_id = f"{config.client_id}-check-{uuid.uuid4().hex[:8]}"
    try:
        async with Dialer(config).connect(client_id=client_id, on_message=lambda _: None) as connection:
            tell(f"broker {config.host}:{config.port}: logged in, MQTT {connection.protocol}")
    except BrokerError as error:
        tell(f"broker {error}")
        return 1
    return 0


def health(storage: Path) -> str:
    """Look at the sign of life of the adapter that uses `storage`; say how it is.

    Raises:
        StartError: It does not run, its loop hangs, or its database cannot be written.
    """
    beat = Lock.read(storage)
    if beat is None:
        raise StartError(f"{storage}: no adapter runs with it", exit_code=1)
    if "at" not in beat:
        return "starting"
    age_s = time.monotonic() - beat["at"]
    if age_s > _BEAT_MISSED_S:
        raise StartError(f"the adapter has given no sign of life for {age_s:.0f} s", exit_code=1)
    if not beat["writable"]:
        raise StartError("the adapter cannot store events: is the disk full?", exit_code=1)
    return "well" if beat["connected"] else "well, but not connected to the broker"
