"""NATS JetStream, as far as a fleet needs it: leases, the agents' journal, hints. It only raises, it never retries.

Two things are stored, each on as many servers as `cluster.replicas` says, and each changed by compare-and-set alone:

- a key-value bucket with a lease per member;
- a stream with a subject per agent, its journal, and one for answers that came to an owner of before.

Source:
    NATS documentation, "JetStream", "Headers" (`Nats-Expected-Last-Subject-Sequence`, `Nats-Msg-Id`, `Nats-Rollup`) and
    "Key/Value Store"; ADR-31, "JetStream Direct Get": `multi_last`, and status 204 as its end. What was tried
    on nats-server 2.15: where there are replicas, a repeated `Nats-Msg-Id` is answered with the first sequence before
    the expected one is looked at; where there are none, after that. While one message for a subject is on its way to
    the replicas, another one is refused as if it were there. `max_payload` counts headers, too, which nats-py leaves
    out; who exceeds it is hung up on, and nats-py closes for good. Another limit is told to new connections alone.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import Header, RawStreamMsg
from nats.js.kv import KeyValue

from adapter.cluster.answers import ANSWER_S, NOT_FOUND, Stored, asked, is_deletion, stored, waited
from adapter.cluster.layout import Layout
from adapter.cluster.servers import dial, hang_up, limit_of, reason_of
from adapter.cluster.talk import Talk
from adapter.config import ClusterConfig
from adapter.errors import ClusterTooLargeError, ClusterUnavailableError, StartError
from adapter.outage import Outage

_AGAIN_S = 2.0
"""When servers are tried again of which none was there at the start."""
_CLIENT = "ccgateway2mqtt-"
_HEADERS_BYTES = 256
"""More than the headers take of what is appended."""
_MEASURE_S = 5.0
"""How soon it is looked again whether the servers take larger messages by now."""
_INFO = "$JS.API.STREAM.INFO."


class _State(msgspec.Struct):
    subjects: dict[str, int] | None = None


class _Page(msgspec.Struct):
    """Some of a stream's subjects; no `state` where the servers cannot say.

    Source:
        NATS documentation, "JetStream wire API Reference", `$JS.API.STREAM.INFO`; 100,000 on a page.
    """

    total: int = 0
    state: _State | None = None


_encode = msgspec.json.encode
_decode_page = msgspec.json.Decoder(_Page).decode


class Engine:
    """One connection to the servers, and what lies there of one fleet. Made by `connect`.

    Attributes:
        talk: What members tell and ask each other.
    """

    def __init__(self, client: Client, config: ClusterConfig) -> None:
        self._client = client
        self._config = config
        self._layout = Layout(config)
        self._root, self._stream = self._layout.root, self._layout.agents
        self._bucket, self._kept = self._layout.members, self._layout.commands
        self._jetstream: JetStreamContext = client.jetstream(timeout=ANSWER_S)
        self._members: KeyValue
        self._commands: KeyValue
        self._measured_at = float("-inf")
        self.talk = Talk(client, self._root)

    async def change_server(self) -> None:
        """Take another server in place of one that may be cut off from the others, or gone without a word."""
        writer = getattr(self._client._transport, "_io_writer", None)  # noqa: SLF001 - see below
        if writer is None:
            await self._client.force_reconnect()
        else:
            # nats-py would wait until what it had written is sent, which may be never.
            writer.transport.abort()

    @property
    def closed(self) -> bool:
        """Whether the connection is over for good: the servers do not want us any more."""
        return self._client.is_closed

    async def prepare(self) -> None:
        """Make the buckets and the stream, where they are not there yet; waits for servers that have no quorum.

        Raises:
            StartError: The servers cannot hold them.
        """
        outage = Outage("cluster")
        while True:
            try:
                self._members, self._commands = await self._layout.make(self._jetstream)
            except ClusterUnavailableError as error:
                outage.begins("servers", str(error))
                await asyncio.sleep(_AGAIN_S)
            else:
                outage.is_over()
                return

    async def attach(self) -> None:
        """Take the bucket as it is, and make nothing; `describe` says whether there is one. Raises as `members`."""
        try:
            self._members = await self._jetstream.key_value(self._bucket)
        except nats.js.errors.NotFoundError:
            return
        except (nats.errors.Error, OSError) as err:
            raise ClusterUnavailableError(reason_of(err)) from err

    async def describe(self, subjects: str = "") -> tuple[bytes, bytes]:
        """Ask what is stored, of leases and of journals; give the answers of JetStream as they are.

        Args:
            subjects: Which subjects of the journals' stream are counted.

        Raises:
            ClusterUnavailableError: Nobody says.
        """
        question = b'{"subjects_filter":"%s.%s"}' % (self._root.encode(), subjects.encode()) if subjects else b""
        leases = await asked(self._client.request(f"{_INFO}KV_{self._bucket}", timeout=ANSWER_S))
        journals = await asked(self._client.request(f"{_INFO}{self._stream}", question, timeout=ANSWER_S))
        return leases.data, journals.data

    # Members.

    async def enlist(self, name: str, value: bytes, replacing: int = 0) -> int:
        """Store a member's lease; give its revision.

        Args:
            name: The member.
            value: What its lease says.
            replacing: The revision to replace; 0 where there is to be none yet.

        Raises:
            ClusterConflictError: There is one, or another; nothing was stored.
            ClusterUnavailableError: It is not known whether it was stored.
        """
        if replacing:
            return await asked(self._members.update(name, value, last=replacing))
        return await asked(self._members.create(name, value))

    async def strike(self, name: str, revision: int) -> None:
        """Delete a member's lease, if it is still at `revision`. Raises as `enlist`."""
        await asked(self._members.delete(name, last=revision))

    async def members(self) -> dict[str, Stored]:
        """Read all leases, as one of the servers knows them: perhaps not the very newest, but all of one moment.

        Raises:
            ClusterUnavailableError: They could not be read.
        """
        found: dict[str, Stored] = {}
        prefix = f"$KV.{self._bucket}."
        async for message in self._direct(f"KV_{self._bucket}", b'{"multi_last":["%s>"]}' % prefix.encode()):
            headers = message.headers or {}
            if not is_deletion(headers):
                name = headers["Nats-Subject"].removeprefix(prefix)
                found[name] = Stored(int(headers["Nats-Sequence"]), message.data, headers.get("Nats-Time-Stamp", ""))
        return found

    async def anybody(self) -> bool:
        """Say whether there is any lease, by the server that leads. Raises as `members`."""
        place = 1
        while True:
            question = self._jetstream.get_msg(f"KV_{self._bucket}", place, f"$KV.{self._bucket}.>", next=True)
            found: RawStreamMsg | None = await asked(question, missing=None)
            if found is None or found.seq is None or stored(found) is not None:
                return found is not None
            place = found.seq + 1  # what was deleted leaves a mark

    async def member(self, name: str) -> Stored | None:
        """Read a lease from the server that leads; `None` where there is none. Raises as `members`."""
        return await self._last(f"KV_{self._bucket}", f"$KV.{self._bucket}.{name}")

    async def _direct(self, stream: str, request: bytes) -> AsyncIterator[Msg]:
        """Ask for several messages at once; each names the one that was sent before it."""
        inbox, before = self._client.new_inbox(), "0"
        try:
            answers = await self._client.subscribe(inbox)
            try:
                await self._client.publish(f"$JS.API.DIRECT.GET.{stream}", request, reply=inbox)
                while True:
                    message = await waited(answers.next_msg(timeout=ANSWER_S))
                    headers = message.headers or {}
                    status = headers.get("Status")
                    if status == str(NOT_FOUND) and before == "0":
                        return
                    if status not in {None, "204"}:
                        raise ClusterUnavailableError(f"status {status}")
                    if headers.get("Nats-Last-Sequence") != before:
                        raise ClusterUnavailableError("an answer with a hole")
                    if status is not None:
                        return
                    before = headers["Nats-Sequence"]
                    yield message
            finally:
                await answers.unsubscribe()
        except nats.errors.Error as err:
            raise ClusterUnavailableError(reason_of(err)) from err

    # The agents' journal.

    async def append(self, subject: str, data: bytes, *, after: int, message_id: str, alone: bool = False) -> int:
        """Append to an agent's journal; give the place of what was appended.

        Args:
            subject: What `journal` gives.
            data: What is appended.
            after: The place of the last in it; 0 where there is none.
            message_id: The same when it is tried again.
            alone: Whether all before it is removed.

        Raises:
            ClusterConflictError: Something else is last, or will be; nothing was appended now.
            ClusterTooLargeError: It is larger than the servers take.
            ClusterUnavailableError: It is not known whether it was appended.
        """
        headers = {Header.MSG_ID.value: message_id, Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(after)}
        if alone:
            headers[Header.ROLLUP.value] = "sub"
        return await self._publish(subject, data, headers)

    async def append_late(self, work_no: str, data: bytes, message_id: str) -> None:
        """Keep what came to an owner of before, for who owns the agent now.

        Raises:
            ClusterTooLargeError: It is larger than the servers take.
            ClusterUnavailableError: It is not known whether it is kept.
        """
        await self._publish(f"{self._root}.late.{work_no}", data, {Header.MSG_ID.value: message_id})

    async def _publish(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        size_bytes = len(data) + _HEADERS_BYTES
        if size_bytes > self._client.max_payload:
            await self._look_for_room(size_bytes)
            raise ClusterTooLargeError(size_bytes, self._client.max_payload)
        stored = await asked(self._jetstream.publish(subject, data, headers=headers))
        return stored.seq

    async def _look_for_room(self, size_bytes: int) -> None:
        """Connect anew where the servers take larger messages by now."""
        now = asyncio.get_running_loop().time()
        if now - self._measured_at < _MEASURE_S:
            return
        self._measured_at = now
        with contextlib.suppress(ClusterUnavailableError, StartError):
            if await limit_of(self._config, _CLIENT + "size") >= size_bytes:
                await self.change_server()

    def journal(self, work_no: str) -> str:
        """Name the subject of an agent's journal."""
        return f"{self._root}.agent.{work_no}"

    async def last(self, work_no: str) -> Stored | None:
        """Read the last in an agent's journal from the server that leads. Raises as `members`."""
        return await self._last(self._stream, self.journal(work_no))

    async def following(self, work_no: str, place: int) -> Stored | None:
        """Read what stands in an agent's journal at a place or behind it, the first of it. Raises as `members`."""
        return await self._next(self.journal(work_no), place)

    async def next_late(self, work_no: str, place: int = 1) -> Stored | None:
        """Read the oldest of what came late of an agent, at a place or behind it. Raises as `members`."""
        return await self._next(f"{self._root}.late.{work_no}", place)

    async def agents(self, kept: str) -> list[str]:
        """List the agents of whom something is kept. Raises as `members`.

        Args:
            kept: ``agent`` for a journal, ``late`` for what came late.
        """
        found: list[str] = []
        while True:
            question = {"subjects_filter": f"{self._root}.{kept}.*", "offset": len(found)}
            answer = await asked(self._client.request(f"{_INFO}{self._stream}", _encode(question), timeout=ANSWER_S))
            page = _decode_page(answer.data)
            if page.state is None:
                raise ClusterUnavailableError("nobody lists what is kept")
            found += [subject.rpartition(".")[2] for subject in page.state.subjects or ()]
            if len(found) >= page.total:
                return found

    async def dissolve(self) -> None:
        """Delete all that is kept of the fleet. Raises as `members`."""
        for stream in (self._stream, f"KV_{self._bucket}", f"KV_{self._kept}"):
            await asked(self._jetstream.delete_stream(stream), missing=True)

    async def remove(self, place: int) -> None:
        """Remove one message. Raises as `members`."""
        await asked(self._jetstream.delete_msg(self._stream, place))

    async def _last(self, stream: str, subject: str) -> Stored | None:
        return stored(await asked(self._jetstream.get_last_msg(stream, subject), missing=None))

    async def _next(self, subject: str, place: int, stream: str | None = None) -> Stored | None:
        question = self._jetstream.get_msg(stream or self._stream, place, subject, next=True)
        return stored(await asked(question, missing=None))

    # Commands.

    async def admit_command(self, key: str, value: bytes) -> None:
        """Keep a new command. Raises as `enlist`."""
        await asked(self._commands.create(key, value))

    async def settle_command(self, key: str, value: bytes) -> None:
        """Keep a command with its result. Raises as `members`."""
        await asked(self._commands.put(key, value))

    async def command(self, key: str) -> Stored | None:
        """Read a command from the server that leads. Raises as `members`."""
        return await self._last(f"KV_{self._kept}", f"$KV.{self._kept}.{key}")

    async def commands_of(self, work_no: str) -> list[Stored]:
        """Read the commands of an agent, or with ``*`` of all, from the server that leads. Raises as `members`."""
        found: list[Stored] = []
        subject, place = f"$KV.{self._kept}.{work_no}.>", 1
        while (message := await self._next(subject, place, stream=f"KV_{self._kept}")) is not None:
            found.append(message)
            place = message.revision + 1
        return found


@contextlib.asynccontextmanager
async def connect(config: ClusterConfig, member: str, *, patiently: bool = True) -> AsyncIterator[Engine]:
    """Connect to the first server that answers, and to another one whenever that is lost.

    Args:
        config: Where they are.
        member: What they shall call us.
        patiently: Whether servers that are not there are waited for, with one log line.

    Raises:
        StartError: A server refuses the log-in.
        ClusterUnavailableError: None answers, and none is waited for.
    """
    client = await (_connected(config, member) if patiently else dial(config, _CLIENT + member))
    try:
        yield Engine(client, config)
    finally:
        await hang_up(client)


async def _connected(config: ClusterConfig, member: str) -> Client:
    outage = Outage("cluster")
    while True:
        try:
            client = await dial(config, _CLIENT + member)
        except ClusterUnavailableError as err:
            outage.begins("servers", str(err))
            await asyncio.sleep(_AGAIN_S)
        else:
            outage.is_over()
            return client
