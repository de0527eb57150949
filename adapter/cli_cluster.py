"""`ccgateway2mqtt cluster`: a look at a fleet, members that are to be empty, its end. What that does is elsewhere."""

import asyncio
from pathlib import Path
from typing import Any

import click

from adapter.cli_group import FAILED, Group, config_option, examples, tell
from adapter.errors import StartError

_timeout = click.option(
    "--timeout", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Seconds after which to give up."
)


def _load(path: Path) -> Any:  # noqa: ANN401 - a configuration
    """Read a configuration that leads to a fleet: by its section, or to that of `run --processes`."""
    from adapter.cluster import processes
    from adapter.config import load

    config = load(path)
    return processes.reach(config) if config.cluster is None else config


@click.group(cls=Group)
def cluster() -> None:
    """Look at a fleet of several processes, empty one of them, or end it; docs/cluster.md.

    FILE has the section cluster, or is what a `run --processes` on this machine runs with.
    """


@cluster.command(
    epilog=examples(
        "ccgateway2mqtt cluster status -c config.yaml", "ccgateway2mqtt cluster status -c config.yaml --json"
    )
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print it for programs.")
def status(path: Path, *, as_json: bool) -> None:
    """Show the members, their agents, and what is stored at the servers.

    FILE is the configuration of any member; exit code 0 where every agent has a live owner.
    """
    from adapter.cluster import status as fleet

    found = asyncio.run(fleet.look(_load(path)))
    click.echo(found.render() if as_json else "\n".join(found.lines()))
    if found.unowned:
        raise StartError(f"cluster: {found.verdict}", exit_code=FAILED)


@cluster.command(epilog=examples("ccgateway2mqtt cluster drain node-2 -c config.yaml"))
@click.argument("instance")
@config_option
@_timeout
def drain(instance: str, path: Path, timeout: float) -> None:
    """Have the member INSTANCE hand its agents over; return when it has none.

    It stays empty until it is started again, or by `cluster undrain`.
    """
    from adapter.cluster.draining import turn

    asyncio.run(turn(_load(path), instance, leaving=True, within_s=timeout, tell=tell))


@cluster.command(epilog=examples("ccgateway2mqtt cluster undrain node-2 -c config.yaml"))
@click.argument("instance")
@config_option
@_timeout
def undrain(instance: str, path: Path, timeout: float) -> None:
    """Have the member INSTANCE take its share of the agents again."""
    from adapter.cluster.draining import turn

    asyncio.run(turn(_load(path), instance, leaving=False, within_s=timeout, tell=tell))


@cluster.command(epilog=examples("ccgateway2mqtt cluster leave -c config.yaml"))
@config_option
def leave(path: Path) -> None:
    """Bring all that a fleet has to storage.path, for one process alone, and delete the fleet.

    Stop all members first. Then take the section cluster out of FILE; no event, seq or GUID is lost.
    """
    from adapter.cluster import leaving
    from adapter.config import load

    asyncio.run(leaving.leave(load(path), tell))
