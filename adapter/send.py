"""`ccgateway2mqtt calldata`: send a command as any other sender would, and wait for its result."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import msgspec

from adapter.config import MqttConfig
from adapter.errors import BrokerError, StartError
from adapter.mqtt import Dialer, Message, Received, Refusal
from adapter.payloads import ResultPayload
from adapter.topics import Topics, is_work_no

_T = TypeVar("_T")

_OVER_S = 25.0
"""How long a result may take over the command's `ttl`: the poll under way, and the one that takes it along."""


async def call_data(
    config: MqttConfig, work_no: str, value: str, ttl_s: int, tell: Callable[[str], None]
) -> ResultPayload:
    """Send call data and wait for the result.

    Raises:
        StartError: It cannot be sent, or no result came.
        BrokerError: The broker is not there, or refuses.
    """
    _look_at(work_no, value)
    topics = Topics(config.topic_prefix)
    availability = topics.bridge("availability")
    identifier = str(uuid.uuid4())
    answered: asyncio.Future[ResultPayload | None] = asyncio.get_running_loop().create_future()
    taken: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()

    def receive(received: Received) -> None:
        if received.topic == availability:
            # Retained: it was so when we came, and what we send is thrown away by the clean start to come. An
            # adapter that goes away later keeps what it has taken, and answers when it is back.
            if received.retain and received.payload == b"offline" and not answered.done():
                answered.set_result(None)
            return
        try:
            result = msgspec.json.decode(received.payload, type=ResultPayload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if result.id == identifier and not answered.done():
            answered.set_result(result)

    client_id = f"{config.client_id}-calldata-{uuid.uuid4().hex[:8]}"
    async with Dialer(config).connect(client_id=client_id, on_message=receive) as connection:
        # QoS 0: nats-server refuses every third subscription with QoS 1 while one of three nodes is away.
        await connection.subscribe([(topics.result(work_no, "calldata"), 0)])
        with contextlib.suppress(BrokerError):  # who may not read that only waits longer
            await connection.subscribe([(availability, 0)])
        command = json.dumps({"calldata": value, "id": identifier, "ttl": ttl_s}).encode()
        connection.publish(Message(topic=topics.command(work_no, "calldata"), payload=command), taken.set_result)
        lost = asyncio.ensure_future(connection.lost())
        try:
            refusal = await _first(taken, lost)
            if refusal is not None:
                topic = topics.command(work_no, "calldata")
                raise StartError(f"the broker refuses {topic}: {refusal.reason}", exit_code=1)
            tell(f"agent {work_no}: goes with the next poll; waiting for the result")
            async with asyncio.timeout(ttl_s + _OVER_S):
                result = await _first(answered, lost)
        except TimeoutError:
            raise StartError(f"no result within {ttl_s + _OVER_S:g} s: does the adapter run?", exit_code=1) from None
        finally:
            lost.cancel()
    if result is None:
        raise StartError(f"no adapter runs: {availability} is offline", exit_code=1)
    return result


def _look_at(work_no: str, value: str) -> None:
    """Refuse what cannot be sent at all; of anything else the adapter says what is wrong with it."""
    if not is_work_no(work_no):
        raise StartError(f"WORKNO: expected 1 to 64 of A-Z a-z 0-9 _ -, got {work_no!r}", exit_code=2)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise StartError("VALUE: expected UTF-8 text", exit_code=2) from None


async def _first(wanted: asyncio.Future[_T], lost: asyncio.Future[NoReturn]) -> _T:
    """Wait for an answer, or for the loss of the connection."""
    either: list[asyncio.Future[Any]] = [wanted, lost]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    return wanted.result() if wanted.done() else lost.result()
