"""The table of what the program costs, and its verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from bench.support import table

_NONE = ""
_HEAD = ["what", "ours", "rival", "ratio", "at most", "aim", "verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line.

    Attributes:
        what: What was measured.
        ours: What we took.
        rival: What was measured beside it, and what it took.
        ratio: The one by the other.
        at_most: The bound.
        aim: What is aimed at.
        met: Whether the bound is.
    """

    what: str
    ours: str
    rival: str = _NONE
    ratio: str = _NONE
    at_most: str
    aim: str = _NONE
    met: bool

    def cells(self) -> list[str]:
        """Write it for the table."""
        verdict = "met" if self.met else "not met"
        return [self.what, self.ours, self.rival, self.ratio, self.at_most, self.aim, verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The largest ratio that is allowed, and that which is aimed at."""

    at_most: float
    aim: float


def compared(what: str, ours: Sequence[float], rival: tuple[str, Sequence[float]], unit: str, bound: Bound) -> Row:
    """Compare the median of our runs with that of a rival's, which comes with its name."""
    name, theirs = rival
    ratio = median(ours) / median(theirs)
    return Row(
        what=what,
        ours=f"{median(ours):,.0f} {unit}",
        rival=f"{name}: {median(theirs):,.0f} {unit}",
        ratio=f"{ratio:.3g}",
        at_most=f"{bound.at_most:g}",
        aim=f"{bound.aim:g}",
        met=ratio <= bound.at_most,
    )


def spread(values: Sequence[float], unit: str) -> str:
    """Write a median, and between what the runs lay."""
    return f"{median(values):,.0f} {unit} ({min(values):,.0f} to {max(values):,.0f})"


def written(rows: Sequence[Row]) -> str:
    """Write the table."""
    return table(_HEAD, [row.cells() for row in rows])
