"""Lists the classes and functions of every page of the API reference in the sidebar, below the page."""

from __future__ import annotations

from typing import Any

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.application import Sphinx


def _objects(app: Sphinx, document: str) -> list[tuple[str, str]]:
    """Give name and anchor of what a page documents, but not of its members."""
    found = {}
    for link in app.env.tocs[document].findall(nodes.reference):
        anchor = link["anchorname"]
        if anchor.startswith("#lightning_fl_ext.") and not any(anchor.startswith(f"{a}.") for a in found):
            found[anchor] = link.astext().removesuffix("()")
    return [(name, anchor) for anchor, name in found.items()]


def _extend(app: Sphinx, page: str, html: str) -> str:
    tree = BeautifulSoup(html, "html.parser")
    for document in sorted(name for name in app.env.found_docs if name.startswith("api/")):
        target = "#" if document == page else app.builder.get_relative_uri(page, document)
        objects = _objects(app, document)
        for link in tree.find_all("a", href=target) if objects else ():
            names = tree.new_tag("ul")
            for name, anchor in objects:
                entry = tree.new_tag("li", attrs={"class": "toctree-l2"})
                inner = tree.new_tag(
                    "a", href=f"{target.rstrip('#')}{anchor}", attrs={"class": "reference internal"}
                )
                inner.string = name
                entry.append(inner)
                names.append(entry)
            link.parent.append(names)
    return str(tree)


def _page_context(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if toctree := context.get("toctree"):
        context["toctree"] = lambda **options: _extend(app, page, toctree(**options))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register before furo, which reads the tree at the default priority."""
    app.connect("html-page-context", _page_context, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
