"""Links between pages lead somewhere on GitHub too (those of the site are Sphinx's to check), and the messages that
pages explain are those of the sources."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "demo/README.md", ROOT / "stif_rt/weights/README.md"]
EXPLAINED = ("docs/troubleshooting.md", "docs/clusters.md")
"""Pages with tables of messages as they are in the sources, with … for what is put into them."""


def without_code(text):
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.fixture(scope="module")
def messages():
    """The texts of the sources, with … for what is put into them."""

    def text(node):
        if isinstance(node, ast.Constant):
            return str(node.value)
        return "".join(text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)

    trees = [ast.parse(path.read_text()) for folder in ("stif_rt", "export") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.JoinedStr, ast.Constant))]
    return [re.sub("%[sdf]", "…", text(node)) for node in nodes if isinstance(node, ast.JoinedStr) or node.value]


def explained():
    """The first column of the tables of messages."""
    tables = [table for name in EXPLAINED for table in (ROOT / name).read_text().split("| message |")[1:]]
    rows = [row for table in tables for row in re.findall(r"^\| (`.*?`) \|", table, flags=re.M)]
    return [message.replace(r"\|", "|") for row in rows for message in re.findall("`([^`]+)`", row)]


@pytest.mark.parametrize("message", explained())
def test_explained_messages_are_those_of_the_sources(messages, message):
    pieces = [re.escape(piece) for piece in message.split("…")]
    assert any(len(piece) > 5 for piece in pieces)
    pattern = re.compile(".*".join(pieces), re.S)
    assert any(pattern.search(text) for text in messages)
