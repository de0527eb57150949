"""What a look has found: one line for each, with what to do about it."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        verdict: ``failed`` where the adapter will not do its work, ``warning`` where it will not do it well, or only
            for now.
        place: What was looked at.
        text: What was seen.
        remedy: What to do about it; empty where nothing is to be done.
    """

    verdict: Verdict
    place: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f" - {self.remedy}" if self.remedy else ""
        return f"{self.verdict:<7} {self.place}: {self.text}{remedy}"
