"""What Sphinx's HTML lacks for those who hear a page: found by axe (tests/docs)."""

from __future__ import annotations

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


def setup(app: Sphinx) -> dict[str, bool]:
    app.set_translator("html", Translator)
    return {"parallel_read_safe": True}
