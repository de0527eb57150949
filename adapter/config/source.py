"""YAML files to a tree of nodes which know where they stand: file and line of each value and key.

Below the configuration: it knows YAML, files and the environment, and nothing of what the keys mean.

Rules of this file:
1. Nothing here stops at the first mistake that can be passed over: it becomes a `Finding`, its node is
   `broken`, and reading goes on, so that a person is told everything in one run.
2. What came from ``!secret`` or ``!env_var`` is `hidden`, and no text of a file that is not a key of it, a
   file's name or the name of a secret or variable stands in a finding.
3. Work is bounded whatever a file holds: bytes, depth, and values after aliases are unfolded.
"""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from adapter.config.nodes import Finding, KeyPath, Member, Node, Odd, Place, describe, shown, suggest, type_name

SECRETS = "secrets.yaml"
MAX_BYTES = 32 * 1024 * 1024
"""Of one file; 50,000 agents take less than 10 MiB."""
MAX_VALUES = 1_000_000
"""Of one file with its includes and aliases unfolded; 50,000 agents with all their members have 750,000."""
MAX_DEPTH = 32
"""Levels, those of included files added; a configuration has five."""

# libyaml is about ten times as fast, which counts with thousands of agents; PyYAML is built without it
# where no wheel exists.
_PARSER: type = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_RESOLVER = yaml.resolver.Resolver()
_STANDARD = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]{0,14})")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]{0,14})\.[0-9]{0,15}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# The stubs of PyYAML give its events no members.
_Event: TypeAlias = Any

_log = logging.getLogger(__name__)


def read(path: Path) -> tuple[Node, list[Finding]]:
    """Read a file with all that it includes.

    Args:
        path: The file; its name appears in places just as it is given here.

    Returns:
        The root, and what is wrong, in the order it was met. The root is `broken` where nothing could be read.
    """
    source = _Source()
    root = source.include(path, place=Place(path, 0), path=(), depth=0)
    return root, source.findings


class _UnusableError(Exception):
    """The file cannot be read any further."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding
        super().__init__(finding.text)


class _Source:
    """What the files of one configuration share: the findings, and what was read already."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self._files: dict[str, Node] = {}
        self._under_way: list[str] = []

    def broken(self, place: Place, path: KeyPath, text: str) -> Node:
        self.findings.append(Finding(place, path, text))
        return Node(place=place, value=None, broken=True)

    def include(self, file: Path, *, place: Place, path: KeyPath, depth: int, plain: bool = False) -> Node:
        """Read a file, or take it from those that were read. `plain`: our own tags mean nothing in it."""
        if "\0" in str(file):
            return self.broken(place, path, "expected the name of a file")
        key = os.path.realpath(file)
        if key in self._under_way:
            return self.broken(place, path, f"{file}: includes itself")
        if key not in self._files:
            self._under_way.append(key)
            try:
                text = _read_text(file, place, path)
                self._files[key] = _Composer(self, file, plain=plain).compose(text, () if plain else path, depth)
            except _UnusableError as err:
                self._files[key] = self.broken(*err.finding)
            finally:
                self._under_way.pop()
        return self._files[key]

    def secret(self, name: str, *, place: Place, path: KeyPath) -> Node:
        """Take a value from the file of secrets beside the file that names it."""
        file = place.file.parent / SECRETS
        first = os.path.realpath(file) not in self._files
        root = self.include(file, place=place, path=path, depth=0, plain=True)
        if root.broken:
            return Node(place=place, value=None, broken=True)
        if first and _open_to_others(file):
            _log.warning("%s: others than its owner may read it; chmod 600 keeps it to the owner", file)
        if not isinstance(root.value, dict):
            return self.broken(place, path, f"{file}: expected names with their values, got {type_name(root)}")
        if name not in root.value:
            known = list(root.value)
            return self.broken(place, path, f"no secret {shown(name)} in {file}{suggest(name, known)}")
        node = root.value[name].node
        if isinstance(node.value, dict | list):
            return self.broken(place, path, f"expected the secret {shown(name)} to be one value, got {describe(node)}")
        return replace(node, place=place, hidden=True)


def _open_to_others(file: Path) -> bool:
    """Say whether others may read a file than its owner; where that is another user, our group has to."""
    found = file.stat()
    by_group = found.st_uid != os.geteuid() and found.st_gid in {os.getegid(), *os.getgroups()}
    return bool(found.st_mode & (0o007 if by_group else 0o077))


def _read_text(file: Path, place: Place, path: KeyPath) -> str:
    """Read a file whole. `place` and `path` say who asked for it."""
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as err:
        name = "" if place.file == file else f"{file}: "
        raise _UnusableError(Finding(place, path, f"{name}cannot be read: {err.strerror}")) from err
    if len(data) > MAX_BYTES:
        raise _UnusableError(Finding(Place(file, 0), path, f"larger than {MAX_BYTES // 1024 // 1024} MiB"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        raise _UnusableError(Finding(Place(file, line), path, "not UTF-8 text")) from err
    if control := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, control.start()) + 1
        what = f"the character U+{ord(control.group()):04X} is not allowed"
        raise _UnusableError(Finding(Place(file, line), path, what))
    return text


class _Composer:
    """Makes nodes of the parser's events, one file at a time.

    PyYAML's own composer is not used: it recurses as deep as the file says (in C, where that ends the
    process), and keeps no count of what aliases unfold to.
    """

    def __init__(self, source: _Source, file: Path, *, plain: bool) -> None:
        self._source = source
        self._file = file
        self._plain = plain
        self._anchors: dict[str, Node] = {}
        self._events: Iterator[_Event] = iter(())

    def compose(self, text: str, path: KeyPath, depth: int) -> Node:
        """Read the only document of the file; raises `_UnusableError`."""
        self._events = yaml.parse(text, Loader=_PARSER)
        try:
            next(self._events)  # the start of the stream
            if isinstance(next(self._events), yaml.StreamEndEvent):
                self._give_up(Place(self._file, 0), path, "the file is empty")
            root = self._node(next(self._events), path, depth)
            next(self._events)  # the end of the document
            if not isinstance(after := next(self._events), yaml.StreamEndEvent):
                self._give_up(self._place(after), path, "expected one document, got a second")
        except yaml.MarkedYAMLError as err:
            line = err.problem_mark.line + 1 if err.problem_mark else 0
            place = Place(self._file, line)
            # What follows is the tag's handle, as it is written in the file.
            problem = (err.problem or "").partition(" '!")[0]
            self._give_up(place, path, f"not YAML: {problem}")
        except (ValueError, OverflowError):
            # PyYAML's scanner in Python hands "\UFFFFFFFF" to chr(); it does not say where.
            self._give_up(Place(self._file, 0), path, "not YAML: an escape that is no character")
        return root

    def _place(self, event: _Event) -> Place:
        return Place(self._file, event.start_mark.line + 1)

    def _give_up(self, place: Place, path: KeyPath, text: str) -> NoReturn:
        raise _UnusableError(Finding(place, path, text))

    def _node(self, event: _Event, path: KeyPath, depth: int) -> Node:
        place = self._place(event)
        if isinstance(event, yaml.AliasEvent):
            known = self._anchors.get(event.anchor or "")
            if known is None:
                self._give_up(place, path, "an alias (*) of no anchor (&) before it; quote text that begins with *")
            return known
        if depth > MAX_DEPTH:
            self._give_up(place, path, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, place, path, depth)
        elif event.tag not in (None, "!", _STANDARD + "map", _STANDARD + "seq"):
            self._skip(event)
            node = self._source.broken(place, path, "unknown tag (!); a list or a mapping takes none")
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(place, path, depth)
        else:
            node = self._mapping(place, path, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _skip(self, event: _Event) -> None:
        """Pass over a value of which `event` is the first."""
        depth = int(isinstance(event, yaml.CollectionStartEvent))
        while depth:
            event = next(self._events)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)

    def _sequence(self, place: Place, path: KeyPath, depth: int) -> Node:
        items: list[Node] = []
        size = 1
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._node(event, (*path, len(items)), depth + 1))
            size = self._grown(size, items[-1], place, path)
        return Node(place=place, value=items, size=size)

    def _mapping(self, place: Place, path: KeyPath, depth: int) -> Node:
        members: dict[str, Member] = {}
        merged: list[Node] = []
        size = 1
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key_place = self._place(event)
            if not isinstance(event, yaml.ScalarEvent) or event.tag not in (None, "!", _STANDARD + "str"):
                self._source.findings.append(Finding(key_place, path, "expected a word as key"))
                self._skip(event)
                self._skip(next(self._events))
                continue
            key = event.value
            node = self._node(next(self._events), (*path, key), depth + 1)
            size = self._grown(size, node, place, path)
            if key == "<<" and event.implicit[0]:
                merged += node.value if isinstance(node.value, list) else [node]
            elif key in members:
                first = members[key].place.line
                self._source.findings.append(Finding(key_place, (*path, key), f"duplicate key, first on line {first}"))
            else:
                members[key] = Member(key_place, node)
        for node in merged:
            if isinstance(node.value, dict):
                members = {**node.value, **members}
            elif not node.broken:
                self._source.findings.append(Finding(node.place, (*path, "<<"), "expected a mapping to merge"))
        return Node(place=place, value=members, size=size)

    def _grown(self, size: int, node: Node, place: Place, path: KeyPath) -> int:
        if (size := size + node.size) > MAX_VALUES:
            self._give_up(place, path, f"more than {MAX_VALUES} values, counting what aliases stand for")
        return size

    def _scalar(self, event: yaml.ScalarEvent, place: Place, path: KeyPath, depth: int) -> Node:
        text = event.value
        if not _is_utf8(text):
            return self._source.broken(place, path, "half of a character (a lone surrogate)")
        if event.tag in (None, "!"):
            return Node(place=place, value=_resolve(text) if event.implicit[0] else text, text=text)
        if event.tag == _STANDARD + "str":
            return Node(place=place, value=text, text=text)
        if self._plain:
            return self._source.broken(place, path, "a tag (!) is not read here; quote text that begins with !")
        return self._tagged(event.tag, text, place, path, depth)

    def _tagged(self, tag: str, name: str, place: Place, path: KeyPath, depth: int) -> Node:
        """Read what one of our own tags stands for."""
        match tag:
            case "!secret" | "!env_var" | "!include" if not name:
                return self._source.broken(place, path, f"expected a name after {tag}")
            case "!secret":
                return self._source.secret(name, place=place, path=path)
            case "!env_var":
                return self._variable(name, place, path)
            case "!include":
                file = self._file.parent / name
                return self._source.include(file, place=place, path=path, depth=depth + 1)
            case _:
                known = "expected !secret, !env_var or !include; quote text that begins with !"
                return self._source.broken(place, path, f"unknown tag, {known}")

    def _variable(self, name: str, place: Place, path: KeyPath) -> Node:
        if not _VARIABLE.fullmatch(name):
            return self._source.broken(place, path, "expected the name of an environment variable after !env_var")
        text = os.environ.get(name)
        if text is None:
            return self._source.broken(place, path, f"the environment variable {name} is not set")
        if not _is_utf8(text):
            return self._source.broken(place, path, f"the environment variable {name} is not UTF-8 text")
        return Node(place=place, value=text, text=text, hidden=True)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _resolve(text: str) -> str | int | float | bool | Odd | None:
    """Read an unquoted scalar by YAML 1.1, dates left as text."""
    tag: str = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call] # in the stubs
    match tag.removeprefix(_STANDARD):
        case "null":
            return None
        case "bool":
            return text.lower() in ("yes", "true", "on")
        case "int":
            return int(text) if _WHOLE.fullmatch(text) else Odd(text)
        case "float":
            return float(text) if _DECIMAL.fullmatch(text) else Odd(text)
        case _:
            return text
