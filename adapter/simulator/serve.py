"""The simulator as a program of its own: what `ccgateway2mqtt simulate` runs."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from adapter.simulator.certificates import SimulatorError
from adapter.simulator.day import Day, demo_agents
from adapter.simulator.scenario import load_scenario
from adapter.simulator.server import Simulator

_PORTS = range(65536)


def parse_listen(listen: str) -> tuple[str, int]:
    """Split ``HOST:PORT``; an IPv6 address stands in brackets.

    Raises:
        SimulatorError: It is not of that form.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) not in _PORTS:
        raise SimulatorError(f"expected HOST:PORT to listen on, such as 127.0.0.1:8043, got {listen}")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def serve(  # noqa: PLR0913, PLR0917  the options of the command, in its order
    listen: str,
    agents: int,
    scenario: Path | None,
    hold_s: float,
    auth_mode: Literal["dynamic", "static"],
    echo: Callable[[str], None],
) -> None:
    """Simulate a gateway until cancelled.

    Once it is ready, one line of JSON goes to `echo`: ``url``, ``ca_file``, and ``agents``, each with ``workNo``,
    ``guid`` (null while it is signed out), ``password`` and ``phone``.

    Args:
        listen: Where to listen, ``HOST:PORT``; port 0 is a free one.
        agents: How many agents there are, from 101 on; a scenario brings its own.
        scenario: What happens; `None`: a plausible day.
        hold_s: Seconds for which a poll waits, unless the scenario says so.
        auth_mode: How GUIDs are renewed, unless the scenario says so.
        echo: Prints a line.

    Raises:
        SimulatorError: The address, the scenario or the port cannot be used.
    """
    host, port = parse_listen(listen)
    profiles = demo_agents(agents) if scenario is None else ()
    plot = load_scenario(scenario) if scenario is not None else None
    simulator = Simulator(
        agents=profiles, host=host, port=port, hold_s=hold_s, auth_mode=auth_mode, scenario=plot, lean=True
    )
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(simulator)
        except OSError as err:
            raise SimulatorError(f"cannot listen on {listen}: {err.strerror or err}") from err
        known = [
            {"workNo": agent.work_no, "guid": agent.guid, "password": agent.password, "phone": agent.phone}
            for agent in simulator.agents
        ]
        echo(json.dumps({"url": simulator.url, "ca_file": str(simulator.ca_file), "agents": known}))
        if plot is None:
            # Whoever uses the GUIDs of that line cannot sign an agent in again: nobody goes home.
            await Day(simulator, simulator.agents, sign_outs=False).run()
        await asyncio.Event().wait()
