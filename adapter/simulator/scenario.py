"""Scenarios: what happens to the agents, and to the answers they get, as a YAML file.

The format is written down in examples/scenarios/README.md; this file reads it into values, and tells every
mistake with its place. `player` makes it happen.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.simulator import faults
from adapter.simulator.agent import SimAgent
from adapter.simulator.faults import NONE, Fault
from adapter.simulator.samples import SAMPLES
from adapter.simulator.yaml_nodes import Node, read

_DEPTH_LIMIT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an agent's timeline.

    Attributes:
        after_s: Seconds to wait since the step before, drawn between the two.
        at_s: Seconds since the pass began, in place of `after_s`; `None`: `after_s` holds.
        action: What happens: ``event emit fault sign_out sign_in expire_guid status cut repeat`` or ``wait``.
        argument: What the action needs: of an event its type and content, of a repeat its count and steps.
    """

    after_s: tuple[float, float] = (0.0, 0.0)
    at_s: float | None = None
    action: str
    argument: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """Steps that are gone through again and again; `times` may be infinite."""

    times: float
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """A fault on each poll of some agents whose count is a multiple of `polls`."""

    polls: int
    agents: tuple[str, ...]
    fault: Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A scenario.

    Attributes:
        agents: Who is there.
        settings: Those members of `Settings` which the file sets.
        seed: Of everything that is drawn.
        loops: How many times the timelines are gone through; may be infinite.
        timeline: Work number to steps.
        every: Faults that come again and again.
    """

    agents: tuple[SimAgent, ...]
    settings: Mapping[str, Any]
    seed: int
    loops: float
    timeline: Mapping[str, tuple[Step, ...]]
    every: tuple[Every, ...]


def load_scenario(file: Path) -> Scenario:
    """Read a scenario file.

    Raises:
        ScenarioError: There is a mistake in it; it names file, line, path of keys, and what was expected.
    """
    root = read(file)
    parts = root.mapping(
        ("seed", "loops", "gateway", "agents", "timeline", "every"), "a mapping with agents and a timeline"
    )
    if "agents" not in parts:
        root.fail("expected agents, a list of work numbers")
    agents = [_agent(node) for node in parts["agents"].items("a list of work numbers")]
    known = tuple(agent.work_no for agent in agents)
    if len(set(known)) < len(known):
        parts["agents"].fail("expected every work number once")
    timeline: dict[str, tuple[Step, ...]] = {}
    if "timeline" in parts:
        for work_no, node in parts["timeline"].entries("a mapping of work numbers to steps").items():
            if work_no not in known:
                node.fail(f"expected a work number of agents, got {work_no}")
            timeline[work_no] = _steps(node, 0)
    loops = _times(parts["loops"]) if "loops" in parts else 1
    if loops == math.inf and not any(_takes_time(steps) for steps in timeline.values()):
        parts["loops"].fail("expected some time to pass in what is repeated forever")
    every = parts["every"].items("a list of repeated faults") if "every" in parts else []
    return Scenario(
        agents=tuple(agents),
        settings=_settings(parts["gateway"]) if "gateway" in parts else {},
        seed=parts["seed"].whole("a whole number") if "seed" in parts else 1,
        loops=loops,
        timeline=timeline,
        every=tuple(_every(node, known) for node in every),
    )


def _times(node: Node) -> float:
    return math.inf if node.value() == "forever" else node.whole("a number of times or forever", least=1)


def _settings(node: Node) -> dict[str, Any]:
    times = ("hold", "guid_interval", "guid_timeout", "poll_max_time")
    parts = node.mapping((*times, "poll_wait", "auth_mode"), "the gateway's settings")
    settings: dict[str, Any] = {f"{key}_s": parts[key].number("seconds") for key in times if key in parts}
    if "poll_wait" in parts:
        settings["poll_wait"] = parts["poll_wait"].flag()
    if "auth_mode" in parts:
        settings["auth_mode"] = parts["auth_mode"].choice(("dynamic", "static"))
    return settings


def _agent(node: Node) -> SimAgent:
    if not node.is_mapping():
        return SimAgent(work_no=node.text("a work number"))
    parts = node.mapping(
        ("work_no", "name", "group", "password", "phone", "guid", "signed_in"),
        "a work number, or a mapping with work_no",
    )
    if "work_no" not in parts:
        node.fail("expected work_no")
    signed_in = parts.pop("signed_in", None)
    texts = {key: part.text() for key, part in parts.items()}
    return SimAgent(
        work_no=texts["work_no"],
        name=texts.get("name"),
        group=texts.get("group"),
        password=texts.get("password"),
        phone=texts.get("phone"),
        guid=texts.get("guid"),
        signed_in=None if signed_in is None else signed_in.flag(),
    )


def _every(node: Node, known: tuple[str, ...]) -> Every:
    parts = node.mapping(("polls", "agents", "fault"), "polls, fault, and perhaps agents")
    for key in ("polls", "fault"):
        if key not in parts:
            node.fail(f"expected {key}")
    agents = known
    if "agents" in parts:
        named = parts["agents"].items("a list of work numbers")
        agents = tuple(item.choice(known) for item in named)
    polls = parts["polls"].whole("a number of polls", least=1)
    return Every(polls=polls, agents=agents, fault=_fault(parts["fault"]))


def _steps(node: Node, depth: int) -> tuple[Step, ...]:
    if depth > _DEPTH_LIMIT:
        node.fail(f"expected at most {_DEPTH_LIMIT} repeats inside each other")
    return tuple(_step(item, depth) for item in node.items("a list of steps"))


def _step(node: Node, depth: int) -> Step:
    kinds = ("event", "fault", "sign_out", "sign_in", "expire_guid", "status", "cut", "repeat")
    parts = node.mapping(("after", "at", "content", "request", "steps", *kinds), "one step")
    chosen = [kind for kind in kinds if kind in parts]
    if len(chosen) > 1:
        node.fail(f"expected one thing to happen, got {' and '.join(chosen)}")
    if "after" in parts and "at" in parts:
        node.fail("expected after or at, got both")
    for key, needs in (("content", "event"), ("request", "fault"), ("steps", "repeat")):
        if key in parts and needs not in parts:
            parts[key].fail(f"goes with {needs} only")
    at_s = parts["at"].number("seconds since the beginning") if "at" in parts else None
    after_s = _range(parts["after"]) if "after" in parts else (0.0, 0.0)
    kind = chosen[0] if chosen else "wait"
    action, argument = (kind, None) if kind == "wait" else _ARGUMENTS[kind](parts, depth)
    return Step(after_s=after_s, at_s=at_s, action=action, argument=argument)


def _range(node: Node) -> tuple[float, float]:
    if not node.is_list():
        seconds = node.number("seconds, or [least, most]")
        return seconds, seconds
    items = [item.number("seconds") for item in node.items("[least, most]")]
    if len(items) != 2 or items[0] > items[1]:  # noqa: PLR2004  least and most
        node.fail(f"expected [least, most] in seconds, got {items}")
    return items[0], items[1]


_Argument = tuple[str, Any]


def _event(parts: dict[str, Node], _depth: int) -> _Argument:
    node = parts["event"]
    if node.is_mapping():
        if "content" in parts:
            parts["content"].fail("an event written out has its content inside")
        return "emit", node.json_value()
    name = node.text("an event type, or an event written out as a mapping")
    if name not in SAMPLES:
        near = difflib.get_close_matches(name, SAMPLES, 1)
        hint = f"; did you mean {near[0]}?" if near else "; write other events out as a mapping"
        node.fail(f"expected a known event type, got {name}{hint}")
    return "event", (name, parts["content"].json_value() if "content" in parts else ...)


def _fault_step(parts: dict[str, Node], _depth: int) -> _Argument:
    on = "poll"
    if "request" in parts:
        on = parts["request"].choice(("poll", "login", "forcelogin", "logout", "forcelogout", "agentstatus"))
    node = parts["fault"]
    nodes = node.items("a fault or a list of them") if node.is_list() else [node]
    return "fault", (on, tuple(_fault(item) for item in nodes))


def _repeat(parts: dict[str, Node], depth: int) -> _Argument:
    if "steps" not in parts:
        parts["repeat"].fail("expected steps beside it")
    repeated = Repeated(times=_times(parts["repeat"]), steps=_steps(parts["steps"], depth + 1))
    if repeated.times == math.inf and not _takes_time(repeated.steps):
        parts["repeat"].fail("expected some time to pass in what is repeated forever")
    return "repeat", repeated


def _takes_time(steps: Iterable[Step]) -> bool:
    return any(
        step.after_s[0] or step.at_s or (isinstance(step.argument, Repeated) and _takes_time(step.argument.steps))
        for step in steps
    )


def _true(name: str) -> Callable[[dict[str, Node], int], _Argument]:
    def check(parts: dict[str, Node], _depth: int) -> _Argument:
        if not parts[name].flag():
            parts[name].fail("expected true, or no such step")
        return name, None

    return check


_ARGUMENTS: dict[str, Callable[[dict[str, Node], int], _Argument]] = {
    "event": _event,
    "fault": _fault_step,
    "repeat": _repeat,
    "sign_in": _true("sign_in"),
    "expire_guid": _true("expire_guid"),
    "cut": _true("cut"),
    "sign_out": lambda parts, _: ("sign_out", parts["sign_out"].choice(("told", "untold"))),
    "status": lambda parts, _: ("status", parts["status"].whole("a state code")),
}


def _bytes(node: Node) -> bytes:
    value = node.value()
    return value if isinstance(value, bytes) else node.text("text, or !!binary").encode()


def _drop(node: Node) -> Fault:
    if node.value() is True:
        return faults.drop()
    return faults.drop(node.whole("true, or a number of bytes"))


def _when(fault: Fault) -> Callable[[Node], Fault]:
    return lambda node: fault if node.flag() else NONE


def _headers(node: Node) -> Fault:
    return faults.headers({name: value.text() for name, value in node.entries("header lines").items()})


_FAULTS: dict[str, Callable[[Node], Fault]] = {
    "status": lambda node: faults.status(node.whole("an HTTP status", least=200)),
    "body": lambda node: Fault(body=_bytes(node)),
    "retcode": lambda node: faults.retcode(node.text("a retcode")),
    "message": lambda node: Fault(message=node.text()),
    "garbage": lambda node: faults.garbage(_bytes(node)),
    "raw": lambda node: faults.raw(_bytes(node)),
    "drop": _drop,
    "hang": _when(faults.hang()),
    "rotate": _when(faults.rotate()),
    "chunked": _when(faults.chunked()),
    "close_delimited": _when(faults.close_delimited()),
    "slow": lambda node: faults.slow(node.number("bytes per second", least=1)),
    "delay": lambda node: faults.delay(node.number("seconds")),
    "headers": _headers,
}


def _fault(node: Node) -> Fault:
    parts = node.mapping(_FAULTS, f"a fault: one or more of {', '.join(_FAULTS)}")
    fault = NONE
    for key, part in parts.items():
        fault |= _FAULTS[key](part)
    if fault == NONE:
        node.fail(f"expected a fault: one or more of {', '.join(_FAULTS)}")
    return fault
