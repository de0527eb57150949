"""Completion with the Tab key, by click's own scripts: in a real bash, and the others' ends of it."""

import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter import contracts
from tests.cli_support import DEADLINE_S, invoke
from tests.examples_support import EXAMPLES

PROMPT = b"your turn> "
SCRIPTS = {
    "bash": "complete -o nosort -F _ccgateway2mqtt_completion ccgateway2mqtt",
    "zsh": "#compdef ccgateway2mqtt",
    "fish": "complete --no-files --command ccgateway2mqtt",
}


class Terminal:
    """A bash with a person at the keyboard."""

    def __init__(self, keyboard: int) -> None:
        self._keyboard = keyboard
        self._ready = select.poll()
        self._ready.register(keyboard, select.POLLIN)

    def read(self) -> str:
        """Wait until it is our turn; give what it showed until then."""
        shown = b""
        while not shown.endswith(PROMPT):
            assert self._ready.poll(DEADLINE_S * 1000), shown
            shown += os.read(self._keyboard, 4096)
        return shown.decode().replace("\r\n", "\n")

    def type(self, keys: str) -> str:
        """Press keys and Enter; give what it then shows: the line as completed, and what the command says."""
        os.write(self._keyboard, f"{keys}\n".encode())
        return self.read()


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Terminal]:
    """Run a bash that has evaluated our script, with the program on its PATH."""
    keyboard, screen = os.openpty()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "PS1": PROMPT.decode(),
        "HOME": str(tmp_path),
        "TERM": "dumb",
    }
    process = subprocess.Popen(
        ["setsid", "--ctty", "bash", "--noprofile", "--norc", "-i"],
        stdin=screen,
        stdout=screen,
        stderr=screen,
        cwd=tmp_path,
        env=environment,
    )
    os.close(screen)
    try:
        terminal = Terminal(keyboard)
        terminal.read()
        # The line that was typed is all that is shown: the script says nothing.
        assert terminal.type('eval "$(ccgateway2mqtt completion bash)"').count("\n") == 1
        yield terminal
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)


def test_bash_completes_commands_options_and_names(bash: Terminal) -> None:
    """What Tab has completed is what runs."""
    assert bash.type("ccgateway2mqtt sch\tasy\t").splitlines()[1:-1] == contracts.read("asyncapi").splitlines()
    assert "Usage: ccgateway2mqtt simulate " in bash.type("ccgateway2mqtt sim\t--he\t")
    assert "ccgateway2mqtt simulate --auth-mode static" in bash.type("ccgateway2mqtt sim\t--auth-m\tst\t--help")


def test_bash_completes_files(bash: Terminal, tmp_path: Path) -> None:
    """Where a file is wanted, bash completes its name."""
    for name, copy in (("minimal.yaml", "of-the-house.yaml"), ("secrets.yaml.example", "secrets.yaml")):
        shutil.copy(EXAMPLES / name, tmp_path / copy)
    (tmp_path / "secrets.yaml").chmod(0o600)

    assert "of-the-house.yaml: valid, 1 agents" in bash.type("ccgateway2mqtt che\t-c of-\t")


@pytest.mark.parametrize("shell", list(SCRIPTS))
def test_each_shell_has_a_script(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script is the shell's own kind, and asks the program, which answers in that shell's form."""
    script = invoke("completion", shell)
    assert (script.exit_code, script.stderr) == (0, "")
    assert SCRIPTS[shell] in script.stdout
    assert f"_CCGATEWAY2MQTT_COMPLETE={shell}_complete" in script.stdout

    monkeypatch.setenv("_CCGATEWAY2MQTT_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "ccgateway2mqtt c")
    monkeypatch.setenv("COMP_CWORD", "c" if shell == "fish" else "1")
    answer = invoke()

    assert (answer.exit_code, answer.stderr) == (0, "")
    assert set(re.findall("^(?:plain,)?([a-z]+)", answer.stdout, re.MULTILINE)) >= {"calldata", "check", "completion"}
    assert "health" not in answer.stdout
