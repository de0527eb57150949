"""The documentation: what it refers to exists, what it quotes is said, and what it tells people to type works."""

import re
from pathlib import Path

import pytest

from scripts import reference
from tests.examples_support import ROOT

PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "bench/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)


def read(page: Path | str) -> str:
    """Read a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """Leave out what stands in blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """List what links to a page may end with: its headings, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", without_code(read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reference_is_up_to_date() -> None:
    """`make schemas` would not change docs/reference.md."""
    assert read("docs/reference.md") == reference.render()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files, headings and pictures that a page refers to are there."""
    text = without_code(read(page))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    dead = []
    for link in links:
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (ROOT / page).parent / file if file else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.resolve().relative_to(ROOT.resolve()))):
            dead.append(link)

    assert dead == []
