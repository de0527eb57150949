"""What `ccgateway2mqtt demo` says in the terminal: a line per event, and what else there is to know, in 100 columns.

Rules of this file: nobody reading is a reason to end, and to end in good order, never an error; what the adapter
warns of on such a day is part of the story, and is told as calmly as an event.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from adapter.mqtt import Received
from adapter.nats import NatsServer

_COLUMNS = 100
"""How wide a line is where there is no terminal to ask."""
_NUMBER_WIDTH = 5
_TYPE_WIDTH = 34
"""As long as the longest event type of the day."""


class _Event(msgspec.Struct, rename="camel"):
    work_no: str
    event_type: str
    content: Any = None
    replayed: bool = False


class Lines(logging.Handler):
    """Writes lines to stdout.

    Args:
        names: From work number to the agent's name.
        unread: Called when stdout cannot be written any more.
    """

    def __init__(self, names: Mapping[str, str], unread: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._names = names
        self._name_width = max((len(name) for name in names.values()), default=0)
        self._unread = unread

    def say(self, text: str = "") -> None:
        """Write a line as it is."""
        try:
            click.echo(text)
        except OSError:
            self._unread()

    def introduce(self, page: str, broker: NatsServer, config: Path, config_out: Path | None) -> None:
        """Say where to look, and what to try."""
        self.say(f"The live page   {click.style(page, bold=True)}")
        self.say(f"In a terminal   ccgateway2mqtt watch -c {config}")
        self.say(f"The broker      {broker.mqtt_url} (nats-server, pid {broker.pid})")
        self.say("                Stop it, or press b and Enter: events wait for it, and it comes back by itself.")
        if config_out is not None:
            self.say(f"Configuration   {config_out}")
        self.say("Ctrl-C ends it all.")
        self.say()

    def notice(self, text: str) -> None:
        """Write a line that stands out, with the time."""
        self.say(f"{_clock()}  {click.style(text, fg='yellow', bold=True)}")

    def receive(self, received: Received) -> None:
        """Write the line of an event."""
        event = msgspec.json.decode(received.payload, type=_Event)
        late = "  (late)" if event.replayed else ""
        name = self._names.get(event.work_no, "")
        who = f"{event.work_no:>{_NUMBER_WIDTH}} {name:<{self._name_width}}"
        what = f"{event.event_type:<{_TYPE_WIDTH}}"
        shown = _shorten(describe(event.content), 8 + 1 + len(who) + 2 + len(what) + 1 + len(late)) + late
        if event.event_type.startswith("AgentState_"):
            what = click.style(what, bold=True)
        self.say(f"{_clock()} {who}  {what} {click.style(shown, dim=True) if shown else ''}".rstrip())

    @contextlib.contextmanager
    def logged(self) -> Iterator[None]:
        """Write the warnings of the block's log as lines."""
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of a warning: its first line, without a traceback."""
        text = record.getMessage().partition("\n")[0]
        self.say(f"{_clock()}  {click.style(_shorten(text, 10), dim=True)}")


def describe(content: object) -> str:
    """Say in few words what an event's content tells: between which numbers, or its first members."""
    if not isinstance(content, dict):
        return "" if content is None else str(content)
    ends = [str(content[end]) for end in ("caller", "called") if content.get(end)]
    others = [f"{name} {value}" for name, value in content.items() if isinstance(value, str | int) and value != ""]
    return " → ".join(ends) if ends else ", ".join(others)


def _shorten(text: str, used: int) -> str:
    room = max(0, shutil.get_terminal_size((_COLUMNS, 0)).columns - used)
    return text if len(text) <= room else text[: max(0, room - 1)] + "…"


def _clock() -> str:
    return time.strftime("%H:%M:%S")
