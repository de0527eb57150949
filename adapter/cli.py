"""The command line: options, exit codes, one line for each error. What a command does is elsewhere.

Rules of this file: what people read goes to stderr, what programs read to stdout; modules are imported by the
command that needs them, so that `--help` is quick.
"""

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from adapter import __version__
from adapter.errors import AdapterError, ConfigError, StartError, StorageInUseError

_T = TypeVar("_T")

_FAILED, _WRONG, _IN_USE = 1, 2, 3

_config = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    envvar="CCGATEWAY2MQTT_CONFIG",
    show_envvar=True,
    help="The configuration file.",
)
_username = click.option("--username", help="Log in to the broker as this user instead of the configured one.")
_password_file = click.option(
    "--password-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A file that holds that user's password.",
)


class _Commands(click.Group):
    """Turns the program's errors into one line each on stderr, and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's own signature
        try:
            return super().invoke(ctx)
        except AdapterError as error:
            for line in str(error).splitlines():
                click.echo(line, err=True)
            ctx.exit(_exit_code(error))
        except KeyboardInterrupt:
            ctx.exit(0)


def _exit_code(error: AdapterError) -> int:
    if isinstance(error, StartError):
        return error.exit_code
    if isinstance(error, StorageInUseError):
        return _IN_USE
    return _WRONG if isinstance(error, ConfigError) else _FAILED


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ccgateway2mqtt")
def main() -> None:
    """Bring a contact centre's agent events from the CC-Gateway to MQTT, and call data back.

    See it work:  ccgateway2mqtt demo

    Broker ACLs: the adapter writes agents/#, reads agents/+/calldata/set, agents/+/session/set and
    agents/bridge/request/+; dashboards only read. Who may write the latter three can act as an agent:
    examples/mosquitto/ has an ACL file for each role.
    """


@main.command()
@click.option("--agents", type=click.IntRange(2, 500), default=12, show_default=True, help="How many agents.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="The page's port; any free one if left out.")
@click.option("--duration", type=click.FloatRange(min=1), help="Seconds after which it ends by itself.")
@click.option("--no-browser", is_flag=True, help="Do not open the page in a browser.")
@click.option(
    "--config-out", type=click.Path(path_type=Path, dir_okay=False), help="Write the configuration that it uses."
)
def demo(**options: Any) -> None:  # noqa: ANN401 - click's options, named in adapter.demo
    """Show everything at work on this machine: gateway, broker, adapter, and a live page.

    Nothing has to be configured; nothing is left behind. Ctrl-C ends it.

    Example:  ccgateway2mqtt demo --agents 24
    """
    from adapter import demo as show

    _run(show.run(**options))


@main.command()
@_config
def run(path: Path) -> None:
    """Run the adapter.

    SIGTERM and Ctrl-C stop it without losing an event, SIGHUP reads the configuration again.

    Example:  ccgateway2mqtt run -c config.yaml
    """
    import os

    from adapter import app, logs
    from adapter.config import load

    config = load(path)
    logs.set_up(config.log)
    if _run(app.run(config)) == "restart":
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - the very command that started this process


@main.command()
@_config
@click.option("--online", is_flag=True, help="Also try the gateway's TLS and the broker's log-in, changing nothing.")
@_username
@_password_file
def check(path: Path, *, online: bool, username: str | None, password_file: Path | None) -> None:
    """Validate a configuration file; every mistake in it is told at once.

    Example:  ccgateway2mqtt check -c config.yaml --online
    """
    from adapter import check as checking
    from adapter.config import load

    config = load(path)
    click.echo(f"{path}: valid, {len(config.agents)} agents", err=True)
    if online:
        problems = _run(checking.online(config, _log_in(config.mqtt, username, password_file), _tell))
        if problems:
            raise StartError(f"{path}: {problems} of 2 checks failed", exit_code=_FAILED)


@main.command()
@click.option(
    "-c", "--config", "path", type=click.Path(path_type=Path, dir_okay=False), help="Take the broker from this file."
)
@click.option("--broker", help="The broker's address, where there is no configuration file: mqtt://host:1883.")
@click.option("--prefix", default="agents", show_default=True, help="The topic prefix, with --broker.")
@_username
@_password_file
def watch(path: Path | None, broker: str | None, prefix: str, username: str | None, password_file: Path | None) -> None:
    """Show all agents in a live table, from the broker.

    Example:  ccgateway2mqtt watch --broker mqtt://broker.example --username wall --password-file wall.txt
    """
    from adapter import watch as watching
    from adapter.config import broker_at, load

    if (path is None) == (broker is None):
        raise click.UsageError("give either -c FILE or --broker URL")
    mqtt = load(path).mqtt if path is not None else broker_at(broker or "", prefix)
    _run(watching.watch(_log_in(mqtt, username, password_file)))


@main.command()
@click.argument("workno")
@click.argument("value")
@_config
@click.option(
    "--ttl", type=click.IntRange(1, 3600), default=60, show_default=True, help="Seconds for which the adapter tries."
)
@_username
@_password_file
def calldata(workno: str, value: str, path: Path, ttl: int, username: str | None, password_file: Path | None) -> None:
    """Send call data VALUE to agent WORKNO: it goes with the agent's next poll; wait for the result.

    Prints the result as JSON; exit code 0 where it was applied.

    Example:  ccgateway2mqtt calldata 101 "customer=4711" -c config.yaml
    """
    from adapter import send
    from adapter.config import load

    mqtt = _log_in(load(path).mqtt, username, password_file)
    result = _run(send.call_data(mqtt, workno, value, ttl, _tell))
    click.echo(result.render().decode())
    if result.status != "applied":
        sys.exit(_FAILED)


@main.command()
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="HOST:PORT; port 0 takes any free one.")
@click.option("--agents", type=click.IntRange(1, 50_000), default=3, show_default=True, help="How many agents.")
@click.option("--scenario", type=click.Path(path_type=Path, dir_okay=False), help="What happens: examples/scenarios/.")
@click.option("--hold", type=click.FloatRange(min=0.05), default=10.0, show_default=True, help="Seconds a poll waits.")
@click.option("--auth-mode", type=click.Choice(["dynamic", "static"]), default="dynamic", show_default=True)
def simulate(listen: str, agents: int, scenario: Path | None, hold: float, auth_mode: str) -> None:
    """Run the gateway simulator alone; prints a line of JSON when it is ready.

    Example:  ccgateway2mqtt simulate --agents 5 --scenario examples/scenarios/busy.yaml
    """
    from adapter.simulator import ScenarioError, SimulatorError, serve

    try:
        _run(serve(listen, agents, scenario, hold, "static" if auth_mode == "static" else "dynamic", click.echo))
    except ScenarioError as error:
        raise StartError(str(error), exit_code=_WRONG) from error
    except SimulatorError as error:
        raise StartError(str(error), exit_code=_FAILED) from error


@main.command()
@click.argument("name", required=False)
def schema(name: str | None) -> None:
    """Print the JSON Schema NAME of a topic's payload or of the configuration; without a name, list them.

    Example:  ccgateway2mqtt schema state
    """
    from adapter import contracts

    if name is None:
        for known in contracts.names():
            click.echo(known)
    else:
        click.echo(contracts.read(name), nl=False)


@main.command()
@_config
def health(path: Path) -> None:
    """Exit with 0 while the adapter that runs with this configuration is well; for containers.

    Example:  ccgateway2mqtt health -c config.yaml
    """
    from adapter import check as checking
    from adapter.config import load

    _tell(checking.health(load(path).storage.path))


def _log_in(mqtt: Any, username: str | None, password_file: Path | None) -> Any:  # noqa: ANN401 - see below
    """Put another user into the broker's configuration."""
    from dataclasses import replace

    if username is None:
        return mqtt
    try:
        password = None if password_file is None else password_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{password_file}: cannot be read as text", exit_code=_WRONG) from error
    return replace(mqtt, username=username, password=password)


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run(work)
