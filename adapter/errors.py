"""The exceptions of this program: one class for each different thing that a caller does next.

```
AdapterError
├── ConfigError                 stop (exit 2); lists every problem with its place
├── GatewayError
│   ├── GatewayConnectionError  no answer, or not HTTP 200   -> back off, try again (P5)
│   ├── GatewayProtocolError    an answer we cannot read     -> count, keep its head, back off (P14)
│   └── RetcodeError            the gateway said no          -> answer the command with its code
├── BrokerError
│   ├── BrokerConnectionError   not there, or lost           -> connect again; entries stay stored
│   └── BrokerAuthError         log-in refused               -> at start: stop (exit 1); later: try again
├── StorageError
│   ├── StorageInUseError       another process has it       -> stop (exit 3)
│   ├── StorageDamagedError     the file is damaged          -> set it aside, begin a new one (D6)
│   └── StorageFullError        nothing more can be stored   -> no new poll until there is room (D4)
├── ClusterError
│   ├── ClusterConflictError    somebody else was first      -> look again
│   └── ClusterUnavailableError no answer, or no quorum      -> nothing is known of what was asked; ask again
│       └── ClusterTooLargeError  more than the servers take -> nothing was asked; a person is needed; ask again
├── CommandError                a command we refuse          -> answer it with the reason
└── StartError                  cannot run as asked          -> stop with its exit code
```

Rules of this file: exceptions keep what they know in fields and build their own message from them;
no message ever holds a GUID, a password, a cookie or call data.
"""

import traceback
from dataclasses import dataclass
from pathlib import Path


class AdapterError(Exception):
    """Anything that this program raises on purpose."""


def place_of(error: BaseException) -> str:
    """Say what kind of exception it is and where it came from, but not its text, which could hold anything."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "adapter" in Path(frame.filename).parts]
    place = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {place}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration file.

    Attributes:
        place: File and line, then the path of keys: ``config.yaml:12: agents[1].sign_in.phone``.
        expected: What should stand there and what does, without a secret's value.
    """

    place: str
    expected: str

    def __str__(self) -> str:
        return f"{self.place}: {self.expected}"


class ConfigError(AdapterError):
    """The configuration cannot be used; every problem of the file is listed."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class GatewayError(AdapterError):
    """The gateway did not do what was asked."""


class GatewayConnectionError(GatewayError):
    """There was no answer, or one with another status than 200.

    Attributes:
        answer_lost: Whether the gateway may have sent an event which did not arrive: the request
            had been sent, and no whole answer came back.
        status: The HTTP status, or `None` where no answer came.
    """

    def __init__(self, reason: str, *, answer_lost: bool, status: int | None = None) -> None:
        self.reason = reason
        self.answer_lost = answer_lost
        self.status = status
        super().__init__(reason)


class GatewayProtocolError(GatewayError):
    """A 200 answer which cannot be read. It may have held an event (P14).

    Attributes:
        reason: What is wrong with it.
        head: The first 4 KiB of the body.
        size_bytes: How much of the body was seen before reading stopped.
    """

    def __init__(self, reason: str, *, head: bytes, size_bytes: int) -> None:
        self.reason = reason
        self.head = head
        self.size_bytes = size_bytes
        super().__init__(f"unreadable answer: {reason} ({size_bytes} bytes)")

    def __repr__(self) -> str:
        return f"GatewayProtocolError({self.reason!r}, size_bytes={self.size_bytes})"


class RetcodeError(GatewayError):
    """The gateway refused a request with a retcode other than "0"."""

    def __init__(self, retcode: str, message: str) -> None:
        self.retcode = retcode
        self.message = message
        super().__init__(f"retcode {retcode}" + (f": {message}" if message else ""))


class BrokerError(AdapterError):
    """The MQTT broker did not do what was asked."""


class BrokerConnectionError(BrokerError):
    """The broker is not there, or the connection was lost."""


class BrokerAuthError(BrokerError):
    """The broker refused the log-in."""


class StorageError(AdapterError):
    """The database cannot be used.

    Attributes:
        path: `storage.path`.
        reason: What is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class StorageInUseError(StorageError):
    """Another process works on the same `storage.path` (D5)."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "in use by another process; each adapter needs a storage.path of its own")


class StorageDamagedError(StorageError):
    """The file is damaged, or was taken away."""


class StorageFullError(StorageError):
    """Nothing more can be stored for now: the disk is full, or `storage.max_mb` is reached (D4)."""


class ClusterError(AdapterError):
    """The cluster's servers did not do what was asked."""


class ClusterConflictError(ClusterError):
    """What was to be replaced or followed is not the newest any more; nothing was changed."""


class ClusterUnavailableError(ClusterError):
    """There was no answer that says what became of a request: no server, no quorum, or too late."""


class ClusterTooLargeError(ClusterUnavailableError):
    """A message is larger than the servers take: it was not sent.

    Attributes:
        size_bytes: How large it is, with its headers.
        limit_bytes: How large it may be.
    """

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes
        super().__init__(
            f"{size_bytes} bytes to store, and the servers take {limit_bytes}: "
            "raise max_payload in the configuration of each, and reload that"
        )


class CommandError(AdapterError):
    """A command is refused; the reason is one that its sender can act on."""

    def __init__(self, reason: str, retcode: str | None = None) -> None:
        self.reason = reason
        self.retcode = retcode
        super().__init__(reason)


class StartError(AdapterError):
    """The program cannot run as asked, and trying again would not help.

    Attributes:
        exit_code: What the process ends with: 1 failure, 2 wrong usage or configuration.
    """

    def __init__(self, reason: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(reason)
