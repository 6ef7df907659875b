"""Links between pages lead somewhere on GitHub too (those of the site are Sphinx's to check), and the messages that
pages explain are those of the sources."""

import ast
import fnmatch
import functools
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import stif_rt

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "demo/README.md", ROOT / "stif_rt/weights/README.md"]
SOURCES = [path for folder in ("stif_rt", "export", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
EXPLAINED = ("docs/troubleshooting.md", "docs/clusters.md")
"""Pages with tables of messages as they are in the sources, with … for what is put into them."""


@functools.cache
def tree(path):
    """A source file, parsed."""
    return ast.parse(path.read_text())


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


def code_of(page):
    """What a page shows as code within its sentences and tables."""
    return sorted(set(re.findall("`([^`\\n]+)`", re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.S))))


FOLDERS = ("stif_rt", "export", "csrc", "benchmarks", "tests", "docs", ".github", ".ci")
FILES = [f"/{path.relative_to(ROOT)}" for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
FILES += [f"/{path.name}" for path in ROOT.iterdir()]
PATH = re.compile(r"[\w.*/-]+(\.(py|cu|h|cpp|md|toml|ya?ml)|/[\w.*-]*)")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/internals.md", "docs/backends.md"])
def test_paths_and_names_are_those_of_the_sources(page):
    words = set(re.findall(r"\w+", " ".join(path.read_text() for path in SOURCES)))
    for text in code_of(page):
        text = re.sub(r"<\w+>", "*", text)
        if text.startswith("out/") or "GPU-NAME" in text:
            continue  # what a run writes
        if PATH.fullmatch(text):
            assert any(fnmatch.fnmatch(path, f"*/{text.rstrip('/')}") for path in FILES), text
        elif re.fullmatch(r"\w*[A-Z_]\w*", text):
            assert text in words, text
        elif module := re.search(r"python -m (benchmarks[\w.]*)", text):
            assert importlib.util.find_spec(module[1]) is not None, text


@pytest.fixture(scope="module")
def messages():
    """The texts of the sources, with … for what is put into them."""

    def text(node):
        if isinstance(node, ast.Constant):
            return str(node.value)
        return "".join(text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)

    trees = [tree(path) for folder in ("stif_rt", "export") for path in (ROOT / folder).rglob("*.py")]
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


def sections(docstring):
    """The sections of a docstring by name, each with the names that begin its entries."""
    parts = re.split(r"^(\w+):$", docstring, flags=re.M)
    texts = zip(parts[1::2], parts[2::2], strict=True)
    return {
        name: re.findall(r"\*?[\w.]+", " ".join(re.findall(r"^ {4}(\S[^:]*):", text, re.M))) for name, text in texts
    }


def functions():
    """The functions of the sources whose docstrings have a section of arguments: their parameters and the docstring."""
    for folder in ("stif_rt", "export"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(tree(path)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and "Args:" in (
                    ast.get_docstring(node) or ""
                ):
                    arguments = node.args
                    parameters = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs]
                    names = [p.arg for p in (*parameters, arguments.kwarg) if p is not None]
                    yield pytest.param(names, ast.get_docstring(node), id=f"{path.relative_to(ROOT)}:{node.name}")


@pytest.mark.parametrize(("parameters", "docstring"), list(functions()))
def test_a_section_of_arguments_names_each_parameter(parameters, docstring):
    named = sections(docstring)["Args"]
    assert sorted(named) == sorted(name for name in parameters if name not in ("self", "cls") or name in named)


PUBLIC = re.findall(
    r"auto(?:class|function|exception):: (\S+?)(?:\(\))?$", (ROOT / "docs/api.md").read_text(), flags=re.M
)


def test_the_page_of_the_api_has_every_public_name():
    assert set(stif_rt.__all__) - {"__version__"} <= set(PUBLIC)


def public_functions():
    """The functions and methods on the page of the API."""
    for name in PUBLIC:
        module, _, last = (name if "." in name else f"stif_rt.{name}").rpartition(".")
        item = getattr(importlib.import_module(module), last)
        members = vars(item) if inspect.isclass(item) else {last: item}
        for member, function in members.items():
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function) and not member.startswith("_"):
                yield pytest.param(function, id=function.__qualname__)


@pytest.mark.parametrize("function", list(public_functions()))
def test_public_functions_say_what_they_take_and_give(function):
    signature = inspect.signature(function)
    found = sections(inspect.getdoc(function) or "")
    assert inspect.getdoc(function)
    assert ("Args" in found) == bool(set(signature.parameters) - {"self", "cls"})
    given = signature.return_annotation not in (None, "None", bool, "bool")
    assert ("Returns" in found or "Yields" in found) == given


def test_functions_have_docstrings():
    """Those of modules, public ones; and classes. Methods may have that of what they implement."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    silent = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in SOURCES
        if not path.is_relative_to(ROOT / "tests")
        for node in tree(path).body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not silent
