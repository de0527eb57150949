"""Count, and compare with what is noted: `python -m bench.instructions`.

The exit code is 1 where a job costs more than `MARGIN` above what `ratios.json` beside this file says. Where that is
as it must be, or where it has become cheaper, `python -m bench.instructions --renew` notes the new ratios.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.instructions.work import COUNTS
from bench.support import BenchError, exit_code, mosquitto, python, table

MARGIN = 0.1
"""Runs on one machine differ by up to 2 %, and by 3 % from those with another build of Python, OpenSSL and SQLite."""

NOTED = Path(__file__).with_name("ratios.json")

_SAME = {"PYTHONHASHSEED": "0"}
_TIMEOUT_S = 300
_NAMES = {"idle": "a poll without an event", "event": "an event, from the poll to the broker's PUBACK and its deletion"}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one job costs, in instructions.

    Attributes:
        program: The program.
        bare: The least.
    """

    program: float
    bare: float

    @property
    def ratio(self) -> float:
        """Give how many times the least the program takes."""
        return self.program / self.bare


def count() -> dict[str, Cost]:
    """Do all jobs, and count.

    Raises:
        BenchError: valgrind is not installed, or a job failed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise BenchError("install valgrind")
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="instructions-")))
        port = stack.enter_context(mosquitto(directory))
        peer = stack.enter_context(python("peer", "bench.instructions.peer", [str(directory)], directory)).hear()
        counting = [valgrind, "--tool=cachegrind", "--cache-sim=no"]
        counting += [f"--cachegrind-out-file={directory}/%p.counted", f"--log-file={directory}/%p.log"]
        work = [sys.executable, "-m", "bench.instructions.work"]
        work += [str(peer["port"]), peer["ca_file"], str(port), str(directory)]
        done = subprocess.run(
            [*counting, *work],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | _SAME,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise BenchError(f"the work under valgrind ended with {done.returncode}")
        counted = {name: _read(directory / f"{pid}.counted") for name, pid in json.loads(done.stdout).items()}
    return {
        kind: Cost(
            *(
                (counted[f"{job} {kind} {2 * times}"] - counted[f"{job} {kind} {times}"]) / times
                for job in ("program", "bare")
            )
        )
        for kind, times in COUNTS.items()
    }


def _read(path: Path) -> int:
    found = re.search(r"^summary: *(\d+)", path.read_text(), re.MULTILINE)
    if found is None:
        raise BenchError(f"{path.name}: no summary")
    return int(found[1])


def run(*, renew: bool) -> bool:
    """Print the table; give whether nothing costs more than it may."""
    costs = count()
    if renew:
        NOTED.write_text(json.dumps({kind: round(cost.ratio, 2) for kind, cost in costs.items()}, indent=2) + "\n")
    noted = json.loads(NOTED.read_text())
    rows = [
        [
            _NAMES[kind],
            f"{cost.program:,.0f}",
            f"{cost.bare:,.0f}",
            f"{cost.ratio:.2f}",
            f"{noted[kind]:.2f}",
            f"{cost.ratio / noted[kind] - 1:+.1%}",
        ]
        for kind, cost in costs.items()
    ]
    print(table(["instructions for", "the program", "the bare loop", "ratio", "noted", "change"], rows))
    good = all(cost.ratio <= noted[kind] * (1 + MARGIN) for kind, cost in costs.items())
    if not good:
        print(f"more than {MARGIN:.0%} above what is noted; where it must be: --renew", file=sys.stderr)
    return good


def main() -> int:
    """Run the check; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.instructions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--renew", action="store_true", help="note the ratios of now")
    given = parser.parse_args()
    return exit_code(lambda: run(renew=given.renew))


if __name__ == "__main__":
    sys.exit(main())
