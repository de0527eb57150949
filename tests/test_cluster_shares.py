"""Shares: whose agent is whose, without anybody deciding it (issue 6, point 2 and 4)."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from adapter.cluster.shares import assigned, shares
from tests.hypothesis_support import patient

NAMES = st.text(min_size=1, max_size=12)
FLEETS = st.sets(NAMES, min_size=1, max_size=8)
AGENTS = st.lists(
    st.text(st.characters(codec="ascii", categories=["Nd", "L"]), min_size=1, max_size=6), unique=True, max_size=20
)


@given(AGENTS, st.lists(NAMES, min_size=1, max_size=8, unique=True))
@patient
def test_all_members_come_to_the_same_shares(agents: list[str], members: list[str]) -> None:
    """Point 2: in whatever order a member sees the others, it computes what they compute."""
    found = shares(agents, members)

    assert found == shares(reversed(agents), reversed(members))
    assert set(found) == set(agents)
    assert set(found.values()) <= set(members)
    assert found == {work_no: assigned(work_no, members) for work_no in agents}


@given(AGENTS, FLEETS, NAMES)
@patient
def test_a_newcomer_takes_its_share_and_moves_nothing_else(agents: list[str], members: set[str], name: str) -> None:
    """Point 4: an agent that moves when a member joins moves to that one."""
    before, after = (
        shares(agents, members - {name} or {"other"}),
        shares(agents, (members - {name} or {"other"}) | {name}),
    )

    assert all(after[work_no] in {before[work_no], name} for work_no in agents)


@given(AGENTS, FLEETS, NAMES)
@patient
def test_only_the_agents_of_a_leaver_move(agents: list[str], members: set[str], name: str) -> None:
    """Point 4: who stays keeps what it has."""
    staying = members - {name} or {"other"}
    before, after = shares(agents, staying | {name}), shares(agents, staying)

    assert all(after[work_no] == before[work_no] for work_no in agents if before[work_no] != name)


def test_shares_are_fair() -> None:
    """Point 4: of 4,000 agents each of four members has a quarter, but for what chance does."""
    for fleet in (["a", "b", "c", "d"], [f"ccgateway2mqtt-{number}" for number in range(4)]):
        counted = Counter(shares([str(10_000 + number) for number in range(4_000)], fleet).values())

        assert set(counted) == set(fleet)
        assert all(880 < count < 1_120 for count in counted.values()), counted  # over four standard deviations


def test_a_newcomer_takes_its_fair_share_from_all() -> None:
    """Point 4: the fifth member takes a fifth from each of the four."""
    agents = [str(10_000 + number) for number in range(4_000)]
    before, after = shares(agents, "abcd"), shares(agents, "abcde")

    moved = Counter(before[work_no] for work_no in agents if after[work_no] == "e")

    assert all(150 < moved[name] < 250 for name in "abcd"), moved


def test_without_members_an_agent_is_nobodys() -> None:
    """Point 2: nobody is nobody."""
    assert assigned("101", []) is None
