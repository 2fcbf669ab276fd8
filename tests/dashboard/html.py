"""A page, parsed as a browser would, by a parser that takes no errors; and what holds for every page."""

from __future__ import annotations

from xml.etree.ElementTree import Element

import html5lib
import httpx

INVISIBLE = {"script", "style", "template", "noscript", "head"}
SVG = "{http://www.w3.org/2000/svg}"
"""Before the tag of what is drawn."""
NAMED = {"input", "select", "textarea"}


class Html:
    def __init__(self, source: str, fragment: bool) -> None:
        self.source = source
        parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
        self.root: Element = parser.parseFragment(source, scripting=False) if fragment else parser.parse(source, scripting=False)

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of each such element, in order."""
        return [dict(element.attrib) for element in self.root.iter(tag)]

    @property
    def text(self) -> str:
        """As it is read, with single spaces."""

        def words(element: Element) -> str:
            own = "" if element.tag in INVISIBLE else (element.text or "") + "".join(map(words, element))
            return f"{own} {element.tail or ''}"

        return " ".join(words(self.root).split())

    @property
    def scripts(self) -> list[str]:
        return [script.text or "" for script in self.root.iter("script")]

    @property
    def resources(self) -> list[str]:
        links = [given["href"] for given in self.all("link")] + [
            given["src"] for tag in ("script", "img") for given in self.all(tag)
        ]
        return list(dict.fromkeys(links))


def checked(answer: httpx.Response) -> Html:
    """The answer's page, once it is seen to be a sound one."""
    fragment = not answer.text.startswith("<!doctype html>")
    html = Html(answer.text, fragment)
    ids = [element.attrib["id"] for element in html.root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids)), f"twice: {sorted({one for one in ids if ids.count(one) > 1})}"
    for element in html.root.iter():
        given = element.attrib
        assert "style" not in given and not [name for name in given if name.startswith("on")], f"inline: {given}"
        for reference in ("aria-labelledby", "aria-describedby", "for"):
            assert set(given.get(reference, "").split()) <= set(ids), f"{reference}={given.get(reference)} names nothing"
    labelled = {label.attrib["for"] for label in html.root.iter("label") if "for" in label.attrib}
    inside = {id(field) for label in html.root.iter("label") for field in label.iter() if field.tag in NAMED}
    for field in (element for element in html.root.iter() if element.tag in NAMED and element.attrib.get("type") != "hidden"):
        named = "aria-label" in field.attrib or field.attrib.get("id") in labelled or id(field) in inside
        assert named, f"a field without a name: {field.attrib}"
    if not fragment:
        assert html.root.attrib["lang"] == "en" and len(list(html.root.iter("h1"))) == len(list(html.root.iter("main"))) == 1
        assert next(html.root.iter("title")).text
        assert all(address.startswith("/dashboard/static/") for address in html.resources), "nothing from elsewhere"
        assert not any(html.scripts), "no script within the page"
    return html
