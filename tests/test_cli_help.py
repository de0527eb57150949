"""What `--help` shows: an example for each command, at once."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from adapter.cli import main
from tests.cli_support import COMMAND, invoke


def examples(*command: str) -> list[list[str]]:
    """Give the words of each example in a command's help; a shell's redirections and substitutions are not ours."""
    _, title, shown = invoke(*command, "--help").stdout.partition("\n  Examples:\n")
    assert title
    return [shlex.split(line) for line in re.findall(r"ccgateway2mqtt [^<>)\n]*", shown)]


@pytest.mark.parametrize("name", list(main.commands))
def test_the_help_of_a_command_shows_examples_that_are_right(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example, as it stands there on one line, is what the command takes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wall.txt").touch()  # whose being there is looked at with the options

    shown = examples(name)

    assert shown
    for program, command, *words in shown:
        assert (program, command) == ("ccgateway2mqtt", name)
        main.commands[name].make_context(name, words)


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
        "adapter.cli_group",
        "adapter.errors",
    }
    assert {"httpx", "paho", "aiohttp", "msgspec", "yaml", "voluptuous", "rich"} & imported == set()
