"""The command line: commands and options. What a command does is elsewhere.

Rules of this file:
1. What people read goes to stderr, what programs read to stdout. `demo`, `watch` and `cluster status` are there to be
   looked at: what they show goes to stdout.
2. Modules are imported by the command that needs them, so that `--help` is quick.
"""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from adapter import __version__
from adapter.cli_cluster import cluster
from adapter.cli_group import FAILED, WRONG, Group, config_option, examples, tell
from adapter.errors import StartError

_T = TypeVar("_T")

_username = click.option("--username", help="Log in to the broker as this user instead of the configured one.")
_password_file = click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A file that holds that user's password.",
)


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "ccgateway2mqtt demo",
        "ccgateway2mqtt check -c config.yaml --online",
        "ccgateway2mqtt run -c config.yaml",
    ),
)
@click.version_option(__version__, prog_name="ccgateway2mqtt")
def main() -> None:
    """Bring a contact centre's agent events from the CC-Gateway to MQTT, and call data back.

    Broker ACLs: the adapter writes agents/#, reads agents/+/calldata/set, agents/+/session/set and
    agents/bridge/request/+; dashboards only read. Who may write the latter three can act as an agent:
    examples/mosquitto/ has an ACL file for each role.
    """


@main.command(
    epilog=examples(
        "ccgateway2mqtt demo --agents 24",
        "ccgateway2mqtt demo --duration 20 --no-browser --config-out config.yaml",
    )
)
@click.option("--agents", type=click.IntRange(2, 500), default=12, show_default=True, help="How many agents.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The page's port; any free one if left out.")
@click.option("--duration", type=click.FloatRange(min=1), help="Seconds after which it ends by itself.")
@click.option("--no-browser", is_flag=True, help="Do not open the page in a browser.")
@click.option(
    "--config-out", type=click.Path(path_type=Path, dir_okay=False), help="Write the configuration that it uses."
)
def demo(**options: Any) -> None:  # noqa: ANN401 - they are `demo.Options`
    """Show everything at work on this machine: gateway, broker, adapter, and a live page.

    Nothing has to be configured; nothing is left behind. Ctrl-C ends it.
    """
    from adapter import demo as show

    _run(show.run(show.Options(**options)))


@main.command(epilog=examples("ccgateway2mqtt run -c config.yaml", "ccgateway2mqtt run -c config.yaml --processes 4"))
@config_option
@click.option(
    "--processes", type=click.IntRange(1, 64), help="Share the agents among so many processes, for as many cores."
)
@click.option("--member", type=int, hidden=True)
def run(path: Path, processes: int | None, member: int | None) -> None:
    """Run the adapter.

    SIGTERM and Ctrl-C stop it without losing an event, SIGHUP reads the configuration again.
    """
    import os

    # httpx imports a command line of its own where it can, with rich and pygments: 6 MB that nothing here uses.
    sys.modules["httpx._main"] = None  # type: ignore[assignment] # what Python takes for "not to be had"
    from adapter import app, logs
    from adapter.config import Config, load

    # Until the running program takes it: it would end one that is still starting, which reads the file anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    orders = None if member is None else _fleet().take_orders(member)

    def read(path: Path) -> Config:
        return load(path) if orders is None else orders.give(load(path))

    config = read(path)
    logs.set_up(config.log)
    if orders is None and processes is not None:
        _run(_fleet().run(config, processes))
        return
    if orders is None and config.storage.fleet.is_dir():
        _run(_fleet().bring_back(config))
    if _run(app.run(config, control=lambda running: setattr(running, "read", read))) == "restart":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - the very command that started this process


def _fleet() -> Any:  # noqa: ANN401 - a module
    """Import what `run --processes` needs."""
    try:
        from adapter.cluster import processes
    except ModuleNotFoundError as error:
        reason = f"{error.name} is not installed: pip install 'ccgateway2mqtt[cluster,demo]'"
        raise StartError(reason, exit_code=WRONG) from error
    return processes


@main.command(epilog=examples("ccgateway2mqtt check -c config.yaml", "ccgateway2mqtt check -c config.yaml --online"))
@config_option
@click.option("--online", is_flag=True, help="Also look at gateway, broker and machine; nothing stays changed.")
@_username
@_password_file
def check(path: Path, *, online: bool, username: str | None, password_file: Path | None) -> None:
    """Validate a configuration file; every mistake in it is told at once.

    With --online also: the gateway (through its proxy), certificates, clocks, the broker's log-in, ACL and limits, the
    servers of a fleet, open files, ports and the disk, a line for each with what to do about it; exit code 1 where one
    of them failed.
    """
    from adapter.config import load

    config = load(path)
    click.echo(f"{path}: valid, {len(config.agents)} agents", err=True)
    if online:
        from adapter import doctor

        findings = _run(doctor.examine(config, _log_in(config.mqtt, username, password_file), tell))
        outcome = f"{path}: {doctor.summary(findings)}"
        if any(finding.verdict == "failed" for finding in findings):
            raise StartError(outcome, exit_code=FAILED)
        tell(outcome)


@main.command(
    epilog=examples(
        "ccgateway2mqtt watch -c config.yaml",
        "ccgateway2mqtt watch --broker mqtt://broker.example --username wall --password-file wall.txt",
    )
)
@click.option(
    "-c", "--config", "path", type=click.Path(path_type=Path, dir_okay=False), help="Take the broker from this file."
)
@click.option("--broker", help="The broker's address, where there is no configuration file: mqtt://host:1883.")
@click.option("--prefix", help="The topic prefix, with --broker.  [default: agents]")
@_username
@_password_file
def watch(
    path: Path | None, broker: str | None, prefix: str | None, username: str | None, password_file: Path | None
) -> None:
    """Show all agents in a live table, from the broker."""
    from adapter import watch as watching
    from adapter.config import broker_at, load

    if path is not None and broker is None and prefix is None:
        mqtt = load(path).mqtt
    elif path is None and broker is not None:
        mqtt = broker_at(broker, "agents" if prefix is None else prefix)
    else:
        raise click.UsageError("give either -c FILE, or --broker URL with or without --prefix")
    _run_until_told(watching.watch(_log_in(mqtt, username, password_file)))


@main.command(
    epilog=examples(
        'ccgateway2mqtt calldata 101 "customer=4711" -c config.yaml',
        "ccgateway2mqtt calldata 101 - -c config.yaml < value.txt",
    )
)
@click.argument("workno")
@click.argument("value")
@config_option
@click.option(
    "--ttl", type=click.IntRange(1, 3600), default=60, show_default=True, help="Seconds for which the adapter tries."
)
@_username
@_password_file
def calldata(workno: str, value: str, path: Path, ttl: int, username: str | None, password_file: Path | None) -> None:
    """Send call data VALUE to agent WORKNO: it goes with the agent's next poll; wait for the result.

    With - as VALUE it is read from stdin, and everybody who may list processes does not see it.
    Prints the result as JSON; exit code 0 where it was applied.
    """
    from adapter import send
    from adapter.config import load

    mqtt = _log_in(load(path).mqtt, username, password_file)
    if value == "-":
        value = sys.stdin.buffer.read().decode(errors="surrogateescape").rstrip("\r\n")
    result = _run(send.call_data(mqtt, workno, value, ttl, tell))
    click.echo(result.render().decode())
    if result.status != "applied":
        sys.exit(FAILED)


@main.command(epilog=examples("ccgateway2mqtt simulate --agents 5 --scenario examples/scenarios/busy.yaml"))
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="HOST:PORT; port 0 takes any free one.")
@click.option("--agents", type=click.IntRange(1, 50_000), default=3, show_default=True, help="How many agents.")
@click.option("--scenario", type=click.Path(path_type=Path, dir_okay=False), help="What happens: examples/scenarios/.")
@click.option("--hold", type=click.FloatRange(min=0.05), default=10.0, show_default=True, help="Seconds a poll waits.")
@click.option("--auth-mode", type=click.Choice(["dynamic", "static"]), default="dynamic", show_default=True)
def simulate(listen: str, agents: int, scenario: Path | None, hold: float, auth_mode: str) -> None:
    """Run the gateway simulator alone; prints a line of JSON when it is ready."""
    from adapter.simulator import ScenarioError, SimulatorError, parse_listen, serve

    try:
        parse_listen(listen)
    except SimulatorError as error:
        raise StartError(f"--listen: {error}", exit_code=WRONG) from error
    mode: Literal["static", "dynamic"] = "static" if auth_mode == "static" else "dynamic"
    try:
        _run_until_told(serve(listen, agents, scenario, hold, mode, click.echo))
    except ScenarioError as error:
        raise StartError(str(error), exit_code=WRONG) from error
    except SimulatorError as error:
        raise StartError(str(error), exit_code=FAILED) from error


def _schemas(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a schema."""
    from adapter import contracts

    return [name for name in contracts.names() if name.startswith(incomplete)]


@main.command(epilog=examples("ccgateway2mqtt schema", "ccgateway2mqtt schema state"))
@click.argument("name", required=False, shell_complete=_schemas)
def schema(name: str | None) -> None:
    """Print the JSON Schema NAME of a topic's payload or of the configuration; without a name, list them.

    The name asyncapi gives all topics, in AsyncAPI.
    """
    from adapter import contracts

    if name is None:
        for known in contracts.names():
            click.echo(known)
    else:
        click.echo(contracts.read(name), nl=False)


@main.command(epilog=examples("ccgateway2mqtt health -c config.yaml"))
@config_option
def health(path: Path) -> None:
    """Exit with 0 while the adapter that runs with this configuration is well; for containers."""
    from adapter import check as checking
    from adapter.config import load

    tell(checking.health(load(path).storage.path))


@main.command(
    epilog=examples(
        "ccgateway2mqtt purge -c config.yaml",
        "ccgateway2mqtt purge -c config.yaml --storage --yes",
    )
)
@config_option
@click.option("--yes", is_flag=True, help="Do it; without, it is only said what would be done.")
@click.option("--storage", is_flag=True, help="Delete the database too, with what waits in it for the broker.")
@_username
@_password_file
def purge(path: Path, *, yes: bool, storage: bool, username: str | None, password_file: Path | None) -> None:
    """Clear all that this adapter has retained at the broker, to remove it for good.

    Stop it first. Prints the topics; Home Assistant forgets the agents. What others have retained stays.
    """
    from adapter import purge as purging
    from adapter.config import load

    config = load(path)
    mqtt = _log_in(config.mqtt, username, password_file)
    tell(_run(purging.purge(config, mqtt, yes=yes, show=click.echo)))
    if storage:
        purging.delete_storage(config.storage.path, yes=yes, tell=tell)


@main.command(
    epilog=examples(
        'eval "$(ccgateway2mqtt completion bash)"',
        'eval "$(ccgateway2mqtt completion zsh)"',
        "ccgateway2mqtt completion fish > ~/.config/fish/completions/ccgateway2mqtt.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print the completion script of SHELL: Tab then completes commands, options, files and names of schemas.

    The first line below belongs into ~/.bashrc, the second into ~/.zshrc after compinit; fish finds its file by itself.
    """
    from click.shell_completion import get_completion_class

    click.echo(get_completion_class(shell)(main, {}, "ccgateway2mqtt", "_CCGATEWAY2MQTT_COMPLETE").source())


main.add_command(cluster)


def _log_in(mqtt: Any, username: str | None, password_file: Path | None) -> Any:  # noqa: ANN401 - see below
    """Put another user into the broker's configuration."""
    from dataclasses import replace

    if username is None:
        if password_file is not None:
            raise click.UsageError("--password-file needs --username")
        return mqtt
    try:
        password = None if password_file is None else password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{password_file}: cannot be read as text", exit_code=WRONG) from error
    return replace(mqtt, username=username, password=password)


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run(work)


def _run_until_told(work: Coroutine[Any, Any, None]) -> None:
    """Run what only ends by Ctrl-C, SIGTERM, or a terminal that goes away; it cleans up, and that is no failure."""

    async def until_told() -> None:
        task = asyncio.ensure_future(work)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    asyncio.run(until_told())
