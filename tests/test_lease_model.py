"""The lease protocol as a model: whatever clocks, networks and processes do, no two members poll one agent (issue 6).

What is driven is the program's own: `adapter/cluster` with `Lease`, `Census`, `Membership` and `SharedFleet`.
"""

import asyncio
import logging
import math
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from adapter import gateway
from adapter.agent.pace import AFTER_FAILURE_S
from adapter.cluster import lease, membership, term
from adapter.cluster.codec import Codec
from adapter.cluster.entry import entry_of
from adapter.cluster.membership import Membership
from adapter.cluster.shares import assigned
from adapter.cluster.term import Term
from adapter.config import Config, load
from adapter.errors import StartError
from tests.adapter_support import write
from tests.cluster_support import KEY
from tests.hypothesis_support import patient
from tests.lease_model_support import Port, Process, Servers, Value, Weather, World, WrongError

HOLD_S = 1.0
NAMES = ("a", "b", "c")
AGENTS = 2
WEATHERS = st.builds(
    Weather,
    to_s=st.sampled_from([0.002, 0.002, 0.05, 0.7, 1.7, 4.0, 12.0]),
    back_s=st.sampled_from([0.002, 0.002, 0.05, 0.7, 1.7]),
    lost=st.booleans(),
    deaf=st.booleans(),
    stale_s=st.sampled_from([0.0, 0.0, 0.3, 2.0, 9.0]),
    led_s=st.sampled_from([0.0, 0.0, 0.3, 1.2]),
    tells=st.booleans(),
)


class Fleet(RuleBasedStateMachine):
    """Members, and what happens to them."""

    config: Config
    """What all of them have."""
    drift: float | None = None
    """By how much their clocks differ, where that is not what the protocol allows."""
    recovers = True
    newest: World

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.config, seed=0)

    @initialize(
        seed=st.integers(0, 99),
        ticks=st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=3),
        behind_s=st.sampled_from([0.0, 0.0, 0.3, 1.2]),
    )
    def begin(self, seed: int, ticks: list[int], behind_s: float) -> None:
        """Start three members, whose clocks differ by as much as they may, on servers that were just cut off."""
        self.world = Fleet.newest = World(self.config, seed=seed)
        faster = math.sqrt(1 + (lease._DRIFT if self.drift is None else self.drift))
        for place, (name, tick) in enumerate(zip(NAMES, ticks, strict=True)):
            process = self.world.start(name, rate=faster**tick, offset_s=1000.0 * place + 17.3)
            process.meet(Weather(stale_s=behind_s, led_s=behind_s))
            self.world.run(0.13)
        self.world.run(2.0)
        self._mend()
        self.world.run(2.0)

    def _one(self, place: int) -> Process:
        processes = list(self.world.processes.values())
        return processes[place % len(processes)]

    def _mend(self) -> None:
        for process in self.world.processes.values():
            process.thaw()
            process.meet(Weather())

    @rule(seconds=st.floats(0.0, 9.0))
    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.world.run(seconds)

    @rule(place=st.integers(0, 2), weather=WEATHERS, seconds=st.floats(0.0, 3.0))
    def storm(self, place: int, weather: Weather, seconds: float) -> None:
        """Have one member's network do harm."""
        self._one(place).meet(weather)
        self.world.run(seconds)

    @rule(place=st.integers(0, 2), seconds=st.floats(0.0, 4.0), back_s=st.sampled_from([0.002, 0.7, 1.9]))
    def cut_off(self, place: int, seconds: float, back_s: float) -> None:
        """Have one member's network become slow, and then cut it off for longer than its lease."""
        self._one(place).meet(Weather(back_s=back_s))
        self.world.run(seconds)
        self._one(place).meet(Weather(lost=True))
        self.world.run(self.world.terms.length_s * (1 + lease._DRIFT) + 2.0)

    @rule(place=st.integers(0, 2), seconds=st.floats(1.0, 3.0), moment=st.floats(0.0, 0.7))
    def cut_off_again(self, place: int, seconds: float, moment: float) -> None:
        """Have one member hear nothing, then for a moment everything, and then nothing for longer than its lease."""
        self._one(place).meet(Weather(deaf=True))
        self.world.run(seconds)
        self._one(place).meet(Weather())
        self.world.run(moment)
        self._one(place).meet(Weather(lost=True))
        self.world.run(self.world.terms.length_s * (1 + lease._DRIFT) + 2.0)

    @rule(place=st.integers(0, 2), seconds=st.floats(-0.5, 2.0))
    def come_back(self, place: int, seconds: float) -> None:
        """Have one member back about when its lease is over, while requests of the others take their time."""
        for process in self.world.processes.values():
            process.meet(Weather(to_s=0.7))
        self._one(place).meet(Weather(lost=True))
        self.world.run(self.world.terms.length_s * (1 + lease._DRIFT) + seconds)
        self._one(place).meet(Weather())
        self.world.run(2.0)

    @rule(place=st.integers(0, 2))
    def calm(self, place: int) -> None:
        """Mend one member's network."""
        self._one(place).meet(Weather())

    @rule(place=st.integers(0, 2), seconds=st.floats(0.0, 9.0))
    def freeze(self, place: int, seconds: float) -> None:
        """Stop a process at any moment, for a while or until it is let go."""
        self._one(place).freeze()
        self.world.run(seconds)

    @rule(place=st.integers(0, 2), seconds=st.floats(0.0, 1.0))
    def thaw(self, place: int, seconds: float) -> None:
        """Let a process go on."""
        self._one(place).thaw()
        self.world.run(seconds)

    @precondition(lambda self: len(self.world.processes) > 1)
    @rule(place=st.integers(0, 2), again=st.sampled_from(["same storage", "elsewhere", "no"]), machine=st.booleans())
    def kill(self, place: int, again: str, *, machine: bool) -> None:
        """Kill a process, or its machine, and start it again, there or elsewhere."""
        killed = self._one(place)
        self.world.kill(killed, hangs_up=not machine)
        if again == "no" and len(self.world.processes) > 1:
            return
        same = again == "same storage" and not machine
        self.world.start(
            killed.name, rate=killed.rate, offset_s=killed.offset_s, storage=killed.storage if same else None
        )

    @precondition(lambda self: len(self.world.processes) < 4)
    @rule(place=st.integers(0, 2))
    def double(self, place: int) -> None:
        """Start another process of the same name."""
        twin = self._one(place)
        self.world.start(twin.name, rate=1.0, offset_s=0.0)

    @precondition(lambda self: sum(process.leaving is None for process in self.world.processes.values()) > 1)
    @rule(place=st.integers(0, 2), seconds=st.floats(0.0, 3.0))
    def stop(self, place: int, seconds: float) -> None:
        """Have a member leave."""
        self._one(place).stop()
        self.world.run(seconds)

    @rule(queue=st.booleans(), seconds=st.floats(0.0, 15.0))
    def lose_quorum(self, seconds: float, *, queue: bool) -> None:
        """Have the servers write nothing for a while."""
        self.world.lose_quorum(queue=queue)
        self.world.run(seconds)
        self.world.regain_quorum()

    @rule(queue=st.booleans())
    def lose_quorum_for_long(self, *, queue: bool) -> None:
        """Have the servers write nothing for longer than leases last, while all else is well."""
        self._mend()
        self.world.run(3.0)
        self.lose_quorum(2 * self.world.terms.length_s, queue=queue)
        self.world.run(3.0)

    @rule(events=st.booleans())
    def work(self, *, events: bool) -> None:
        """Have polls bring events, or none."""
        self.world.events = events

    def teardown(self) -> None:
        """When all is well again, each agent is polled, within the time of a take-over."""
        try:
            if self.recovers:
                self._recover()
        finally:
            self.world.close()

    def _recover(self) -> None:
        world = self.world
        if not world.processes:
            return
        self._mend()
        if all(process.leaving for process in world.processes.values()):
            world.start("z", rate=1.0, offset_s=0.0)
        # Who waits for the end of a lease of its own name counts the others' from then on.
        world.run(2 * world.terms.length_s * (1 + lease._DRIFT) ** 1.5 + 5.0)
        for work_no in [agent.work_no for agent in self.config.agents]:
            assert work_no in world.gateway.polled_at, "never polled"
            owner, at = world.gateway.polled_at[work_no]
            if at < world.now - 1.0:
                raise WrongError(f"{owner} polled {work_no} {world.now - at:.1f} s ago, and nobody since")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Make what all members have."""
    values = {
        "gateway": {"url": "http://127.0.0.1:1", "allow_http": True, "hold": 10},
        "mqtt": {"url": "mqtt://127.0.0.1:1"},
        "agents": [{"work_no": str(101 + number), "guid": "g"} for number in range(AGENTS)],
        "cluster": {"url": "nats://127.0.0.1:1", "name": "test", "key": KEY, "replicas": 1},
    }
    made = load(write(tmp_path_factory.mktemp("model"), values))
    return replace(made, gateway=replace(made.gateway, hold_s=HOLD_S))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Say nothing of what is meant to go wrong, and make no TLS for those who send nothing."""
    context = ssl.create_default_context()
    monkeypatch.setattr(gateway, "tls_context", lambda _config: context)
    for module in (membership, term):
        monkeypatch.setattr(module, "lasting_time", lambda: asyncio.get_running_loop().time())
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def check(config: Config, how: settings) -> None:
    """Look for a counter-example."""

    class Tried(Fleet):
        pass

    Tried.config = config
    run_state_machine_as_test(Tried, settings=how)


WHOLE = settings(patient, max_examples=20, stateful_step_count=20)
FIRST = settings(
    patient, max_examples=300, stateful_step_count=12, phases=[Phase.generate], derandomize=True, database=None
)


@pytest.mark.parametrize("drift", [lease._DRIFT, 0.2])
def test_no_two_members_poll_one_agent(config: Config, monkeypatch: pytest.MonkeyPatch, drift: float) -> None:
    """Point 3."""
    monkeypatch.setattr(lease, "_DRIFT", drift)
    check(config, WHOLE)


@given(place=st.integers(0, 2), seconds=st.floats(4.0, 6.0))
@settings(patient, max_examples=15)
def test_agents_are_taken_over_in_time(config: Config, place: int, seconds: float) -> None:
    """Point 3: whenever a member is killed, its agents are polled again within `hold` and 8 s."""
    world = World(config, seed=0)
    for name in NAMES:
        world.start(name, rate=1.0, offset_s=7.0)
        world.run(0.17)
    world.run(seconds)

    world.kill(list(world.processes.values())[place], hangs_up=False)
    world.run(HOLD_S + 8.0 - AFTER_FAILURE_S)

    killed_at = world.now - HOLD_S - 8.0 + AFTER_FAILURE_S
    assert all(world.gateway.polled_at[agent.work_no][1] > killed_at + 1.0 for agent in config.agents)
    world.close()


def test_who_is_no_member_strikes_nobody_out(config: Config) -> None:
    """Point 2: who was struck out, and leaves before it is a member again, leaves the one alone that has its name."""
    world = World(config, seed=0)
    first, _ = world.start("a", rate=1.0, offset_s=0.0), world.start("b", rate=1.0, offset_s=0.0)
    world.run(3.0)
    second = world.start("a", rate=1.0, offset_s=0.0)
    first.meet(Weather(lost=True))
    world.run(2 * world.terms.length_s)
    assert second.membership.term.lease.holds(second.loop.time())
    first.meet(Weather())
    world.run(3.0)

    first.stop()
    world.run(3.0)

    assert list(world.processes.values()) == [world.processes[1], second]
    assert second.membership.term.lease.holds(second.loop.time())
    world.close()


def test_a_claim_of_which_nobody_knows_is_given_up(config: Config) -> None:
    """Point 4: an agent that was claimed without its new owner hearing of it gets to whose share it is by then."""
    world = World(config, seed=0)
    second = next(name for name in map(str, range(99)) if assigned("101", ["a", name]) == name)
    third = next(name for name in map(str, range(99)) if assigned("101", ["a", second, name]) == name != second)
    world.start("a", rate=1.0, offset_s=0.0)
    world.run(3.0)
    claimant = world.start(second, rate=1.0, offset_s=0.0)
    watch = world.servers.watch

    def cut(key: str, before: Value | None, value: bytes | None) -> None:
        watch(key, before, value)
        if key == "agent.101" and Codec.read(value or b"").owner == claimant.pages.owner:
            claimant.meet(Weather(deaf=True))

    world.servers.watch = cut
    while not claimant.port.weather.deaf:
        world.run(0.1)
    world.servers.watch = watch
    world.start(third, rate=1.0, offset_s=0.0)
    world.run(2.2)
    claimant.meet(Weather())
    world.run(12.0)

    owner, at = world.gateway.polled_at["101"]
    assert owner.startswith(f"{third}/")
    assert at > world.now - 1.0
    world.close()


def test_a_newcomer_judges_nobody_for_what_was_before(config: Config) -> None:
    """Point 5: who waited to be a member while there was no quorum strikes out nobody who could not renew."""
    world = World(config, seed=0)
    for place, name in enumerate(("a", "b", "c")):
        world.start(name, rate=1.0, offset_s=0.0)
        world.run(0.5 + place)
    terms = {process.membership.term.owner for process in world.processes.values() if process.name != "a"}
    first = world.processes[0]
    world.start("a", rate=1.0, offset_s=0.0)
    first.freeze()
    world.lose_quorum(queue=False)
    world.run(2 * world.terms.length_s)
    world.regain_quorum()
    world.run(5.0)

    assert terms <= {process.membership.term.owner for process in world.processes.values()}
    world.close()


@pytest.mark.parametrize("longer_s", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5])
def test_who_does_not_fit_judges_nobody_for_what_was_before(config: Config, longer_s: float) -> None:
    """Point 6: who starts with another configuration while there is no quorum is refused, and strikes nobody out."""
    world = World(config, seed=0)
    first = world.start("a", rate=1.0, offset_s=0.0)
    world.run(3.0)
    term = first.membership.term
    world.config = replace(config, agents=config.agents[:1])
    world.lose_quorum(queue=False)
    world.start("b", rate=1.0, offset_s=0.0)
    world.run(2 * world.terms.length_s + longer_s)
    world.regain_quorum()

    with pytest.raises(StartError, match="member a has another configuration"):
        world.run(5.0)
    assert first.membership.term is term
    world.close()


def test_who_missed_a_reload_waits_for_another(config: Config) -> None:
    """Point 6: who was struck out and has not read what all others have by now goes on as soon as it has."""
    world = World(config, seed=0)
    first, second = world.start("a", rate=1.0, offset_s=0.0), world.start("b", rate=1.0, offset_s=0.0)
    world.run(3.0)
    fewer = replace(config, agents=config.agents[:1])
    first.meet(Weather(lost=True))
    world.run(2 * world.terms.length_s)
    second.membership.adopt(fewer)
    first.meet(Weather())
    world.run(5.0)
    assert not first.membership.term.lease.holds(first.loop.time())

    first.membership.adopt(fewer)
    world.run(2.0)

    assert first.membership.term.lease.holds(first.loop.time())
    world.close()


# What the model is worth: mistakes that it finds.

Spoil = Callable[[pytest.MonkeyPatch], None]


def no_drift(spoil: pytest.MonkeyPatch) -> None:
    """Trust all clocks to go alike."""
    spoil.setattr(lease, "_DRIFT", 0.0)
    spoil.setattr(Fleet, "drift", 0.2)


def count_from_writing(spoil: pytest.MonkeyPatch) -> None:
    """Count from when a lease was written, by the servers' clock, rather than from when that was seen."""
    look = lease.Census.look

    def looked(self: lease.Census, revisions: Mapping[str, int], now: float) -> None:
        look(self, revisions, now)
        self._seen = {
            name: (revision, Fleet.newest.servers.written_at(revision)) for name, revision in revisions.items()
        }

    spoil.setattr(lease.Census, "look", looked)


def count_from_the_answer(spoil: pytest.MonkeyPatch) -> None:
    """Count an own lease from the answer, rather than from asking."""

    def grant(self: Term, _asked_at: float) -> None:
        self.lease.granted(asyncio.get_running_loop().time())
        self._renewed.set()

    spoil.setattr(Term, "grant", grant)


def poll_to_the_end(spoil: pytest.MonkeyPatch) -> None:
    """Begin polls that the lease does not outlive."""
    of = lease.Terms.of
    spoil.setattr(lease.Terms, "of", lambda hold_s: replace(of(hold_s), poll_s=0.0))


def strike_whatever_is_there(spoil: pytest.MonkeyPatch) -> None:
    """Strike a member out whatever its lease is by now."""
    strike = Port.strike
    spoil.setattr(Port, "strike", lambda self, name, _revision: strike(self, name, 0))


def claim_without_asking(spoil: pytest.MonkeyPatch) -> None:
    """Claim agents although their owners are alive."""

    async def is_alive(_self: Membership, _owner: str) -> bool:
        return False

    spoil.setattr(Membership, "is_alive", is_alive)


def ask_who_leads(spoil: pytest.MonkeyPatch) -> None:
    """Believe who leads, or did a moment ago, that an owner is gone."""

    async def is_alive(self: Membership, owner: str) -> bool:
        name, _, term = owner.rpartition("/")
        found = await self._engine.member(name)
        entry = None if found is None else entry_of(found.value)
        return entry is not None and entry.term == term

    spoil.setattr(Membership, "is_alive", is_alive)


def claim_over_anything(spoil: pytest.MonkeyPatch) -> None:
    """Append to a journal behind whatever is there."""
    write = Servers.write

    def written(self: Servers, key: str, value: bytes | None, after: int | None, message_id: str | None = None) -> int:
        return write(self, key, value, None if key.startswith("agent.") else after, message_id)

    spoil.setattr(Servers, "write", written)


@pytest.mark.parametrize(
    "mistake",
    [
        no_drift,
        count_from_writing,
        count_from_the_answer,
        poll_to_the_end,
        strike_whatever_is_there,
        claim_without_asking,
        ask_who_leads,
        claim_over_anything,
    ],
)
def test_a_mistake_is_found(config: Config, monkeypatch: pytest.MonkeyPatch, mistake: Spoil) -> None:
    """Each rule of the protocol is needed: without it the model has a counter-example."""
    monkeypatch.setattr(Fleet, "recovers", False)
    mistake(monkeypatch)

    with pytest.raises(WrongError):
        check(config, FIRST)
