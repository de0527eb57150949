"""The benchmarks: their parts run, and count what happened; what they measured is not looked at here."""

from bench.clients import adapter, aiohttp_loop
from bench.polls import reload
from bench.report import Bound, compared, written
from bench.stage import Setting, staged


def test_the_adapter_is_measured_with_its_gateway_and_its_broker() -> None:
    """A window counts the client's polls, its CPU time, its memory and what it published, and finds it lawful."""
    with staged(adapter, Setting(agents=3, hold_s=0.5)) as stage:
        found = stage.measure(2.0)

    assert found.agents == 3
    assert found.seen.polls > 0
    assert found.cpu_s > 0
    assert found.rss_bytes > 10_000_000
    assert sum(count for _, count in found.seen.pauses_ms) == found.seen.polls
    assert (found.seen.short, found.seen.broken, found.seen.violations) == (0, 0, [])


def test_every_answer_can_have_an_event() -> None:
    """With `full`, polls end with an event each, and the adapter publishes more than one message for it."""
    with staged(adapter, Setting(agents=3, hold_s=0.5, full=True)) as stage:
        found = stage.measure(3.0)

    assert found.seen.events > 0
    assert found.seen.broken == 0
    assert abs(found.seen.events - found.seen.polls) <= found.agents
    assert found.published > found.seen.events


def test_a_reload_adds_the_agent_that_the_gateway_has_to_spare() -> None:
    """The new agent is polled, and what the others do meanwhile is looked at."""
    with staged(adapter, Setting(agents=3, hold_s=0.5, spare=1)) as stage:
        assert stage.unseen() == 1

        found = reload(stage)

        assert stage.unseen() == 0
    assert (found.seen.broken, found.seen.short, found.seen.violations) == (0, 0, [])


def test_the_bare_loop_keeps_to_the_interface_document() -> None:
    """What we compare with does what it must to be let in, at the same pace."""
    with staged(aiohttp_loop, Setting(agents=3, hold_s=0.5, full=True)) as stage:
        found = stage.measure(2.0)

    assert found.seen.events > 0
    assert (found.seen.short, found.seen.broken, found.seen.violations) == (0, 0, [])


def test_a_row_compares_medians_and_says_whether_the_bound_is_met() -> None:
    """The ratio is that of the medians, and the bound itself is met."""
    bound = Bound(at_most=0.5, aim=0.25)

    met = compared("poll", [1.0, 2.0, 9.0], ("other", [4.0, 4.0, 1.0]), "µs", bound)
    missed = compared("poll", [2.1], ("other", [4.0]), "µs", bound)

    assert written([met, missed]).splitlines()[2:] == [
        "| poll | 2 µs | other: 4 µs | 0.5 | 0.5 | 0.25 | met |",
        "| poll | 2 µs | other: 4 µs | 0.525 | 0.5 | 0.25 | not met |",
    ]
