"""What Sphinx's HTML lacks: for those who hear a page, found by axe (tests/docs); and titles in place of files' names."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

SIGNATURE = (addnodes.desc_parameterlist, addnodes.desc_type_parameter_list)


class Translator(HTML5Translator):
    def starttag(self, node: nodes.Element, tagname: str, suffix: str = "\n", empty: bool = False, **attributes: Any) -> str:
        if attributes.get("ROLE") == "heading":  # of a list of pages, in the sidebar: a heading has a level
            attributes["ARIA-LEVEL"] = "2"
        if tagname == "dl" and isinstance(node, SIGNATURE):  # the parameters of a long signature, which have no terms
            attributes["ROLE"] = "none"
        return super().starttag(node, tagname, suffix, empty, **attributes)


def give_titles(app: Sphinx, document: nodes.document, name: str) -> None:
    """On a Git host a link reads as the file that it leads to; here, where there are no such files, as the page's title."""
    for link in document.findall(nodes.reference):
        if link.get("internal") and re.fullmatch(r"[\w/-]+\.md", link.astext()):
            page = posixpath.normpath(
                posixpath.join(posixpath.dirname(name), link["refuri"].partition("#")[0].removesuffix(".html"))
            )
            link.clear()
            link += nodes.inline("", app.env.titles[page].astext())


def setup(app: Sphinx) -> dict[str, bool]:
    app.set_translator("html", Translator)
    app.connect("doctree-resolved", give_titles)
    return {"parallel_read_safe": True}
