"""What an event costs on its whole way: the gateway holds no poll and has an event in every answer.

From the poll to the PUBACK, ours stored on disk in between (``synchronous=FULL``, as it always is). The Node-RED flow
publishes each event once, as it came. Ours publishes it on two topics, and the agent's state, all with QoS 1.
"""

from collections.abc import Iterator
from statistics import median

from bench.clients import CLIENTS, NODE_RED, OURS
from bench.report import Bound, Row, compared, spread
from bench.stage import Measurement, Setting, staged
from bench.support import BenchError, say, table

_BOUND = Bound(at_most=0.3, aim=0.15)
_HOLD_S = 2.0
"""No poll is held: only the start is spread over this."""
_WARM_UP_S = 3.0
_LEAST = 0.5
"""PUBLISHes per event, at least: the broker says once a second how many it got, which is not exact."""

Found = dict[str, list[Measurement]]
"""By client."""


def measure(runs: int, agents: int, seconds: float) -> Found:
    """Measure both, in turns."""
    found: Found = {OURS: [], NODE_RED: []}
    for run in range(1, runs + 1):
        for name, measured in found.items():
            with staged(CLIENTS[name], Setting(agents=agents, hold_s=_HOLD_S, full=True), _WARM_UP_S) as stage:
                measured.append(stage.measure(seconds))
            if measured[-1].published < measured[-1].seen.events * _LEAST:
                raise BenchError(f"{name}: the broker did not get the events")
            say(f"events, run {run}: {name}: {measured[-1].cpu_per_event_us:,.0f} µs an event")
    return found


def rows(found: Found) -> Iterator[Row]:
    """Write the line of the table."""
    agents = found[OURS][0].agents
    ours, rival = ([each.cpu_per_event_us for each in found[name]] for name in (OURS, NODE_RED))
    what = f"CPU per event to the PUBACK, AGENT_POLL_WAIT_FLAG off, {agents:,} agents"
    yield compared(what, ours, (NODE_RED, rival), "µs", _BOUND)


def details(found: Found) -> str:
    """Write how it came about."""
    lines = [
        [
            name,
            spread([each.cpu_per_event_us for each in measured], "µs"),
            f"{median(each.seen.events / each.seconds for each in measured):,.0f}",
            f"{median(each.published / each.seen.events for each in measured):.1f}",
            f"{max(each.gateway_cpu_s / each.seconds for each in measured):.0%}",
            f"{sum(len(each.seen.violations) for each in measured):,}",
        ]
        for name, measured in found.items()
    ]
    head = ["client", "CPU per event", "events per second", "PUBLISHes per event"]
    return table([*head, "CPU of the gateway, of a core, at most", "against the document"], lines)
