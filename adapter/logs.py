"""Where log lines go: to stderr as text or JSON, and warnings and errors to `agents/bridge/log`.

Rules of this file:
1. httpx, httpcore and paho log addresses, call data included, so only their warnings pass.
2. Of an exception that nobody foresaw only its type and place are told. Its text, and what asyncio says of the task or
   the callback that it ended, could hold anything.

Secrets are not searched for in log lines and starred out there: what the gateway, a sender or a file says is made
harmless where it comes in (`agent.session`, `gateway`, `command`, `config.check`), once, with the secret at hand.
tests/test_canary.py holds all of them to it.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, get_args

from adapter.config import LogConfig
from adapter.errors import place_of
from adapter.event import timestamp
from adapter.mqtt import Message
from adapter.payloads import LogPayload

_TALKATIVE = ("httpx", "httpcore", "paho", "aiohttp.access", "asyncio")
_STDERR = "ccgateway2mqtt.stderr"
_PUBLISHED = Literal["warning", "error", "critical"]

_CONTROL = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029), " ")
"""What a message that quotes somebody's text must not do to a terminal, or to the lines of a log."""


def set_up(config: LogConfig) -> None:
    """Send log lines to stderr in the configured form; may be called again with another configuration."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter((_Json if config.format == "json" else _Text)(config.member))
    handler.name = _STDERR
    handler.addFilter(_tell_no_more_than_the_place)
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.name == _STDERR]:
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(config.level)


def set_level(level: str) -> None:
    """Log from now on what is of a level of `log.level` or above."""
    root = logging.getLogger()
    root.setLevel(level.upper())
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def current_level() -> str:
    """Say which level is logged, as `log.level` names it."""
    return logging.getLevelName(logging.getLogger().level).lower()


class TopicHandler(logging.Handler):
    """Publishes warnings and errors, from whichever thread they come.

    Args:
        topic: `agents/bridge/log`.
        publish: Publishes where there is a connection; called on the event loop's thread.
    """

    def __init__(self, topic: str, publish: Callable[[Message], None]) -> None:
        super().__init__(logging.WARNING)
        self.addFilter(_tell_no_more_than_the_place)
        self._topic = topic
        self._publish = publish
        self._loop = asyncio.get_running_loop()

    def emit(self, record: logging.LogRecord) -> None:
        """Publish one record."""
        level = record.levelname.lower()
        if level not in get_args(_PUBLISHED) or self._loop.is_closed():
            return
        payload = LogPayload(
            level=level,  # type: ignore[arg-type] # one of them, see above
            message=record.getMessage().encode(errors="replace").decode(),  # half an emoji has no place in JSON
            work_no=getattr(record, "work_no", None),
            at=_at(record),
        )
        self._loop.call_soon_threadsafe(self._publish, Message(topic=self._topic, payload=payload.render(), qos=0))


class _Text(logging.Formatter):
    def __init__(self, member: str | None) -> None:
        super().__init__()
        self._member = "" if member is None else f"[{member}] "

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage().translate(_CONTROL)
        return f"{_at(record)} {record.levelname.lower()} {self._member}{text}"


class _Json(logging.Formatter):
    def __init__(self, member: str | None) -> None:
        super().__init__()
        self._member = {} if member is None else {"member": member}

    def format(self, record: logging.LogRecord) -> str:
        members = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "workNo": getattr(record, "work_no", None),
            **self._member,
        }
        return json.dumps(members, ensure_ascii=False)


def _tell_no_more_than_the_place(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        record.msg, record.args = "%s: a mistake of this program, please report it: %s", (record.name, place_of(error))
        record.exc_info = record.exc_text = None
    return True


def _at(record: logging.LogRecord) -> str:
    return timestamp(datetime.fromtimestamp(record.created, UTC))
