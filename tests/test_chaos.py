"""The short form of `make chaos`, and the judge: it must find what it is there to find."""

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapter.publisher import WINDOW
from bench.chaos.evidence import Evidence
from bench.chaos.gateway import NUMBER
from bench.chaos.judge import judge
from bench.chaos.peers import Got, Sent
from bench.chaos.relay import Packets, Published, Relay
from bench.chaos.stage import Harm
from tests.chaos_support import row_of

pytestmark = pytest.mark.harm

_ROOT = Path(__file__).parent.parent
_KILLS = 5
_row = partial(row_of, lasts_s=0.1)
_WHOLE_S = 300.0


def _payload(number: int, **changes: Any) -> bytes:  # noqa: ANN401 - any JSON
    value = {"eventType": "AgentState_Ready", NUMBER: number, "id": f"id-{number}", "seq": number} | changes
    return json.dumps(value).encode()


def _sent(number: int, *, topic: str = "event", connection: int = 1, acked: bool = True, **changes: Any) -> Published:  # noqa: ANN401
    at = 100.0 + number / 2 + 0.2 + 50 * (connection - 1)
    return Published(
        at=at,
        connection=connection,
        topic=f"agents/101/{topic}",
        payload=_payload(number, **changes),
        retain=topic == "event",
        qos=1,
        acked_at=at + 0.01 if acked else None,
    )


def _both(number: int, **changes: Any) -> list[Published]:  # noqa: ANN401 - as `_sent` takes them
    return [_sent(number, topic=topic, **changes) for topic in ("events", "event")]


def _result(status: str = "applied", at: float = 103.0) -> Published:
    payload = json.dumps({"id": "command-1", "status": status}).encode()
    return Published(
        at=at,
        connection=1,
        topic="agents/101/calldata/result",
        payload=payload,
        retain=False,
        qos=1,
        acked_at=at + 0.01,
    )


def _good() -> Evidence:
    """Make a run of five events and one command in which everything is right."""
    ledger = [_row(place) for place in range(1, 6)]
    ledger[2] = ledger[2]._replace(calldata="value")
    published = [message for number in range(1, 6) for message in _both(number)] + [_result()]
    return Evidence(
        ledger=ledger,
        published=published,
        received=[Got(message.at + 0.1, message.topic, message.payload, retained=False) for message in published],
        commands=[Sent(work_no="101", id="command-1", value="value", sent_at=[101.0], results=[_result().payload])],
        harms=[],
        broker_lives=[(90.0, 500.0, False)],
        violations=[],
        stayed=frozenset({"101"}),
    )


_KILL = Harm(kind="kill", began_at=102.7, ended_at=102.75)


def _with(**changes: Any) -> Evidence:  # noqa: ANN401 - any of its fields
    return dataclasses.replace(_good(), **changes)


def _published(change: Callable[[list[Published]], None]) -> Evidence:
    """Change what was sent; the subscriber gets what was acknowledged of it."""
    published = list(_good().published)
    change(published)
    received = [Got(each.at, each.topic, each.payload, retained=False) for each in published if each.acked_at]
    return _with(published=published, received=received)


def _without(number: int) -> Evidence:
    def change(published: list[Published]) -> None:
        published[:] = [each for each in published if f'"{NUMBER}": {number},'.encode() not in each.payload]

    return _published(change)


def _renumbered(evidence: Evidence) -> Evidence:
    """Have `seq` close over the event that was never stored."""
    made = []
    for each in evidence.published:
        value = json.loads(each.payload)
        if value.get("seq", 0) > 3:
            value["seq"] -= 1
        made.append(dataclasses.replace(each, payload=json.dumps(value).encode()))
    received = [Got(each.at, each.topic, each.payload, retained=False) for each in made]
    return dataclasses.replace(evidence, published=made, received=received)


def _killed_at_the_third() -> Evidence:
    """Make a run in which the third answer went down with the adapter; the next poll came over a new connection."""
    later = [_row(4, began_at=104.0, connection=2), _row(5, began_at=104.5, connection=2)]
    ledger = [_row(1), _row(2), _row(3, ended_at=102.6), *later]
    evidence = _renumbered(_without(3))
    return dataclasses.replace(evidence, ledger=ledger, harms=[_KILL], commands=[])


def test_the_judge_finds_nothing_in_a_good_run() -> None:
    """Five events on both topics, and a command that was applied."""
    verdict = judge(_good())

    assert verdict.faults == []
    assert verdict.figures["events acknowledged on both topics"] == "5"


def test_the_judge_lets_a_kill_explain_one_event_of_an_agent() -> None:
    """What was on its way when the adapter was killed is counted, and is no fault."""
    verdict = judge(_killed_at_the_third())

    assert verdict.faults == []
    assert verdict.figures["answers lost between the wire and the commit, by a kill or a cut"] == "1"


def _repeat_too_much(published: list[Published]) -> None:
    first = [message for number in range(6, 8 + WINDOW) for message in _both(number, acked=False)]
    again = [message for number in range(6, 8 + WINDOW) for message in _both(number, connection=2)]
    published += [*first, *again]


def _repeat_old(published: list[Published]) -> None:
    published += [dataclasses.replace(each, connection=1) for each in _both(60)]
    published += [dataclasses.replace(each, connection=2, at=500.0) for each in published[:2]]


@pytest.mark.parametrize(
    ("evidence", "promise"),
    [
        (_without(3), "lost without a cause"),
        (_without(3), "holes in seq"),
        (dataclasses.replace(_killed_at_the_third(), harms=[]), "lost without a cause"),
        (
            dataclasses.replace(_killed_at_the_third(), ledger=[_row(place) for place in range(1, 6)]),
            "lost without a cause",
        ),
        (_with(ledger=_good().ledger[:4]), "nobody handed out"),
        (_published(lambda sent: sent.append(_sent(5, connection=2, seq=9))), "repeats that differ"),
        (_published(lambda sent: sent.extend(_both(5, connection=2, id="other", seq=6))), "two ids"),
        (_published(lambda sent: sent.insert(8, sent.pop(2))), "order"),
        (_published(lambda sent: sent.append(_sent(4))), "order"),
        (_published(lambda sent: sent.insert(9, sent.pop(7))), "order"),
        (_published(_repeat_too_much), "more repeats than the window"),
        (_published(_repeat_old), "although long acknowledged"),
        (_with(received=_good().received[2:]), "not with the subscriber"),
        (_with(broker_lives=[(200.0, 500.0, True)], received=_good().received[2:]), "not with the subscriber"),
        (_with(ledger=[_row(1, new_guid="new"), *_good().ledger[1:]]), "not the newest GUID"),
        (_with(published=_good().published[:-1]), "without a result"),
        (_published(lambda sent: sent.append(_result("expired", 104.0))), "results that differ"),
        (_published(lambda sent: sent.__setitem__(10, _result(at=101.2))), "executed after their result"),
        (
            _with(ledger=[_row(1), _row(2, calldata="value"), _row(3, calldata="value"), *_good().ledger[3:]]),
            "executed twice without a cause",
        ),
        (_with(ledger=[_row(place) for place in range(1, 6)]), "applied but never sent"),
        (_with(violations=[{"agent": "101", "kind": "pause", "text": "100 ms", "at": 101.0}]), "interface document"),
        (
            _with(violations=[{"agent": "101", "kind": "second_poll", "text": "", "at": 103.0}], harms=[_KILL]),
            "interface document",
        ),
    ],
)
def test_the_judge_finds_what_is_wrong(evidence: Evidence, promise: str) -> None:
    """Each promise, broken in one place, is named (D1, D2, D3, P8, C2, C3, C4, P1)."""
    faults = judge(evidence).faults

    assert [fault for fault in faults if promise in fault], faults


def test_what_a_killed_broker_forgot_is_counted_and_is_no_fault() -> None:
    """The promise ends at the PUBACK: what follows is the broker's."""
    verdict = judge(_with(broker_lives=[(90.0, 120.0, True)], received=_good().received[2:]))

    assert verdict.faults == []
    assert verdict.figures["acknowledged by a broker, then forgotten when it was killed"] == "2"


def test_packets_are_found_in_whatever_pieces_they_come() -> None:
    """MQTT's lengths of one byte and of two, cut anywhere."""
    stream = b"\x32\x05hello" + b"\xc0\x00" + b"\x30\xc8\x01" + bytes(200)
    for size in range(1, 12):
        packets = Packets()
        found = [
            packet for start in range(0, len(stream), size) for packet in packets.feed(stream[start : start + size])
        ]

        assert found == [(0x32, b"hello"), (0xC0, b""), (0x30, bytes(200))]


async def test_the_relay_cuts_half_way() -> None:
    """Half of what is sent arrives, and then both ends are gone."""
    arrived: list[bytes] = []
    begun, over = asyncio.Event(), asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(100):
                arrived.append(data)
                begun.set()
        writer.close()
        over.set()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server, Relay(server.sockets[0].getsockname()[1], lambda _: None) as relay:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
        writer.write(b"\xc0\x00")
        async with asyncio.timeout(10):
            await begun.wait()
        relay.cut_half_way()
        writer.write(b"\xc0\x00\xc0\x00")
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                await reader.read()
            await over.wait()
        writer.close()

    assert b"".join(arrived)[:2] == b"\xc0\x00"
    assert len(b"".join(arrived)) <= 4


async def test_nothing_is_lost_when_the_adapter_is_killed_at_any_moment() -> None:
    """D1, D2, D3, D4a, P8, P12, C3, C4: kills at a start, a reload, a stop, a backlog, and in between."""
    seed = random.randrange(10**6)  # noqa: S311 - chance, no secret
    options = ["--kills", str(_KILLS), "--agents", "50", "--pace", "0.3", "--seed", str(seed)]
    # Behind what is there: the wheel's `adapter` stays ahead of the tree's where that is tested.
    paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(_ROOT)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.chaos",
        *options,
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_WHOLE_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()

    assert process.returncode == 0, f"make chaos ARGS='{' '.join(options)}':\n{output.decode()}"
