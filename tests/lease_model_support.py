"""A fleet as a model: the program's own members on clocks, networks and servers that do what a test says.

```
Membership, SharedFleet (real) -> Port (one member's network) -> Servers (compare-and-set)
        |                                                             |
   Pollers, Pages (thin) ---------> Gateway (who polls whom) <--------+
```

Each member runs on an event loop of its own, whose clock has its own rate, and which stops where the member is paused.
What a request meets on its way is up to the `Weather`. Nothing is random but what the test draws; nothing sleeps.

Rules of this file: `adapter/cluster` is driven as it is. What is not of it does less than the real thing where that
makes the fleet's task harder: a poller polls without any pause, also an agent that was taken over.
"""

# ruff: noqa: ANN401, D102 - the faces of what is documented where it is

import asyncio
import contextvars
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Self, TypeVar, cast

import httpx
import msgspec

from adapter.agent.poller import Poller
from adapter.agent.presence import Shared
from adapter.cluster import lease
from adapter.cluster.answers import Stored
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.entry import Entry
from adapter.cluster.fleet import SharedFleet
from adapter.cluster.journal import Journal
from adapter.cluster.membership import Membership
from adapter.cluster.term import Term
from adapter.config import AgentConfig, Config
from adapter.errors import ClusterConflictError, ClusterError, ClusterUnavailableError
from adapter.store.records import AgentRecord
from adapter.topics import Topics
from tests.cluster_support import KEY

_T = TypeVar("_T")

ANSWER_S = 2.0
"""How long an answer is waited for, as `engine` does."""
BUSY_S = 0.21
"""How long a poll lasts in which an event comes. It counts as one that lasts as long as the gateway may hold it."""


class WrongError(AssertionError):
    """What must not be: the model has found a counter-example."""


class Loop:
    """One process' event loop, on its own clock; no more of one than is asked for.

    Attributes:
        runs: Whether its process does: neither paused nor killed.
    """

    def __init__(self, world: "World", rate: float, offset_s: float) -> None:
        self.runs = True
        self._face = cast("asyncio.AbstractEventLoop", self)
        self._world = world
        self._rate = rate
        self._offset_s = offset_s
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()

    def due_at(self) -> float:
        """Say at what moment of the world it has something to do."""
        if self._ready:
            return self._world.now
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return (self._timers[0][0] - self._offset_s) / self._rate if self._timers else float("inf")

    def step(self) -> None:
        """Do one thing."""
        if not self._ready:
            self._ready.append(heapq.heappop(self._timers)[2])
        handle = self._ready.popleft()
        if handle.cancelled():
            return
        asyncio._set_running_loop(self._face)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(None)

    # What the program asks of a loop.

    def time(self) -> float:
        return self._offset_s + self._rate * self._world.now

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self._face, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self._face, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Let it lie: it is skipped when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self._face)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self._face, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # noqa: ARG002 - as in asyncio
        future = self.create_future()
        future.set_result(func(*args))
        return future

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._world.failures.append(context.get("exception") or WrongError(context["message"]))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # What has no name of its own has somebody who awaits it.
        if not task.cancelled() and (error := task.exception()) and not task.get_name().startswith("Task-"):
            self._world.failures.append(error)

    def discard(self) -> None:
        """End what runs on it, as a kill does: no line of it is run any more."""
        self.runs = False
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined] # of the interpreter's own
            task.get_coro().close()
        self._ready.clear()
        self._timers.clear()


@dataclass(slots=True, kw_only=True)
class Weather:
    """What requests of one member meet.

    Attributes:
        to_s: How long a request is under way.
        back_s: How long its answer is.
        lost: Whether requests do not arrive.
        deaf: Whether answers do not.
        stale_s: How old what some followers say is; others are as new as who leads.
        led_s: How old what one says that led, and was cut off; others know it.
        tells: Whether a lost request is known to be lost at once.
    """

    to_s: float = 0.002
    back_s: float = 0.002
    lost: bool = False
    deaf: bool = False
    stale_s: float = 0.0
    led_s: float = 0.0
    tells: bool = False

    @property
    def bad(self) -> bool:
        """Whether it may make a member late."""
        return self.lost or self.deaf or self.to_s + self.back_s > 0.1


@dataclass(slots=True)
class Value:
    """What a key of the servers holds: `None` where it was deleted."""

    revision: int
    value: bytes | None
    at: float


class Servers:
    """JetStream, as documented: each write is compare-and-set on the newest revision, and one behind the other.

    Attributes:
        quorum: Whether they can write.
        queue: Whether what is asked meanwhile is written later, rather than never.
        waiting: What is to be written when they can again.
        watch: Called before a write, with the key, the value before, and the one to come.
    """

    def __init__(self, world: "World") -> None:
        self.quorum = True
        self.queue = False
        self.waiting: list[Callable[[], None]] = []
        self.watch: Callable[[str, Value | None, bytes | None], None] = lambda _key, _before, _value: None
        self._world = world
        self._revision = 0
        self._values: dict[str, list[Value]] = {}
        self._ids: dict[str, int] = {}

    def write(self, key: str, value: bytes | None, after: int | None, message_id: str | None = None) -> int:
        """Write, or delete.

        Args:
            key: The key.
            value: Its value; `None` deletes it.
            after: The revision that is to be the newest; 0 for none or a deletion, `None` for any.
            message_id: What was written under it is not written again.
        """
        if message_id is not None and message_id in self._ids:
            return self._ids[message_id]
        before = self.newest(key)
        if after is not None and after != (0 if before is None else before.revision):
            raise ClusterConflictError("another revision")
        self.watch(key, before, value)
        self._revision += 1
        self._values.setdefault(key, []).append(Value(self._revision, value, self._world.now))
        if message_id is not None:
            self._ids[message_id] = self._revision
        return self._revision

    def newest(self, key: str, ago_s: float = 0.0) -> Value | None:
        """Read what the leader knows, or what a follower does that is some seconds behind."""
        for found in reversed(self._values.get(key, [])):
            if not ago_s or found.at <= self._world.now - ago_s:
                return found if found.value is not None else None
        return None

    def written_at(self, revision: int) -> float:
        """Say when a revision was written."""
        return next(found.at for values in self._values.values() for found in values if found.revision == revision)

    def keys(self) -> list[str]:
        """List all keys that ever were."""
        return list(self._values)


class Port:
    """What one member has of the servers, with the face of `engine.Engine`."""

    def __init__(self, world: "World", loop: Loop, weather: Weather) -> None:
        self._world = world
        self._loop = loop
        self.weather = weather

    async def enlist(self, name: str, value: bytes, replacing: int = 0) -> int:
        return await self._write(lambda: self._world.servers.write(f"member.{name}", value, replacing))

    async def strike(self, name: str, revision: int) -> None:
        # Without a revision anything is deleted, as nats-py does.
        await self._write(lambda: self._world.servers.write(f"member.{name}", None, revision or None))

    async def members(self) -> dict[str, Stored]:
        def read() -> dict[str, Stored]:
            servers, ago_s = self._world.servers, self._world.either(0.0, self.weather.stale_s)
            keys = [key for key in servers.keys() if key.startswith("member.")]  # noqa: SIM118 - no mapping
            found = {key.removeprefix("member."): servers.newest(key, ago_s) for key in keys}
            return {name: _stored(value) for name, value in found.items() if value is not None}

        return await self._ask(read)

    async def member(self, name: str) -> Stored | None:
        return await self._read_newest(f"member.{name}")

    async def last(self, work_no: str) -> Stored | None:
        return await self._read_newest(f"agent.{work_no}")

    async def append(self, work_no: str, data: bytes, after: int, message_id: str) -> int:
        return await self._write(lambda: self._world.servers.write(f"agent.{work_no}", data, after, message_id))

    async def agents(self, _kept: str) -> list[str]:
        return []

    async def anybody(self) -> bool:
        return True

    async def change_server(self) -> None:
        """Stay where we are: the weather is the same everywhere."""

    @property
    def closed(self) -> bool:
        return False

    @property
    def talk(self) -> Self:
        """Both in one."""
        return self

    async def tell(self, what: str, data: bytes) -> None:
        """Say nothing: any hint may be lost."""

    async def listen(self, what: str, take: Callable[[bytes], None]) -> None:
        """Hear nothing."""

    async def _read_newest(self, key: str) -> Stored | None:
        def read() -> Stored | None:
            ago_s = self._world.either(0.0, self.weather.led_s)
            if not (ago_s or self._world.servers.quorum):
                raise ClusterUnavailableError("nobody leads")
            found = self._world.servers.newest(key, ago_s)
            return None if found is None else _stored(found)

        return await self._ask(read)

    async def _write(self, write: Callable[[], _T]) -> _T:
        return await self._ask(write, writes=True)

    async def _ask(self, question: Callable[[], _T], *, writes: bool = False) -> _T:  # noqa: C901 - one way, told in order
        weather, world = replace(self.weather), self._world
        answered: asyncio.Future[_T] = self._loop.create_future()

        def arrive() -> None:
            if writes and not world.servers.quorum:
                if world.servers.queue:
                    world.servers.waiting.append(arrive)
                return
            result: _T | None = None
            error: ClusterError | None = None
            try:
                result = question()
            except ClusterError as raised:
                error = raised
            if not (weather.deaf or self.weather.deaf):
                world.later(weather.back_s, lambda: answer(result, error))

        def answer(result: _T | None, error: ClusterError | None) -> None:
            self._loop.call_soon(told, result, error)

        def told(result: _T | None, error: ClusterError | None) -> None:
            if answered.done():
                return
            if error is not None:
                answered.set_exception(error)
            else:
                answered.set_result(cast("_T", result))

        if not weather.lost:
            world.later(weather.to_s, arrive)
        elif weather.tells:
            self._loop.call_later(0.001, told, None, ClusterUnavailableError("not connected"))
        timer = self._loop.call_later(ANSWER_S, told, None, ClusterUnavailableError("no answer"))
        try:
            return await answered
        finally:
            timer.cancel()


def _stored(found: Value) -> Stored:
    return Stored(found.revision, found.value or b"")


@dataclass(slots=True)
class _Polls:
    """The polls of one agent by one term.

    Attributes:
        by: The process that made them.
        until: When the last one is over, where the gateway holds it as long as it may.
        over_at: When it was; `None` where it is not.
    """

    by: "Process"
    until: float = float("-inf")
    over_at: float | None = float("-inf")


class Gateway:
    """Sees who polls whom."""

    def __init__(self, world: "World", poll_s: float) -> None:
        self._world = world
        self._poll_s = poll_s
        self._polls: dict[tuple[str, str], _Polls] = {}
        self.polled_at: dict[str, tuple[str, float]] = {}

    def begin(self, work_no: str, owner: str, by: "Process") -> None:
        """Take note of a poll.

        Raises:
            WrongError: Another owner's may still be held.
        """
        now = self._world.now
        for (polled, other), polls in self._polls.items():
            if polled != work_no or other == owner:
                continue
            until = polls.over_at if polls.by is by or (polls.by.leaving and polls.over_at) else polls.until
            if until is None or until > now:
                raise WrongError(f"{owner} polls {work_no} at {now:.3f}, {other} does until {until}")
        self._polls.setdefault((work_no, owner), _Polls(by))
        self._polls[work_no, owner].until = now + self._poll_s
        self._polls[work_no, owner].over_at = None
        self.polled_at[work_no] = owner, now

    def end(self, work_no: str, owner: str) -> None:
        """Take note of the end of a poll."""
        polls = self._polls[work_no, owner]
        polls.over_at = self._world.now

    def released(self, work_no: str, owner: str) -> None:
        """Take note that an owner has let go of an agent: its last poll was over when it was."""
        polls = self._polls.get((work_no, owner))
        if polls is None:
            return
        if polls.over_at is None:
            raise WrongError(f"{owner} releases {work_no} while it polls it")
        polls.until = polls.over_at

    def hung_up(self, by: "Process") -> None:
        """Take note that a process is gone, and its connections with it."""
        for polls in self._polls.values():
            if polls.by is by:
                polls.until = min(polls.until, self._world.now)
                polls.over_at = polls.until


class Pages:
    """The journals as one member writes them, one page each, with the face of `journal.Journal` and its `pages`."""

    def __init__(self, port: Port, process: "Process") -> None:
        self.lost: Callable[[str], None] = lambda _: None
        self.own: dict[str, int] = {}
        self.doubtful: set[str] = set()
        self.term: Term | None = None
        self._port = port
        self._process = process
        self._numbers = itertools.count()

    @property
    def owner(self) -> str:
        """How pages name this member."""
        return "" if self.term is None else self.term.owner

    def begin(self, term: Term) -> None:
        self.term = term

    async def claim(self, work_no: str, found: Stored | None) -> AgentRecord | None:
        record, term = AgentRecord(work_no=work_no), self.term
        self.doubtful.add(work_no)
        try:
            place = await self._append(work_no, self.owner, 0 if found is None else found.revision)
        except ClusterConflictError:
            return None
        if term is None or term is not self.term or not term.holds():
            return None
        self.own[work_no] = place
        self.doubtful.discard(work_no)
        return record

    async def release(
        self,
        work_no: str,
        _record: AgentRecord,
        *,
        insists: Callable[[], bool],
        waits: Callable[[], bool],  # noqa: ARG002 - nothing is being stored
    ) -> None:
        place, message_id = self.own.pop(work_no), self._id()
        while True:
            try:
                await self._append(work_no, "", place, message_id)
            except ClusterConflictError:
                return
            except ClusterUnavailableError:
                if not insists():
                    raise
                await asyncio.sleep(0.2)
            else:
                return

    async def commit(self, work_no: str) -> None:
        """Append an event."""
        message_id = self._id()
        while work_no in self.own:
            try:
                self.own[work_no] = await self._append(work_no, self.owner, self.own[work_no], message_id)
            except ClusterUnavailableError:
                await asyncio.sleep(0.2)
            except ClusterConflictError:
                if self.own.pop(work_no, None) is not None:
                    self.lost(work_no)
                return
            else:
                return

    async def _append(self, work_no: str, owner: str, after: int, message_id: str | None = None) -> int:
        data = _codec.write(AgentRecord(work_no=work_no), owner=owner, sealed=b"")
        return await self._port.append(work_no, data, after, message_id or self._id())

    def _id(self) -> str:
        return f"{self.owner}/{self._process.number}/{next(self._numbers)}"

    def abandon(self) -> None:
        self.own.clear()

    def owns(self, work_no: str) -> bool:
        return work_no in self.own

    @property
    def pages(self) -> Self:
        """Both in one."""
        return self

    async def published(self, _work_no: str, _within_s: float) -> None:
        """Nothing waits."""

    async def tidy(self) -> None:
        """Nothing is untidy."""


_codec = Codec([KEY])


class Pollers(SharedFleet):
    """The fleet as it is, with pollers that only poll."""

    _process: "Process"

    def take(self, agent: AgentConfig, record: AgentRecord, _delay_s: float) -> None:
        self._records[agent.work_no] = record
        poller = self._process.poller(agent.work_no, self._gateway)
        self.pollers[agent.work_no] = cast("Poller", poller)
        self._running[agent.work_no] = self._tasks.create_task(poller.run(), name="poller")

    async def let_go(self, work_no: str, *, hurry: asyncio.Event, sign_out: bool) -> AgentRecord:  # noqa: ARG002 - nobody is
        task = self._running.pop(work_no)
        cast("ModelPoller", self.pollers[work_no]).ending = True
        cast("ModelPoller", self.pollers[work_no]).wake.set()
        await asyncio.wait([task])
        self.pollers.pop(work_no)
        return self._records.pop(work_no)


class ModelPoller:
    """Polls one agent."""

    def __init__(self, process: "Process", work_no: str, term: Term) -> None:
        self.ending = False
        self.wake = asyncio.Event()
        self._process = process
        self._work_no = work_no
        self._term = term

    async def run(self) -> None:
        """Poll until it is to end."""
        gateway, owner = self._process.world.gateway, self._term.owner
        while not self.ending:
            if not (self._term.valid() or await self._permitted()):
                continue
            # What is asked of a permit and what is sent are one step: see `transport.single`.
            gateway.begin(self._work_no, owner, self._process)
            await asyncio.sleep(BUSY_S)
            gateway.end(self._work_no, owner)
            if self._process.world.events:
                await self._process.pages.commit(self._work_no)

    async def _permitted(self) -> bool:
        """Wait for the permit, or for the end."""
        permit = asyncio.ensure_future(self._term.wait())
        ending = asyncio.ensure_future(self.wake.wait())
        while not permit.done() and not ending.done():
            await asyncio.wait([permit, ending], return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not permit.done():
            permit.cancel()
            return False
        try:
            permit.result()
        except httpx.ConnectError:
            await asyncio.sleep(0.5)
            return False
        return self._term.valid()


class Process:
    """One life of a member's process.

    Attributes:
        name: The member.
        storage: What its outbox is known by.
        leaving: Whether it was told to end: its agents are nobody's when it has left.
    """

    def __init__(  # noqa: PLR0913 - what makes it differ from the others
        self,
        world: "World",
        config: Config,
        *,
        storage: str,
        number: int,
        rate: float,
        offset_s: float,
    ) -> None:
        self.world = world
        self.name = config.instance
        self.storage = storage
        self.number = number
        self.rate = rate
        self.offset_s = offset_s
        self.leaving: asyncio.Task[None] | None = None
        self._hurt_at = float("-inf")
        self.loop = Loop(world, rate, offset_s)
        port = Port(world, self.loop, Weather())
        self.pages = Pages(port, self)
        engine = cast("Engine", port)
        self.membership = Membership(engine, _codec, config, storage=storage)
        outbox, topics = SimpleNamespace(agents={}), Topics("agents")
        shared = cast("Shared", SimpleNamespace(config=config, outbox=outbox, topics=topics))
        self.fleet = Pollers(
            shared,
            cast("asyncio.TaskGroup", self.loop),
            self.membership,
            cast("Journal", self.pages),
            engine,
            _codec,
        )
        self.fleet._process = self
        self.port = port
        self.loop.create_task(self._run(config), name="member")

    async def _run(self, config: Config) -> None:
        await self.membership.enlist()
        self.fleet.start(config.agents)

    def poller(self, work_no: str, gateway: Any) -> ModelPoller:
        """Make a poller with the permit that the fleet's gateway asks."""
        return ModelPoller(self, work_no, gateway._common.permit)

    @property
    def hurt_at(self) -> float:
        """Say when something last kept it from renewing its lease."""
        if not self.loop.runs or self.port.weather.bad:
            self._hurt_at = self.world.now
        return self._hurt_at

    def meet(self, weather: Weather) -> None:
        """Have another weather."""
        self._hurt_at = self.hurt_at
        self.port.weather = weather

    def freeze(self) -> None:
        """Stop it, as SIGSTOP does."""
        self.loop.runs = False

    def thaw(self) -> None:
        """Let it go on."""
        self._hurt_at = self.hurt_at
        self.loop.runs = True

    def stop(self) -> None:
        """Have it leave, as SIGTERM does."""
        if self.leaving is None and self.fleet._working:
            self.leaving = self.loop.create_task(self.fleet.stop(asyncio.Event()), name="stop")

    def holds(self, work_no: str) -> bool:
        """Say whether it is sure to own an agent."""
        return (
            self.pages.owns(work_no) and self.pages.term is not None and self.pages.term.lease.holds(self.loop.time())
        )


class World:
    """All of it, and the one true time.

    Attributes:
        now: The time.
        events: Whether polls bring events.
    """

    def __init__(self, config: Config, *, seed: int) -> None:
        self.now = 0.0
        self.events = False
        self.config = config
        self.terms = lease.Terms.of(config.gateway.hold_s)
        self.failures: list[BaseException] = []
        self.processes: dict[int, Process] = {}
        self.servers = Servers(self)
        self.servers.watch = self._watch
        self.gateway = Gateway(self, config.gateway.hold_s + 2.0)
        self._outages: list[float] = []
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def start(self, name: str, *, rate: float, offset_s: float, storage: str | None = None) -> Process:
        """Start a member."""
        number = next(self._numbers)
        process = self.processes[number] = Process(
            self,
            replace(self.config, instance=name),
            storage=storage or f"storage {number}",
            number=number,
            rate=rate,
            offset_s=offset_s,
        )
        return process

    def kill(self, process: Process, *, hangs_up: bool) -> None:
        """End a process, as SIGKILL does, or the end of its machine: then the gateway does not hear of it."""
        del self.processes[process.number]
        process.loop.discard()
        if hangs_up:
            self.gateway.hung_up(process)

    def either(self, *values: float) -> float:
        """Take one of several."""
        return self._random.choice(values)

    def later(self, delay_s: float, do: Callable[[], None]) -> None:
        """Have something done, about so many seconds from now."""
        at = self.now + delay_s * self._random.uniform(0.9, 1.0)
        heapq.heappush(self._events, (at, next(self._numbers), do))

    def run(self, seconds: float) -> None:
        """Let time pass.

        Raises:
            WrongError: Something went wrong.
        """
        until = self.now + seconds
        while True:
            loops = [process.loop for process in self.processes.values() if process.loop.runs]
            due = [loop.due_at() for loop in loops]
            first = min(due, default=float("inf"))
            event = self._events[0][0] if self._events else float("inf")
            at = min(first, event)
            if at > until:
                break
            self.now = max(self.now, at)
            if event <= first:
                heapq.heappop(self._events)[2]()
            else:
                loops[due.index(first)].step()
                self._bury()
            if self.failures:
                raise self.failures[0]
        self.now = until

    def _bury(self) -> None:
        """Let those go who have left."""
        for process in list(self.processes.values()):
            if process.leaving is not None and process.leaving.done():
                self.kill(process, hangs_up=True)

    def lose_quorum(self, *, queue: bool) -> None:
        """Have the servers write nothing."""
        self.servers.quorum, self.servers.queue = False, queue
        self._outages.append(self.now)

    def regain_quorum(self) -> None:
        """Have them write again, and what they kept first."""
        self.servers.quorum = True
        waiting, self.servers.waiting = self.servers.waiting, []
        for write in waiting:
            write()

    def close(self) -> None:
        """End all."""
        for process in list(self.processes.values()):
            process.loop.discard()

    # What must hold at each write.

    def _watch(self, key: str, before: Value | None, value: bytes | None) -> None:
        kind, _, name = key.partition(".")
        if kind == "member":
            if before is not None and _term_in(before.value) != _term_in(value):
                self._watch_end(name, before, value)
            return
        old = "" if before is None else Codec.read(before.value or b"").owner
        new = Codec.read(value or b"").owner
        if old and not new:
            self.gateway.released(name, old)
        if new in {"", old}:
            return
        for process in self.processes.values():
            if process.pages.owner != new and process.holds(name):
                raise WrongError(f"{new} owns {name}, and so does {process.pages.owner}")

    def _watch_end(self, name: str, before: Value, value: bytes | None) -> None:
        owner = f"{name}/{_term_in(before.value)}"
        for process in self.processes.values():
            if process.membership.term.owner != owner or process.leaving:
                continue
            since_s = (self.now - before.at) * process.rate
            if since_s < self.terms.length_s:
                raise WrongError(f"{name} is struck out {since_s:.3f} s after it renewed")
            if value is None and process.hurt_at < before.at and sum(at > before.at for at in self._outages) <= 1:
                raise WrongError(f"{name} is struck out for what was not its fault")


def _term_in(value: bytes | None) -> str:
    return "" if value is None else msgspec.json.decode(value, type=Entry).term
