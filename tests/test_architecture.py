"""The floors: what a module may import. A new module gets its place here before it is merged."""

import ast
import functools
from pathlib import Path

import adapter

FLOORS = (
    # 1 words
    ("errors", "topics", "metrics", "catalogue", "outage", "clock"),
    # 2 values
    ("event", "answer", "payloads", "privacy", "state", "store", "store.records", "command"),
    ("config.nodes", "config.source", "config.rules", "config.words", "config.grammar", "config.check"),
    ("config.schema", "config.settings", "config.report", "config", "contracts", "channels", "asyncapi"),
    # 3 ports
    (
        "store.sql",
        "store.lock",
        "store.worker",
        "store.newest",
        "store.file",
        "store.rows",
        "store.database",
        "store.writer",
        "store.outbox",
    ),
    ("transport.reading", "transport.common", "transport.wire", "transport.single", "transport"),
    (
        "machine",
        "gateway",
        "mqtt.message",
        "mqtt.packets",
        "mqtt.gathered",
        "mqtt.paho_loop",
        "mqtt.connection",
        "mqtt.broker",
        "mqtt",
    ),
    # 4 one agent
    ("agent", "agent.pace", "agent.session", "agent.presence", "agent.mailbox", "agent.signing", "agent.poller"),
    # 5 flows of the whole
    (
        "suspicion",
        "publisher",
        "mark",
        "standing",
        "subscriber",
        "link",
        "intake",
        "commands",
        "bridge",
        "fleet",
        "logs",
    ),
    ("diagnostics", "operations", "role"),
    (
        "cluster.lease",
        "cluster.shares",
        "cluster.topics",
        "cluster.codec",
        "cluster.servers",
        "cluster.talk",
        "cluster.answers",
        "cluster.layout",
        "cluster.engine",
        "cluster.entry",
        "cluster.term",
        "cluster.membership",
        "cluster.quorum",
        "cluster.kept",
        "cluster.pages",
        "cluster.journal",
        "cluster.claims",
        "cluster.late",
        "cluster.strays",
        "cluster.fleet",
        "cluster.commands",
        "cluster.requests",
        "cluster.speaker",
        "cluster.moving",
        "cluster.moving_in",
        "cluster.moving_out",
        "cluster.leaving",
        "cluster.joining",
        "cluster.observing",
        "cluster.status",
        "cluster.draining",
        "cluster",
    ),
    ("home_assistant.devices", "home_assistant.announcing", "home_assistant"),
    # 6 the whole, and what stands beside it
    ("preparation", "loop_delay", "wall", "listener", "app"),
    ("simulator", "nats", "check", "doctor", "purge", "send", "watch", "cluster.processes"),
    # 7 command line
    ("demo_lines", "demo"),
    ("cli_group", "cli_cluster", "cli", "__main__"),
)
"""From the bottom up: names below `adapter`. Within a floor a module may use those on its left, never the others.
A package can be one entry (`config`), with an order of its own within, or several (`config.rules`)."""

WAY = ("agent.poller", "publisher", "mark", "fleet", "link", "commands", "bridge", "logs")
"""The way from answer to topic, and what is always on it: nothing optional is imported from there."""
BESIDE = {
    "listener",
    "loop_delay",
    "watch",
    "wall",
    "nats",
    "send",
    "check",
    "doctor",
    "purge",
    "simulator",
    "contracts",
    "channels",
    "asyncapi",
}
BESIDE |= {name for floor in FLOORS for name in floor if name.partition(".")[0] == "cluster"}
BESIDE |= {"home_assistant", "home_assistant.devices", "home_assistant.announcing"}
OPTIONAL = BESIDE | {"demo", "demo_lines", "cli_group", "cli_cluster", "cli"}

ROOT = Path(adapter.__file__).parent
PLACES = {name: place for place, name in enumerate(name for floor in FLOORS for name in floor)}


def entry_of(module: str) -> str:
    """Find the entry of FLOORS for a dotted name below `adapter`: the longest that it begins with, else itself."""
    fitting = [name for name in PLACES if f"{module}.".startswith(f"{name}.")]
    return max(fitting, key=len, default=module)


@functools.cache
def imports() -> dict[str, set[str]]:
    """Read from every file which entries it imports, wherever in the file, by the entry that it belongs to."""
    found: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not module:  # adapter itself holds the version alone
            continue
        targets = found.setdefault(entry_of(module), set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module == "adapter":
                names = [f"adapter.{alias.name}" for alias in node.names if alias.name != "__version__"]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            ours = {entry_of(name.removeprefix("adapter.")) for name in names if name.startswith("adapter.")}
            targets |= ours - {entry_of(module)}
    return found


def test_every_module_has_its_floor() -> None:
    """No module without a place, and no place without a module."""
    assert set(imports()) == set(PLACES)


def test_imports_go_down() -> None:
    """No module imports one of a higher place."""
    upward = {  # those without a place are the other test's
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in targets
        if PLACES.get(target, 0) >= PLACES.get(module, len(PLACES))
    }

    assert upward == set()


def test_the_simulator_shares_nothing_with_us() -> None:
    """A mistake of ours cannot hide itself in the simulator."""
    assert imports()["simulator"] == set()


def test_nothing_imports_the_command_line() -> None:
    """`cli` is imported by `__main__` alone, `demo` by `cli` alone."""
    users = {name: {module for module, targets in imports().items() if name in targets} for name in ("cli", "demo")}

    assert users == {"cli": {"__main__"}, "demo": {"cli"}}


def test_the_way_is_free_of_what_is_optional() -> None:
    """What stands beside the way from answer to topic is imported by nothing on it, directly or not."""
    graph, reached = imports(), set(WAY)
    while more := {target for module in reached for target in graph[module]} - reached:
        reached |= more

    assert reached & OPTIONAL == set()
