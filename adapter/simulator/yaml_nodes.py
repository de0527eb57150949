"""Reads YAML so that every mistake can be told with its file, line and path of keys."""

import difflib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import yaml

from adapter.simulator.certificates import SimulatorError


class ScenarioError(SimulatorError):
    """A scenario file cannot be used.

    Attributes:
        file: The file as it was named.
        line: Line number, from 1; `None` where the file as a whole is meant.
        path: The path of keys, ``timeline.101[2].after``; may be empty.
        expected: What should stand there and what does.
    """

    def __init__(self, file: Path, line: int | None, path: str, expected: str) -> None:
        self.file = file
        self.line = line
        self.path = path
        self.expected = expected
        place = f"{file}" if line is None else f"{file}:{line}"
        super().__init__(f"{place}: {path}: {expected}" if path else f"{place}: {expected}")


class Node:
    """One place in a YAML file, which knows how to read itself and how to complain."""

    def __init__(self, file: Path, loader: yaml.SafeLoader, node: yaml.Node, path: str) -> None:
        self._file = file
        self._loader = loader
        self._node = node
        self.path = path

    def fail(self, expected: str) -> NoReturn:
        """Raise `ScenarioError` about this place."""
        raise ScenarioError(self._file, self._node.start_mark.line + 1, self.path, expected)

    def value(self) -> Any:  # noqa: ANN401  whatever YAML can say
        """Give the plain Python value."""
        try:
            return self._loader.construct_object(self._node, deep=True)
        except yaml.constructor.ConstructorError as err:
            self.fail(f"cannot be read: {err.problem}")

    def json_value(self) -> Any:  # noqa: ANN401  whatever JSON can say
        """Give the plain Python value, which must be one that JSON has too."""
        value = self.value()
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as err:
            self.fail(f"expected what JSON can say: {err}")
        return value

    def _child(self, node: yaml.Node, path: str) -> "Node":
        return Node(self._file, self._loader, node, path)

    def entries(self, expected: str) -> dict[str, "Node"]:
        """Read a mapping with any keys, which must be text."""
        if not isinstance(self._node, yaml.MappingNode):
            self.fail(f"expected {expected}")
        found: dict[str, Node] = {}
        for key_node, value_node in self._node.value:
            key_place = self._child(key_node, self.path)
            key = key_place.value()
            if not isinstance(key, str):
                key_place.fail(f'expected text as key, quote it ("{key}")')
            if key in found:
                key_place.fail(f"{key} stands there twice")
            found[key] = self._child(value_node, f"{self.path}.{key}" if self.path else key)
        return found

    def mapping(self, allowed: Collection[str], expected: str) -> dict[str, "Node"]:
        """Read a mapping with known keys only."""
        found = self.entries(expected)
        for key, node in found.items():
            if key not in allowed:
                near = difflib.get_close_matches(key, allowed, 1)
                node.fail(f"unknown key; did you mean {near[0]}?" if near else f"unknown key; {expected}")
        return found

    def items(self, expected: str) -> list["Node"]:
        """Read a list."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.fail(f"expected {expected}")
        return [self._child(item, f"{self.path}[{index}]") for index, item in enumerate(self._node.value)]

    def is_mapping(self) -> bool:
        """Say whether this is a mapping."""
        return isinstance(self._node, yaml.MappingNode)

    def is_list(self) -> bool:
        """Say whether this is a list."""
        return isinstance(self._node, yaml.SequenceNode)

    def text(self, expected: str = "text") -> str:
        """Read text; a number that was not quoted is told so."""
        value = self.value()
        if isinstance(value, bool) or not isinstance(value, int | str):
            self.fail(f"expected {expected}, got {value!r}")
        if isinstance(value, int):
            self.fail(f'expected {expected}, quote it ("{value}")')
        return value

    def number(self, expected: str, *, least: float = 0.0) -> float:
        """Read a number."""
        value = self.value()
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least:
            self.fail(f"expected {expected}, got {value!r}")
        return float(value)

    def whole(self, expected: str, *, least: int = 0) -> int:
        """Read a whole number."""
        value = self.value()
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            self.fail(f"expected {expected}, got {value!r}")
        return value

    def flag(self) -> bool:
        """Read true or false."""
        value = self.value()
        if not isinstance(value, bool):
            self.fail(f"expected true or false, got {value!r}")
        return value

    def choice(self, allowed: Collection[str]) -> str:
        """Read one of some words."""
        value = self.value()
        if value not in allowed:
            self.fail(f"expected {' or '.join(allowed)}, got {value!r}")
        return str(value)


def read(file: Path) -> Node:
    """Open a YAML file.

    Raises:
        ScenarioError: It cannot be read, or is not YAML.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ScenarioError(file, None, "", f"cannot be read: {err}") from err
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as err:
        line = err.problem_mark.line + 1 if err.problem_mark is not None else None
        raise ScenarioError(file, line, "", f"not YAML: {err.problem}") from err
    except yaml.YAMLError as err:
        raise ScenarioError(file, None, "", f"not YAML: {' '.join(str(err).split())}") from err
    if node is None:
        raise ScenarioError(file, None, "", "the file is empty; expected agents and a timeline")
    return Node(file, loader, node, "")
