"""The documentation: what it refers to exists, what it quotes is said, and what it tells people to type works."""

import ast
import contextlib
import re
import sqlite3
from pathlib import Path

import click
import pytest
import trustme

from adapter.cli import main
from adapter.config import load
from adapter.config.grammar import SCHEMA
from adapter.store import sql
from scripts import reference
from tests.config_support import KEY
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


def words_of_the_program() -> str:
    """Gather the texts of the program, a line each; what is filled in is an ellipsis."""
    texts: list[str] = []
    for path in (ROOT / "adapter").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[-.\d]*[sdfgr]", "…", node.value))
    return "\n".join(texts)


@pytest.mark.parametrize(("page", "begins"), [("troubleshooting", "# "), ("cluster", "## When something is wrong")])
def test_what_troubleshooting_quotes_is_said(page: str, begins: str) -> None:
    """Each part of a text is one of the program's, to the letter; each name occurs in code, contracts or examples."""
    page = begins + without_code(read(f"docs/{page}.md")).partition(begins)[2]
    sources = [*ROOT.glob("adapter/**/*.py"), *ROOT.glob("schemas/*"), ROOT / "examples/mosquitto/acl"]
    names = set(re.findall(r"[A-Za-z_][\w-]+", "".join(path.read_text(encoding="utf-8") for path in sources)))
    said = words_of_the_program() + read("docs/reference.md")
    for quoted in re.findall(r"`([^`]+)`", page):
        if quoted.startswith(("ccgateway2mqtt ", "sqlite3 ", "journalctl ", "docker ", "nats ")):
            continue
        if " " in quoted or "…" in quoted:
            # A line is put together of what several modules say, with a colon or a semicolon in between.
            parts = [part.strip() for part in re.split(r"…|[:;,] ", quoted)]
            assert [part for part in parts if part not in said] == [], quoted
        else:
            assert set(re.findall(r"[A-Za-z_][\w-]+", quoted)) <= names, quoted


def test_what_is_asked_of_the_database_can_be_asked() -> None:
    """Each SELECT that a page tells people to type fits the tables."""
    queries = re.findall(r"sqlite3 \S+ '(SELECT [^']+)'", "".join(map(read, PAGES)))
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(sql.SCHEMA)
        for query in queries:
            database.execute(query)

    assert queries


def test_upgrading_names_the_schema() -> None:
    """The page is looked at again when the database's schema changes."""
    assert f"This version writes schema {sql.SCHEMA_VERSION}," in read("docs/upgrading.md")


def code(page: Path) -> list[str]:
    """Take the lines and the words of a page that are code."""
    text = read(page)
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_that_is_shown_exists(page: Path) -> None:
    """Commands of the program with their options, and targets of make."""
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for line in code(page):
        words = line.partition(" #")[0].split()
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        if words[:1] == ["ccgateway2mqtt"] and line != "ccgateway2mqtt main":  # the name of a device
            command: click.Command | None
            command = main.commands.get(words[1]) if len(words) > 1 and words[1][0] not in "-[" else main
            if isinstance(command, click.Group) and command is not main:
                command = command.commands.get(words[2])
            assert command is not None, line
            known = {option for each in command.params for option in each.opts} | {"--help"}
            assert {word.strip("[]") for word in words if word.startswith(("--", "[--"))} <= known, line


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parts[0] != "examples" and "```yaml" in read(page)], ids=str
)
def test_every_configuration_that_is_shown_is_valid(page: Path, tmp_path: Path) -> None:
    """Completed with a gateway and agents where it has none; what is no configuration is its secrets."""
    secrets = set(re.findall(r"!secret (\w+)", read(page)))
    values = {name: KEY if name == "cluster_key" else "text" for name in secrets}
    (tmp_path / "secrets.yaml").write_text("".join(f"{name}: {text}\n" for name, text in values.items()))
    (tmp_path / "secrets.yaml").chmod(0o600)
    keys = {str(key) for key in SCHEMA.members}
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```$", read(page), re.DOTALL | re.MULTILINE)):
        given = set(re.findall(r"^(\w+):", block, re.MULTILINE))
        if given and given <= secrets:
            continue
        assert given <= keys, given - keys
        for name in re.findall(r"_file: (\S+)", block):
            trustme.CA().cert_pem.write_to_path(str(tmp_path / name))
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        for key, value in {"gateway": "{url: https://g.example}", "agents": '[{work_no: "1", guid: g}]'}.items():
            if key not in given:
                path.write_text(f"{path.read_text()}\n{key}: {value}\n")
        load(path)
