"""The site that ``make docs`` builds of this folder, into ``out/docs``."""

import posixpath
from typing import Any

from stif_rt.version import VERSION

project = "stif-rt"
release = version = VERSION
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "stif-rt"
html_show_copyright = False

myst_heading_anchors = 3  # links to headings, as GitHub makes them
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
napoleon_use_ivar = True
python_maximum_signature_line_length = 100

PAGES = {
    "stif_rt/weights/README.md": "weights.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Files outside this folder that have a page on the site."""


def to_pages(app: Any, name: str, source: list[str]) -> None:
    """Links to files that have a page, as they must be for GitHub, lead to the page."""
    for file, page in PAGES.items():
        source[0] = source[0].replace(f"({posixpath.join('..', file)}", f"({page}")


def as_python(app: Any, what: str, name: str, item: Any, options: Any, signature: str | None, returns: Any) -> Any:
    """A signature that is Python: a dataclass writes ``<factory>`` for an empty dictionary."""
    return signature and signature.replace("<factory>", "{}"), returns


def setup(app: Any) -> None:
    app.connect("source-read", to_pages)
    app.connect("autodoc-process-signature", as_python)
