"""The words of the configuration's grammar, for voluptuous and JSON Schema: text, numbers, addresses, topics, files.

Above `rules`, whose `Rule` each of them is; below `schema`, which composes them.
Rule of this file: names of files are absolute here already; only files of certificates and credentials are opened.
"""

import base64
import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from adapter.config.rules import ConflictError, ExpectedError, NotTextError, Rule

MAX_URL = 500
MAX_URLS = 1000
"""The longest list of brokers: `bridge/info` shows it."""
_KEY_BYTES = 32
_PORTS = range(1, 65536)
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_GRAPHIC = re.compile(r"[\x21-\x7e]+")
_BETWEEN_URLS = re.compile(r",[ \t\r\n]*(?=[a-z]+://)")
"""A comma that does not belong to a path."""


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, dict | list):
        raise ExpectedError(what="text")
    raise NotTextError(what="text")


def _require(*, that: bool) -> None:
    if not that:
        raise ValueError


def text(expected: str, pattern: str, *, named: bool = False) -> Rule:
    """Text that matches `pattern` as a whole.

    Args:
        expected: The pattern in words.
        pattern: A regular expression, the same in Python and ECMAScript where `named`.
        named: Whether editors check it too: not for what is rather the name of a secret there.
    """
    compiled = re.compile(pattern)
    schema: dict[str, object] = {"type": "string", "minLength": 1}
    if named:
        schema["pattern"] = f"^(?:{pattern})$"

    def parse(value: object) -> str:
        found = _text(value)
        _require(that=compiled.fullmatch(found) is not None)
        return found

    return Rule(expected, parse, schema)


def line(longest: int) -> Rule:
    """Any text on one line, without control characters."""

    def parse(value: object) -> str:
        found = _text(value)
        _require(that=0 < len(found) <= longest and not _CONTROL.search(found))
        return found

    return Rule(f"1 to {longest} characters on one line", parse, {"type": "string", "minLength": 1})


def word(*words: str) -> Rule:
    """One of a few words. A number among them may go without quotes."""
    schema = [form for name in words for form in ([int(name), name] if name.isdigit() else [name])]

    def parse(value: object) -> str:
        found = str(value) if type(value) is int else value
        _require(that=found in words)
        return str(found)

    return Rule(" or ".join(", ".join(words).rsplit(", ", 1)), parse, {"enum": schema})


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004 - Rule turns it into the message
    return value


flag = Rule("true or false", _flag, {"type": "boolean"})


def whole(low: int, high: int) -> Rule:
    """A whole number within bounds."""

    def parse(value: object) -> int:
        _require(that=type(value) is int and low <= value <= high)
        return value  # type: ignore[return-value] # required to be an int just now

    return Rule(f"a whole number from {low} to {high}", parse, {"type": "integer", "minimum": low, "maximum": high})


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError  # noqa: TRY004 - Rule turns it into the message
    return float(value)


def seconds(*, over: float, under: float) -> Rule:
    """A number of seconds between two bounds, neither of which it may be."""

    def parse(value: object) -> float:
        found = _number(value)
        _require(that=over < found < under)
        return found

    expected = f"seconds, more than {over:g} and less than {under:g}"
    return Rule(expected, parse, {"type": "number", "exclusiveMinimum": over, "exclusiveMaximum": under})


def pair(low: float, high: float, *, inclusive: bool) -> Rule:
    """Two numbers of seconds in a list, the smaller first, both between bounds."""

    def parse(value: object) -> tuple[float, float]:
        _require(that=isinstance(value, list) and len(value) == 2)  # noqa: PLR2004 - a pair
        first, last = (_number(item) for item in value)  # type: ignore[attr-defined] # required to be a list just now
        _require(that=low <= first <= last <= high and (inclusive or low < first <= last < high))
        return first, last

    within = f"within {low:g} to {high:g}" if inclusive else f"more than {low:g} and less than {high:g}"
    bounds = {"minimum": low, "maximum": high} if inclusive else {"exclusiveMinimum": low, "exclusiveMaximum": high}
    schema = {"type": "array", "items": {"type": "number", **bounds}, "minItems": 2, "maxItems": 2}
    return Rule(f"two numbers of seconds, the smaller first, {within}", parse, schema)


def topic(longest: int) -> Rule:
    """The beginning of topics: no wildcards, no empty level, nothing of the broker's own ($SYS)."""

    def parse(value: object) -> str:
        found = _text(value)
        _require(that=not _CONTROL.search(found) and len(found.encode()) <= longest)
        _require(that=all(found.split("/")) and not found.startswith("$") and not set("+#") & set(found))
        return found

    expected = (
        f"levels of a topic, without + or #, no / at either end or twice, not beginning with $, up to {longest} bytes"
    )
    return Rule(expected, parse, {"type": "string", "pattern": "^[^+#$/][^+#]*$"})


@dataclass(frozen=True, slots=True)
class Url:
    """An address, taken apart.

    Attributes:
        url: As it was written, without a slash at its end; a proxy's may hold its password.
        host: Without the brackets of IPv6.
        port: `None` where none is written.
        path: ``""`` where none is written.
    """

    url: str = field(repr=False)
    scheme: str
    host: str
    port: int | None
    path: str


def url(*schemes: str, hint: str, credentials: bool = False) -> Rule:
    """An address.

    Args:
        schemes: Those allowed.
        hint: Where a user name and password belong instead, or what else to know.
        credentials: Whether they may stand in the address itself.
    """
    expected = f"an address that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}"

    def parse(value: object) -> Url:
        found = _text(value)
        _require(that=len(found) <= MAX_URL and _GRAPHIC.fullmatch(found) is not None)
        parts = urlsplit(found)
        _require(that=parts.scheme in schemes and found.startswith(f"{parts.scheme}://"))
        if "@" in parts.netloc and not credentials:
            raise ExpectedError(what=f"no user name or password in the address, {hint}")
        if "?" in found or "#" in found:
            raise ExpectedError(what="an address without ? and #")
        host, port = parts.hostname or "", parts.port
        _require(that=_is_host(host) and (port is None or port in _PORTS))
        return Url(found.rstrip("/"), parts.scheme, host, port, parts.path)

    return Rule(expected, parse, {"type": "string", "minLength": 1})


def urls(*schemes: str, hint: str) -> Rule:
    """Addresses of one kind, with commas between them."""
    one = url(*schemes, hint=hint)

    def parse(value: object) -> tuple[Url, ...]:
        return tuple(one.parse(part.strip()) for part in _text(value).split(","))  # type: ignore[misc] # a Url each

    expected = (
        f"addresses that begin with {' or '.join(f'{scheme}://' for scheme in schemes)}, with commas between them"
    )
    return Rule(expected, parse, {"type": "string", "minLength": 1})


def url_or_urls(*schemes: str, hint: str) -> Rule:
    """One address, or several with commas between them; one of them may hold commas in its path."""
    one = url(*schemes, hint=hint)
    beginnings = " or ".join(f"{scheme}://" for scheme in schemes)

    def parse(value: object) -> tuple[Url, ...]:
        found = _text(value)
        if "," not in found:
            return (one(found),)  # type: ignore[return-value] # a Url
        _require(that=len(found) <= MAX_URLS)
        return tuple(one.parse(part) for part in _BETWEEN_URLS.split(found))  # type: ignore[misc] # a Url each

    expected = f"addresses that begin with {beginnings}, with commas between them"
    return Rule(f"an address, or {expected}", parse, {"type": "string", "minLength": 1})


def _key(value: object) -> str:
    found = _text(value).strip()
    _require(
        that=len(base64.b64decode(found, altchars=b"-_" if set("-_") & set(found) else None, validate=True))
        == _KEY_BYTES
    )
    return found


sealing_key = Rule(
    "a key: 32 bytes in base64, as `openssl rand -base64 32` makes one", _key, {"type": "string", "minLength": 1}
)


def _is_host(host: str) -> bool:
    if ":" not in host:
        return _HOST_NAME.fullmatch(host) is not None
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


class Listen(NamedTuple):
    """Where to listen; port 0 is any free one."""

    host: str
    port: int


def _listen(value: object) -> Listen:
    host, colon, port = _text(value).rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    _require(that=bool(colon) and (":" in bare) == (host == f"[{bare}]") and _is_host(bare))
    _require(that=re.fullmatch(r"[0-9]{1,5}", port) is not None and int(port) <= _PORTS[-1])
    return Listen(bare, int(port))


listen = Rule('HOST:PORT, as in "127.0.0.1:9464" or "[::1]:9464"', _listen, {"type": "string", "pattern": ":[0-9]+$"})

_PATH = line(1000)
path = Rule("the name of a file, on one line", _PATH.parse, {"type": "string", "minLength": 1})


def _readable(value: object) -> str:
    found = str(_PATH.parse(value))
    try:
        with Path(found).open("rb") as stream:
            stream.read(1)
    except OSError as err:
        raise ExpectedError(what=f"a file that can be read ({err.strerror})") from err
    return found


def _certificates(value: object) -> str:
    found = _readable(value)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(found)
    except ssl.SSLError as err:
        raise ExpectedError(what="a file of certificates in PEM") from err
    return found


def _credentials(value: object) -> str:
    found = _readable(value)
    marks = (b"BEGIN NATS USER JWT", b"BEGIN USER NKEY SEED")
    if not all(mark in Path(found).read_bytes() for mark in marks):
        raise ExpectedError(what="a file of NATS credentials, as nsc makes one")
    return found


readable = Rule(path.expected, _readable, path.schema)
certificates = Rule(path.expected, _certificates, path.schema)
credentials = Rule(path.expected, _credentials, path.schema)


def load_pair(cert_file: str, key_file: str) -> None:
    """Check that a certificate and its key belong together; raises `ConflictError`."""
    try:
        # Without a password function OpenSSL would ask at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert_file, key_file, password=lambda: b"")
    except ssl.SSLError as err:
        what = "expected a certificate and its own key without a passphrase, both in PEM"
        raise ConflictError(what=what, path=["cert_file"]) from err
