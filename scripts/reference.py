"""docs/reference.md, made from the code: commands, configuration, event types, retcodes.

`python -m scripts.reference > docs/reference.md` writes it, `make schemas` does that; a test fails when it is old.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

import click
import voluptuous as vol

from adapter.catalogue import EVENT_TYPES, RETCODES
from adapter.cli import main
from adapter.config.grammar import SCHEMA
from adapter.config.rules import Each, OrOff, Rule, Section, Word

_WIDTH = 100
_MEANT_FOR_MARKDOWN = re.compile(r"[<>|*_]")

_HEAD = """\
# Reference

Made from the code by `make schemas`: commands, configuration, event types, retcodes.
Topics and payloads are in [topics.md](topics.md), their JSON Schemas in [schemas/](../schemas),
metrics in [monitoring.md](monitoring.md#metrics).
"""
_CONFIGURATION = """\
## Configuration

A YAML file; [examples/full.yaml](../examples/full.yaml) shows all of it.
`!secret NAME` stands for the value of `NAME` in `secrets.yaml` beside the file, `!env_var NAME` for an environment
variable, `!include FILE` for another file.
Names of files are relative to the file that they stand in.
A change of `agents` and `log` takes effect with a reload (SIGHUP, or the request `reload`), every other one with a
restart.
"""
_EVENTS = """\
## Event types

What the gateway's events are called, and what they do to [`state`](topics.md#state) and its call.
A type that is not listed passes through unchanged, and changes nothing.
The last column names the members of `content` that `privacy` masks.
"""
_RETCODES = """\
## Retcodes

What the gateway means by the codes in `session` and in results.
One that is not listed is passed on all the same.
"""


def render() -> str:
    """Write the page."""
    return "\n".join([_HEAD, *_commands(), _CONFIGURATION, *_sections(), *_events(), *_retcodes()])


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    yield "Exit codes: 0 done, 1 failure, 2 wrong usage or configuration, 3 storage in use by another process.\n"
    names = main.context_settings["help_option_names"]
    root = click.Context(main, info_name="ccgateway2mqtt", terminal_width=_WIDTH, help_option_names=names)
    yield _block(root.get_help())
    yield from _commands_of(root, main)


def _commands_of(parent: click.Context, group: click.Group) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):
        context = click.Context(command, info_name=name, parent=parent)
        yield f"### {context.command_path.partition(' ')[2]}\n"
        yield _block(context.get_help())
        if isinstance(command, click.Group):
            yield from _commands_of(context, command)


def _block(text: str) -> str:
    return f"```text\n{text}\n```\n"


def _sections() -> Iterator[str]:
    """Make a table of the keys without a section, and one of each section."""
    yield from _table(
        ("key", "what it is", "what it may be", "default"),
        [_key("", key, word) for key, word in SCHEMA.members.items() if isinstance(word, Rule)],
    )
    yield from _below("", SCHEMA)


def _below(path: str, section: Section) -> Iterator[str]:
    for key, word in section.members.items():
        inner, name = _inner(word), f"{path}{key}{'[]' if isinstance(word, Each) else ''}"
        if inner is None:
            continue
        required = " Required." if isinstance(key, vol.Required) else ""
        yield f"### {name}\n\n{_plain(key.description or '')}{required}\n"
        if inner.one_of:
            yield f"One of {', '.join(f'`{each}`' for each in inner.one_of)} is required.\n"
        rows = [_key(f"{name}.", *member) for member in inner.members.items() if _inner(member[1]) is None]
        yield from _table(("key", "what it is", "what it may be", "default"), rows)
        yield from _below(f"{name}.", inner)


def _inner(word: Word) -> Section | None:
    """Find the section that a key leads to."""
    match word:
        case Section():
            return word
        case OrOff():
            return word.section
        case Each():
            return _inner(word.item)
        case _:
            return None


def _key(path: str, key: vol.Marker, rule: Word) -> tuple[str, ...]:
    default = getattr(key, "default", vol.UNDEFINED)
    shown = "" if isinstance(default, vol.schema_builder.Undefined) else f"`{json.dumps(default())}`"
    expected = rule.expected if isinstance(rule, Rule) else ""
    return (
        f"`{path}{key}`",
        _plain(key.description or ""),
        _plain(expected),
        "required" if isinstance(key, vol.Required) else shown,
    )


def _events() -> Iterator[str]:
    yield _EVENTS
    rows = [
        (f"`{each.name}`", each.meaning, each.state or "", each.call or "", ", ".join(each.numbers))
        for each in EVENT_TYPES.values()
    ]
    yield from _table(("type", "what happened", "state", "call", "numbers"), [tuple(map(_plain, row)) for row in rows])


def _retcodes() -> Iterator[str]:
    yield _RETCODES
    codes: Mapping[str, str] = RETCODES
    yield from _table(("retcode", "meaning"), [(code, _plain(text)) for code, text in codes.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    lines = [head, ["---"] * len(head), *rows]
    yield "\n".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|" for line in lines) + "\n"


def _plain(text: str) -> str:
    """Write text so that Markdown takes none of it for its own; code stays as it is."""
    return text if text.startswith("`") else _MEANT_FOR_MARKDOWN.sub(r"\\\g<0>", text)


if __name__ == "__main__":
    sys.stdout.write(render())
