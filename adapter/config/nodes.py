"""What a YAML file is read into: nodes which know their file and line, and the words to speak of them in an error.

Below the configuration. Rule of this file: values alone, no files and no parser.
"""

import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias

SHOWN_CHARACTERS = 60
"""A longer value is cut in an error."""
SHOWN_ITEMS = 4
"""A list of numbers is shown as it is up to this length."""

KeyPath: TypeAlias = tuple[str | int, ...]


class Place(NamedTuple):
    """A line of a file. Line 0 is the file as a whole."""

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else str(self.file)


class Finding(NamedTuple):
    """One mistake: where it stands, the keys that lead there, and what is wrong, in words."""

    place: Place
    path: KeyPath
    text: str


class Odd(NamedTuple):
    """A scalar which YAML 1.1 takes for a number though it is none in plain decimal: ``0101``, ``0x1F``, ``1:30``."""

    text: str


class Member(NamedTuple):
    """A value in a mapping, and where its key stands."""

    place: Place
    node: "Node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One value of a file.

    Attributes:
        place: Where the value begins; of a secret, where it is used.
        value: A scalar, the members of a mapping, or the items of a list.
        text: A scalar as it is written, so that ``0101`` can be told from ``65``.
        hidden: Whether it came from ``!secret`` or ``!env_var``: it is never shown.
        broken: Whether a finding tells already what is wrong with it; `value` is `None` then.
        size: How many values it has, itself and aliases unfolded.
    """

    place: Place
    value: "str | int | float | bool | Odd | dict[str, Member] | list[Node] | None" = field(repr=False)
    text: str = field(default="", repr=False)
    hidden: bool = False
    broken: bool = False
    size: int = 1


def shown(text: str) -> str:
    """Quote `text` for an error: on one line, without control characters, and not long."""
    if len(text) > SHOWN_CHARACTERS:
        text = text[:SHOWN_CHARACTERS] + "…"
    return json.dumps(text, ensure_ascii=not text.isprintable())


def type_name(node: Node) -> str:
    """Say what kind of value stands there, and nothing of the value itself."""
    match node.value:
        case str():
            return "text"
        case bool():
            return "true or false"
        case int() | float() | Odd():
            return "a number"
        case _:
            return describe(node)


def describe(node: Node) -> str:
    """Say what stands there. The caller sees to it that it is not a secret."""
    match node.value:
        case dict():
            return "a mapping"
        case list() as items:
            texts = [item.text for item in items if isinstance(item.value, int | float) and not item.hidden]
            return f"[{', '.join(texts)}]" if 0 < len(texts) == len(items) <= SHOWN_ITEMS else "a list"
        case None:
            return "nothing"
        case str():
            return shown(node.text)
        case _:
            return node.text[:SHOWN_CHARACTERS]


def key_path(path: KeyPath) -> str:
    """Write the keys that lead to a value, as in ``agents[1].sign_in.phone``."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += ("." if text else "") + (key if key.isidentifier() else shown(key))
    return text


def suggest(word: str, known: list[str]) -> str:
    """Make the end of an error about a misspelt word: ``, did you mean "password"?``, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {shown(close[0])}?" if close else ""
