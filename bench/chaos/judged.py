"""The run of a harm as a command: where its files lie, what is printed of it, and its exit code."""

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.chaos.judge import Verdict
from bench.support import BenchError, end_by_signal, raise_file_limit, table


def judged(run: Callable[[Path], Awaitable[Verdict]], *, keep: Path | None, head: tuple[str, str]) -> int:
    """Run a harm and tell what was seen.

    Args:
        run: Runs it, in a directory of its own.
        keep: That directory, which stays; a passing one where there is none.
        head: Of the table.

    Returns:
        The exit code: 1 where a promise was broken, or a part ended.
    """

    async def begin(directory: Path) -> Verdict:
        return await run(directory)

    end_by_signal()
    raise_file_limit()
    with contextlib.ExitStack() as stack:
        directory = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="harm-")))
        directory.mkdir(parents=True, exist_ok=True)
        try:
            verdict = asyncio.run(begin(directory))
        except BenchError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    print(table(list(head), [list(row) for row in verdict.figures.items()]))
    for fault in verdict.faults:
        print(f"FAULT {fault}", file=sys.stderr)
    return 1 if verdict.faults else 0
