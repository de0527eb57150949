"""What the configuration's grammar is built of: a rule for one member, sections, lists, checks between members.

Below `words` and `schema`. Everything here is a callable for voluptuous: it gets the value that was
found, and returns it normalized or raises `vol.Invalid`.

Rules of this file:
1. No message holds a value that was found: it may be a secret.
2. Every mistake is told, not the first alone.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

import voluptuous as vol


class ExpectedError(vol.Invalid):
    """Something else stands there; whoever has the file completes the message with ``, got ...``.

    Attributes:
        what: What should stand there, in words.
    """

    def __init__(self, *, what: str, path: list[Hashable] | None = None) -> None:
        self.what = what
        super().__init__(f"expected {what}", path)


class NotTextError(ExpectedError):
    """Text is wanted, and YAML read a number or `true` or `false`: quotes would help."""


class ConflictError(vol.Invalid):
    """Members that do not go together; the message says all."""

    def __init__(self, *, what: str, path: list[Hashable] | None = None) -> None:
        super().__init__(what, path)


class NoneOfError(vol.Invalid):
    """None of several keys is there, one of which is needed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        super().__init__(f"expected one of {', '.join(names)}, got none")


@dataclass(frozen=True, slots=True)
class Rule:
    """What one member may be.

    Attributes:
        expected: In words, to follow "expected".
        parse: Normalizes a value, or raises `ValueError` (`expected` is then the message) or `vol.Invalid`.
        schema: The same in JSON Schema, as far as an editor can use it.
    """

    expected: str
    parse: Callable[[object], object]
    schema: Mapping[str, object] = field(default_factory=dict)

    def __call__(self, value: object) -> object:
        """Normalize `value`, or raise `vol.Invalid`."""
        try:
            return self.parse(value)
        except ValueError as err:
            raise ExpectedError(what=self.expected) from err


@dataclass(frozen=True, slots=True)
class Check:
    """A rule between members of one section.

    Attributes:
        members: Those it looks at; it is left out while one of them is wrong by itself.
        test: Gets the section's values with defaults, raises `vol.Invalid`.
    """

    members: tuple[str, ...]
    test: Callable[[dict[str, object]], None]


class Section:
    """A mapping with known keys.

    Args:
        members: Keys as voluptuous' markers, and their rules.
        checks: What must hold between members.
        one_of: Exactly one of these keys must be there.
    """

    def __init__(self, members: Mapping[vol.Marker, "Word"], *checks: Check, one_of: tuple[str, ...] = ()) -> None:
        self.members = members
        self.one_of = one_of
        self._checks = checks
        self._schema = vol.Schema(dict(members))
        # voluptuous gives nothing back where it found a mistake. The members without one are read again by
        # this, so that the checks between them are told in the same run.
        self._sound = vol.Schema(
            {
                vol.Optional(key.schema, default=getattr(key, "default", vol.UNDEFINED)): rule
                for key, rule in members.items()
            }
        )

    def __call__(self, value: object) -> object:
        """Normalize the members and fill in defaults, or raise `vol.MultipleInvalid`."""
        if not isinstance(value, dict):
            raise ExpectedError(what="a mapping")
        errors: list[vol.Invalid] = []
        wrong: set[str] = set()
        try:
            section = self._schema(value)
        except vol.MultipleInvalid as err:
            errors += err.errors
            wrong = {str(error.path[0]) for error in errors}
            section = self._sound({key: member for key, member in value.items() if key not in wrong})
        errors += self._disagreements(value, section, wrong)
        if errors:
            raise vol.MultipleInvalid(errors)
        return section

    def _disagreements(
        self, value: dict[str, object], section: dict[str, object], wrong: set[str]
    ) -> Iterable[vol.Invalid]:
        given = [name for name in self.one_of if name in value]
        if self.one_of and not given:
            yield NoneOfError(self.one_of)
        if len(given) > 1:
            yield ConflictError(what=f"expected only one of {', '.join(self.one_of)}, got {' and '.join(given)}")
        for check in self._checks:
            if wrong.isdisjoint(check.members):
                try:
                    check.test(section)
                except vol.Invalid as err:
                    yield err

    def names(self) -> list[str]:
        """List the keys in the order of the grammar."""
        return [str(key) for key in self.members]


class Each:
    """A list; unlike voluptuous' own it goes on after an item with a mistake inside."""

    def __init__(self, item: "Word") -> None:
        self.item = item
        self._schema = vol.Schema(item)

    def __call__(self, value: object) -> object:
        """Normalize each item, or raise `vol.MultipleInvalid`."""
        if not isinstance(value, list):
            raise ExpectedError(what="a list")
        items: list[object] = []
        errors: list[vol.Invalid] = []
        for index, item in enumerate(value):
            try:
                items.append(self._schema(item))
            except vol.MultipleInvalid as err:
                err.prepend([index])
                errors += err.errors
        if errors:
            raise vol.MultipleInvalid(errors)
        return items


class OrOff:
    """A section that is off when it is left out, or `false`, or has nothing in it."""

    def __init__(self, section: Section) -> None:
        self.section = section

    def __call__(self, value: object) -> object:
        """Normalize the section; `None` where it is off."""
        return None if value is None or value is False else self.section(value)


Word = Rule | Section | Each | OrOff
