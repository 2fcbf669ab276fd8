"""The site and its drawings in a real browser."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from playwright.sync_api import Page

from tests.browser import grave

FIGURES = sorted((Path(__file__).parents[2] / "docs/figures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
Open = Callable[..., Page]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 800}
MISPLACED = """
() => {
  const [ground, ...boxes] = [...document.querySelectorAll("rect, text")].map((one) => [one, one.getBBox()]);
  const texts = boxes.filter(([one]) => one.tagName === "text");
  const inside = (a, b) => a.x >= b.x && a.y >= b.y && a.x + a.width <= b.x + b.width && a.y + a.height <= b.y + b.height;
  const apart = (a, b) => a.x >= b.x + b.width || b.x >= a.x + a.width || a.y >= b.y + b.height || b.y >= a.y + a.height;
  const found = [];
  for (const [one, box] of texts) {
    if (!inside(box, ground[1])) found.push(`${one.textContent}: outside`);
    for (const [other, there] of boxes) {
      if (other === one || apart(box, there) || (other.tagName === "rect" && inside(box, there))) continue;
      found.push(`${one.textContent}: on ${other.textContent || "an edge"}`);
    }
  }
  return found;
}
"""


@pytest.mark.browser
@pytest.mark.parametrize("name", ["index", "quickstart", "method", "api", "python"])
def test_a_page_can_be_used_by_all(address: str, open_page: Open, name: str) -> None:
    for scheme, viewport in (("light", WIDE), ("dark", PHONE)):
        page = open_page(f"{address}/docs/{name}.html", color_scheme=scheme, viewport=viewport)
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], "it scrolls to the side"
        assert grave(page) == [], scheme


@pytest.mark.browser
@pytest.mark.parametrize("drawing", FIGURES, ids=[path.name for path in FIGURES])
def test_no_word_of_a_drawing_is_out_of_its_place(open_page: Open, drawing: Path) -> None:
    assert open_page(drawing.as_uri()).evaluate(MISPLACED) == []


@pytest.mark.browser
def test_a_drawing_follows_the_pages_switch_between_light_and_dark(address: str, open_page: Open) -> None:
    page = open_page(f"{address}/docs/method.html", color_scheme="light", viewport=WIDE)
    grounds = []
    for theme in ("light", "dark"):
        page.evaluate("theme => document.body.dataset.theme = theme", theme)
        with Image.open(io.BytesIO(page.locator("img[src*=bridging]").screenshot())) as seen:
            grounds.append(seen.convert("RGB").getpixel((10, 100)))
    assert grounds == [(0xFF, 0xFF, 0xFF), (0x15, 0x19, 0x1F)]


@pytest.mark.parametrize("drawing", FIGURES, ids=[path.name for path in FIGURES])
def test_a_drawing_is_told_in_words_and_loads_nothing(drawing: Path) -> None:
    root = ElementTree.parse(drawing).getroot()
    for attribute, tag in (("aria-labelledby", "title"), ("aria-describedby", "desc")):
        (said,) = (one for one in root.iter(SVG + tag) if one.get("id") == root.get(attribute))
        assert said.text
    assert root.get("role") == "img"
    assert {one.tag.removeprefix(SVG) for one in root.iter()} <= {
        "svg", "title", "desc", "style", "defs", "marker", "path", "rect", "text", "tspan",
    }  # fmt: skip
    source = drawing.read_text(encoding="utf-8").replace(SVG.strip("{}"), "")
    assert "@import" not in source and source.count("url(") == source.count("url(#") and "//" not in source
