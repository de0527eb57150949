"""Hold what a file says against the grammar, and say in words where and how it does not fit.

Above `grammar` and the nodes of the file, below `config`.

Rule of this file: what a person gets to read is made here, and no secret's value comes into it: not what came from
``!secret`` or ``!env_var``, not a password or GUID written into the file itself, not an address that may hold one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import voluptuous as vol

from adapter.config.grammar import ADDRESS_KEYS, PATH_KEYS, SCHEMA, SECRET_KEYS, section_at
from adapter.config.nodes import Finding, KeyPath, Node, Place, describe, shown, suggest, type_name
from adapter.config.rules import ExpectedError, NoneOfError, NotTextError


def validate(root: Node) -> tuple[Mapping[str, object], list[Finding]]:
    """Hold what a file says against the grammar.

    Returns:
        The values normalized, with defaults, and no finding; or no values, and everything that is wrong.
    """
    findings = list(_duplicate_work_numbers(root))
    try:
        values = cast("Mapping[str, object]", vol.Schema(SCHEMA)(_plain(root)))
    except vol.MultipleInvalid as err:
        return {}, [*findings, *_findings(err.errors, root)]
    return values, findings


def _plain(node: Node) -> object:
    """Take the values from their nodes, and make names of files absolute: relative to the file they stand in."""
    match node.value:
        case dict() as members:
            return {
                key: str(Path.cwd() / member.node.place.file.parent / member.node.value)
                if key in PATH_KEYS and isinstance(member.node.value, str) and member.node.value
                else _plain(member.node)
                for key, member in members.items()
            }
        case list() as items:
            return [_plain(item) for item in items]
        case scalar:
            return scalar


def _findings(errors: list[vol.Invalid], root: Node) -> Iterator[Finding]:
    """Put voluptuous' errors into words, each with its place."""
    # Whoever misspelt a key is told once: not also that the right one is missing.
    meant: set[KeyPath] = set()
    rest: list[tuple[vol.Invalid, KeyPath]] = []
    for error in errors:
        path: KeyPath = tuple(key if isinstance(key, int) else str(key) for key in error.path)
        place, node = _locate(root, path)
        section = section_at(path[:-1]) if path else None
        if isinstance(error, vol.RequiredFieldInvalid | NoneOfError):
            rest.append((error, path))
        elif node is not None and section is not None and path[-1] not in section.names():
            known = section.names()
            close = suggest(str(path[-1]), known)
            meant |= {(*path[:-1], name) for name in known if shown(name) in close}
            yield Finding(place, path[:-1], f"unknown key {shown(str(path[-1]))}{close or _listed(known)}")
        elif node is None or not _told(node):
            yield Finding(place, path, _words(error, path, node))
    for error, path in rest:
        place, _ = _locate(root, path)
        if isinstance(error, NoneOfError) and not any((*path, name) in meant for name in error.names):
            yield Finding(place, path, error.msg)
        elif isinstance(error, vol.RequiredFieldInvalid) and path not in meant:
            yield Finding(place, path, "required, and missing")


def _listed(known: list[str]) -> str:
    return f", expected one of {', '.join(known)}"


def _words(error: vol.Invalid, path: KeyPath, node: Node | None) -> str:
    """Say what was expected and what stands there, unless that is a secret."""
    if not isinstance(error, ExpectedError):
        return error.msg
    if node is None:
        return f"{error.msg}, got the default"
    key = path[-1] if path else ""
    if node.hidden or key in SECRET_KEYS or (key in ADDRESS_KEYS and {"@", "?"} & set(node.text)):
        quoted = ", quote it" if isinstance(error, NotTextError) else ""
        return f"{error.msg}{quoted}, got {type_name(node)} (not shown)"
    if isinstance(error, NotTextError):
        return f"{error.msg}, quote it ({shown(node.text)}), got {describe(node)}"
    # Where a section belongs, text may be what belongs inside of it: a password for a sign_in.
    found = type_name(node) if section_at(path) else describe(node)
    return f"{error.msg}, got {found}"


def _locate(root: Node, path: KeyPath) -> tuple[Place, Node | None]:
    """Find where `path` stands, and its value; for what is not there, where the nearest thing around it stands."""
    place, node = Place(root.place.file, 1), root
    for key in path:
        match node.value, key:
            case dict() as members, str() if key in members:
                member = members[key]
                node = member.node
                # A key's line is the one that a person looks for, unless the value stands in a file of its own.
                place = member.place if member.place.file == node.place.file else node.place
            case list() as items, int() if key < len(items):
                node = items[key]
                place = node.place
            case _:
                return place, None
    return place, node


def _told(node: Node) -> bool:
    """Say whether a finding tells already what is wrong with a value or an item of it."""
    return node.broken or (isinstance(node.value, list) and any(item.broken for item in node.value))


def _duplicate_work_numbers(root: Node) -> Iterator[Finding]:
    _, agents = _locate(root, ("agents",))
    first: dict[object, str] = {}
    for index in range(len(agents.value) if agents is not None and isinstance(agents.value, list) else 0):
        path: KeyPath = ("agents", index, "work_no")
        place, node = _locate(root, path)
        if node is None or not isinstance(node.value, str):
            continue
        if node.value in first:
            number = "" if node.hidden else f" {shown(node.value)}"
            yield Finding(place, path, f"duplicate work number{number}, first at {first[node.value]}")
        first.setdefault(node.value, f"{place}: agents[{index}]")
