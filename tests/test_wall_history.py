"""What the page remembers of an agent through an outage, in its own JavaScript under Node.js."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from adapter.wall import files_directory
from tests.examples_support import find

pytestmark = pytest.mark.page

CALL = '{callId: "c", phase: "ringing", caller: "1", called: "2", direction: "in"}'
OTHER = '{callId: "d", phase: "talking", caller: "1", called: "2", direction: "in"}'


async def run(tmp_path: Path, steps: str) -> Any:  # noqa: ANN401 - any JSON
    """Run steps on a new history `h` and give its states as pairs, and its calls as [id, at, endedAt, phases]."""
    (tmp_path / "history.mjs").write_text((files_directory() / "history.js").read_text())
    (tmp_path / "run.mjs").write_text(
        f'import {{ History }} from "./history.mjs";\nconst h = new History();\n{steps};\n'
        "console.log(JSON.stringify([h.states.map((s) => [s.state, s.at]),"
        " h.calls.map((c) => [c.callId, c.at, c.ended ? c.endedAt : 'open', c.phases.map((p) => p.phase)])]));\n"
    )
    done = await asyncio.create_subprocess_exec(find("node"), str(tmp_path / "run.mjs"), stdout=asyncio.subprocess.PIPE)
    out, _ = await done.communicate()
    return json.loads(out)


@pytest.mark.parametrize(
    ("steps", "states"),
    [
        # The first state tells the one before it; the same again tells nothing.
        (
            'h.state("idle", 9000, {state: "busy", seconds: 4}); h.state("idle", 9000, null)',
            [["busy", 5000], ["idle", 9000]],
        ),
        # A state without a time is not placed anywhere.
        ('h.state("unknown", NaN, null)', []),
        # Nothing happened while the page was cut off: no gap.
        ('h.state("idle", 1000, null); h.cutOff(5000); h.state("idle", 1000, null)', [["idle", 1000]]),
        # One change: the state before lasted until then.
        (
            'h.state("idle", 1000, null); h.cutOff(5000); h.state("busy", 8000, {state: "idle", seconds: 7})',
            [["idle", 1000], ["busy", 8000]],
        ),
        # Several: from the cut to the last but one, nothing is known.
        (
            'h.state("idle", 1000, null); h.cutOff(5000); h.state("busy", 9000, {state: "rest", seconds: 2})',
            [["idle", 1000], [None, 5000], ["rest", 7000], ["busy", 9000]],
        ),
    ],
)
async def test_states_through_an_outage(tmp_path: Path, steps: str, states: list[list[object]]) -> None:
    """What the page could not see is a gap, unless what came after tells that nothing was missed."""
    assert (await run(tmp_path, steps))[0] == states


@pytest.mark.parametrize(
    ("steps", "calls"),
    [
        (f"h.call({CALL}, 1, 1); h.call(null, NaN, 5)", [["c", 1, 5, ["ringing"]]]),
        (
            f'h.call({CALL}, 1, 1); h.call({{...{CALL}, phase: "talking"}}, 1, 3)',
            [["c", 1, "open", ["ringing", "talking"]]],
        ),
        # Another one at once, as a consultation: the first has ended for us.
        (f"h.call({CALL}, 1, 1); h.call({OTHER}, 4, 4)", [["c", 1, 4, ["ringing"]], ["d", 4, "open", ["talking"]]]),
        # It went on through the outage, or was gone after it: then it ended, as far as is known, with the sight of it.
        (
            f"h.call({CALL}, 1, 1); h.cutOff(2); h.call({CALL}, 1, 9); h.call(null, NaN, 11)",
            [["c", 1, 11, ["ringing"]]],
        ),
        (f"h.call({CALL}, 1, 1); h.cutOff(2); h.call(null, NaN, 9)", [["c", 1, 2, ["ringing"]]]),
    ],
)
async def test_calls_through_an_outage(tmp_path: Path, steps: str, calls: list[list[object]]) -> None:
    """A call ends when another takes its place or there is none, and with the outage if it is gone afterwards."""
    assert (await run(tmp_path, steps))[1] == calls
