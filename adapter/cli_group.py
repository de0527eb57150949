"""What commands have in common: how each ends, the option that names the configuration, examples in the help.

Every error is a line on stderr and an exit code, also one that nobody foresaw.

Never a traceback: it could hold anything.
"""

import contextlib
import io
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from adapter import __version__
from adapter.errors import AdapterError, ConfigError, StartError, StorageInUseError, place_of

FAILED, WRONG, IN_USE = 1, 2, 3
"""Exit codes: a failure, wrong usage or configuration, storage in use by another process."""


config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    envvar="CCGATEWAY2MQTT_CONFIG",
    show_envvar=True,
    help="The configuration file.",
)


def examples(*lines: str) -> str:
    """Write the end of a command's help: what to type, each on a line of its own that nothing breaks."""
    # The mark is click's: a paragraph that begins with it is not wrapped.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def tell(line: str) -> None:
    """Say a line to people: on stderr."""
    # Nobody who listens is no reason to end otherwise than with the exit code.
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


class Group(click.Group):
    """Turns whatever goes wrong into lines on stderr, and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 - click's own signature
        """Run a command, and exit."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal that cannot show a name still shows the rest.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            # It gives the exit code of `ctx.exit()`; a reader of stdout that has gone away ends it with 1.
            sys.exit(super().main(*args, **kwargs | {"standalone_mode": False}))
        except click.ClickException as error:
            self._end(_usage(error), error.exit_code)
        except click.Abort:  # click's word for Ctrl-C
            self._end("interrupted", FAILED)
        except AdapterError as error:
            self._end(str(error), _exit_code(error))
        except OSError as error:
            self._end(str(error), FAILED)
        except Exception as error:  # noqa: BLE001 - the last resort
            self._end(_unforeseen(error), FAILED)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line; without a word on it, show the help, as wrong usage."""
        if not args and not ctx.resilient_parsing:  # which a shell's completion is: what comes is not yet typed
            tell(ctx.get_help())
            ctx.exit(WRONG)
        return super().parse_args(ctx, args)

    @staticmethod
    def _end(text: str, exit_code: int) -> NoReturn:
        for line in text.splitlines():
            tell(line)
        sys.exit(exit_code)


def _exit_code(error: AdapterError) -> int:
    if isinstance(error, StartError):
        return error.exit_code
    if isinstance(error, StorageInUseError):
        return IN_USE
    return WRONG if isinstance(error, ConfigError) else FAILED


def _usage(error: click.ClickException) -> str:
    """Say on one line what click says on four."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = "ccgateway2mqtt" if context is None else context.command_path
    return f"{command}: {' '.join(error.format_message().split())} (see {command} --help)"


def _unforeseen(error: Exception) -> str:
    """Say where a mistake of this program happened; not its text, which could hold anything."""
    return f"ccgateway2mqtt {__version__}: a mistake of this program, please report it: {place_of(error)}"
