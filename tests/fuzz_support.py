"""What holds of every payload that anybody can publish on a command topic, and a place to try it on.

`check` looks at the values alone, `Target` at a whole program: processes of their own, so that what they log is seen.
"""

import asyncio
import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from adapter.bridge import Request, _parse, _request_id
from adapter.command import Parsed, check_properties, parse_call_data, parse_session, sender_id, settled
from adapter.errors import CommandError
from adapter.gateway import is_guid
from adapter.mqtt import Received
from adapter.payloads import LogLevelRequest, RequestPayload
from adapter.store.records import CommandRecord
from adapter.topics import is_work_no
from tests.broker_support import DEADLINE_S, Broker, Peer
from tests.contract_support import valid

SECRET = "S3CRET-c4nary"  # noqa: S105 - what must not come back
AGENTS = tuple(str(number) for number in range(101, 121))
STRANGERS = ("999", "", "bridge", "x" * 64, "x" * 65, "ünï code", "-", "_")
"""What somebody may write where a work number belongs, and is none of ours."""
ANSWERS = "answers"
_RESULT_BYTES = 2500
_CORPUS = Path(__file__).parent / "corpus" / "commands.jsonl"
_MISTAKES = re.compile(r"Traceback|a mistake of this program|never retrieved| error ")


def corpus() -> list[bytes]:
    """Read the payloads that were found interesting."""
    lines = [json.loads(line) for line in _CORPUS.read_text().splitlines()]
    return ["".join(text * times for text, times in line["parts"]).encode("latin-1") for line in lines]


_PIECES = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\\",
        b"\\u",
        b"\\ud83d",
        b"null",
        b"true",
        b"NaN",
        b"1e999",
        b"-",
        b"0" * 40,
    ),
    *(b'"calldata"', b'"id"', b'"ttl"', b'"action"', b'"guid"', b'"sign_in"', b"\x00", b"\n", b"\xff", b"\xed\xa0\x80"),
    *("\u2028".encode(), "😀".encode(), b" " * 50, b"x" * 2000, b"[" * 1500, b"x" * 9000),
)


def spoilt(chance: random.Random) -> Iterator[bytes]:
    """Make payloads without end: those of the corpus, cut, joined and spoilt."""
    seeds = [payload for payload in corpus() if len(payload) < 5000]
    while True:
        payload = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 6)):
            place = chance.randint(0, len(payload))
            match chance.randrange(5):
                case 0:
                    payload[place : place + chance.randint(0, 8)] = b""
                case 1:
                    payload[place:place] = chance.choice(_PIECES)
                case 2:
                    payload[place : place + 1] = bytes([chance.randrange(256)])
                case 3:
                    payload[place:place] = payload[: chance.randint(0, len(payload))]
                case _:
                    payload[place:] = chance.choice(seeds)
        yield bytes(payload)


def received(payload: bytes, *, retain: bool = False) -> Received:
    """Make a message with a payload."""
    return Received(topic="t", payload=payload, retain=retain, qos=1, mid=1, correlation=None, response_topic=None)


def check(payload: bytes) -> None:
    """See that a payload is understood or refused, on each of the three kinds of topics, and nothing else."""
    identifier = sender_id(payload)
    assert identifier is None or (0 < len(identifier) <= 64 and identifier.isprintable())
    try:
        request = _request_id(received(payload))
        for asked in (RequestPayload, LogLevelRequest):
            with contextlib.suppress(CommandError):
                _parse(payload, Request(asyncio.sleep, asked))
    except CommandError as error:
        _check_reason(error.reason)
    else:
        assert request is None or 0 < len(request) <= 64
    for kind in ("calldata", "session"):
        reason: str | None = None
        try:
            if kind == "calldata":
                parsed = parse_call_data(payload)
                _check_call_data(payload, parsed)
            else:
                parsed = parse_session(payload, is_guid=is_guid)
                _check_order(parsed)
            assert parsed.id is None or parsed.id == identifier
            check_properties(b"x" * 64, None)
        except CommandError as error:
            reason = error.reason
            _check_reason(reason)
        command = CommandRecord(
            work_no="101", kind=kind, id=identifier or str(uuid.uuid4()), body=b"x", received_at=1.8e9, correlation=b"x"
        )
        done = settled(command, status="rejected", reason=reason)
        assert done.result is not None
        assert (done.body, done.correlation, done.response_topic) == (b"", None, None)
        assert len(done.result) < _RESULT_BYTES
        assert json.loads(done.result)["id"] == command.id


def _check_call_data(payload: bytes, parsed: Parsed) -> None:
    text = parsed.body.decode()
    assert 0 < len(parsed.body) <= 2048
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in text)
    assert parsed.ttl_s is not None
    assert 1 <= parsed.ttl_s <= 3600
    if parsed.body != payload:  # then it was a command object
        members = json.loads(payload)
        assert members["calldata"] == text
        assert members.keys() <= {"calldata", "id", "ttl"}


def _check_order(parsed: Parsed) -> None:
    order = json.loads(parsed.body)
    assert order["action"] in ("sign_in", "sign_out")
    assert "guid" not in order or (order["action"] == "sign_in" and is_guid(order["guid"]))
    assert parsed.ttl_s is None


def _check_reason(reason: str) -> None:
    assert reason
    assert reason.isprintable()
    assert len(reason) < 500
    assert SECRET not in reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One message to send.

    Attributes:
        place: The level at which a work number belongs, or the name of a request.
        kind: ``calldata``, ``session`` or ``request``.
    """

    place: str
    kind: str
    payload: bytes
    qos: int = 1
    correlation: bytes | None = None
    response_topic: str | None = None


class Target:
    """A simulator and an adapter in processes of their own, which get all that is thrown at them.

    Attributes:
        prefix: Its topic prefix.
    """

    def __init__(self, broker: Broker, directory: Path) -> None:
        self.prefix = f"t{uuid.uuid4().hex[:8]}"
        self._directory = directory
        self._broker = broker
        self._seen: set[tuple[str, str, str]] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            simulator = self._start(stack, "simulate", "--agents", str(len(AGENTS)), "--hold", "0.2")
            assert simulator.stdout is not None
            gateway = json.loads(simulator.stdout.readline())
            self.peer = stack.enter_context(Peer(self._broker, [f"{self.prefix}/#", f"{self.prefix}-{ANSWERS}/#"]))
            config = self._directory / "config.yaml"
            config.write_text(yaml.safe_dump(self._settings(gateway)))
            self.process = self._start(stack, "run", "-c", str(config))
            self.peer.wait_for_blocking(lambda: all(self._polls(agent) for agent in AGENTS), 2 * DEADLINE_S)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _settings(self, gateway: dict[str, Any]) -> dict[str, Any]:
        known = {agent["workNo"]: agent["guid"] for agent in gateway["agents"]}
        return {
            "gateway": {"url": gateway["url"], "ca_file": gateway["ca_file"], "hold": 0.2, "timeout": 5},
            "mqtt": {
                "url": self._broker.url(),
                "topic_prefix": self.prefix,
                "client_id": self.prefix,
                "response_prefix": f"{self.prefix}-{ANSWERS}",
            },
            "agents": [{"work_no": agent, "guid": known[agent]} for agent in AGENTS],
        }

    def _start(self, stack: ExitStack, *arguments: str) -> subprocess.Popen[str]:
        log = stack.enter_context((self._directory / f"{arguments[0]}.log").open("a"))
        process = subprocess.Popen(
            [sys.executable, "-m", "adapter", *arguments], stdout=subprocess.PIPE, stderr=log, text=True
        )
        stack.callback(_end, process)
        return process

    def _polls(self, agent: str) -> bool:
        return any(b'"polling"' in payload for payload in self.peer.payloads(f"{self.prefix}/{agent}/session"))

    def topic(self, shot: Shot) -> str:
        """Name the topic that a shot goes to."""
        if shot.kind == "request":
            return f"{self.prefix}/bridge/request/{shot.place}"
        return f"{self.prefix}/{shot.place}/{shot.kind}/set"

    def answer_topic(self, shot: Shot) -> str:
        """Name the topic on which a shot is answered."""
        if shot.kind == "request":
            return f"{self.prefix}/bridge/response/{shot.place if shot.place in ('agents', 'reload') else 'unknown'}"
        return f"{self.prefix}/{shot.place}/{shot.kind}/result"

    async def fire(self, shots: Sequence[Shot]) -> None:
        """Send messages, and see that each gets its one answer: no more, and less only where an id comes again."""
        least: Counter[str] = Counter()
        most: Counter[str] = Counter()
        before = Counter(message.topic for message in list(self.peer.messages))
        for shot in shots:
            topic = self.answer_topic(shot)
            most[topic] += 1
            least[topic] += 0 if self._is_repeat(shot) else 1
            await self.peer.publish(
                self.topic(shot),
                shot.payload,
                qos=shot.qos,
                correlation=shot.correlation,
                response_topic=shot.response_topic,
            )
        # Behind all of them, for each agent: what answers it has answered them.
        last = [f"last-{uuid.uuid4()}" for _ in AGENTS]
        for agent, identifier in zip(AGENTS, last, strict=True):
            await self.peer.publish(
                f"{self.prefix}/{agent}/session/set", json.dumps({"action": "fence", "id": identifier})
            )
            most[f"{self.prefix}/{agent}/session/result"] += 1
            least[f"{self.prefix}/{agent}/session/result"] += 1

        def answered() -> bool:
            now = Counter(message.topic for message in list(self.peer.messages))
            return all(now[topic] - before[topic] >= count for topic, count in least.items())

        await self.peer.wait_for(answered, 2 * DEADLINE_S)
        now = Counter(message.topic for message in list(self.peer.messages))
        assert {topic: now[topic] - before[topic] for topic in most if now[topic] - before[topic] > most[topic]} == {}

    def _is_repeat(self, shot: Shot) -> bool:
        identifier = sender_id(shot.payload)
        if shot.kind == "request" or identifier is None or not is_work_no(shot.place):
            return False
        key = (shot.place, shot.kind, identifier)
        if key in self._seen:
            return True
        self._seen.add(key)
        return False

    def see_that_all_is_well(self) -> None:
        """Look at what was published and logged: nothing but what is promised, no secret, no mistake of ours."""
        assert self.process.poll() is None
        assert valid(self.peer, self.prefix)
        sent = ("/set", "/request/")
        for message in list(self.peer.messages):
            if not message.topic.endswith(sent[0]) and sent[1] not in message.topic:
                assert SECRET.encode() not in message.payload, message
        log = (self._directory / "run.log").read_text(errors="replace")
        assert SECRET not in log
        assert not _MISTAKES.search(log), log[-2000:]


def _end(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        process.send_signal(number)
        ends_at = time.monotonic() + (DEADLINE_S if number == signal.SIGKILL else 1.0)
        while process.poll() is None and time.monotonic() < ends_at:
            time.sleep(0.01)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
