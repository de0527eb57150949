"""What `--help` shows: an example for each command, at once."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from adapter.cli import main
from tests.cli_support import COMMAND, invoke


def examples(*command: str) -> list[list[str]]:
    """Give the words of each example in a command's help; a shell's redirections and substitutions are not ours."""
    _, title, shown = invoke(*command, "--help").stdout.partition("\n  Examples:\n")
    assert title
    return [shlex.split(line) for line in re.findall(r"ccgateway2mqtt [^<>)\n]*", shown)]


def commands(group: click.Group = main, *before: str) -> Iterator[tuple[str, ...]]:
    """List the words of every command; what a group has is below it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)
        else:
            yield (*before, name)


@pytest.mark.parametrize("names", list(commands()), ids=" ".join)
def test_the_help_of_a_command_shows_examples_that_are_right(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example, as it stands there on one line, is what the command takes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wall.txt").touch()  # whose being there is looked at with the options

    shown = examples(*names)

    assert shown
    for words in shown:
        assert words[: 1 + len(names)] == ["ccgateway2mqtt", *names]
        command: click.Command = main
        for name in names:
            assert isinstance(command, click.Group)
            command = command.commands[name]
        command.make_context(names[-1], words[1 + len(names) :])


def test_the_main_help_shows_examples() -> None:
    """The way of a newcomer: see it, check a configuration, run it."""
    assert [words[1] for words in examples()] == ["demo", "check", "run"]


def test_help_imports_no_more_than_it_needs() -> None:
    """Of what is installed, help loads click alone; each command loads the rest when it runs."""
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    installed = {name for name in imported if name.partition(".")[0] not in sys.stdlib_module_names}

    assert {name for name in installed if name.startswith("adapter.")} == {
        "adapter.cli",
        "adapter.cli_cluster",
        "adapter.cli_group",
        "adapter.errors",
    }
    assert {"httpx", "paho", "aiohttp", "msgspec", "yaml", "voluptuous", "rich"} & imported == set()
