"""The docs as a site: it is built without a warning, needs no other host, and its reference pages have all that the code has."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from sphinx.util.inventory import InventoryFile

import modalbridge
from app.main import create_app
from app.settings import Settings
from app.spec import JobRequest
from modalbridge.cli.app import app as command


class Loaded(HTMLParser):
    """What a browser fetches for a page by itself, and the text that it shows."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [
            value or "" for name, value in attributes if name in ("src", "srcset", "data") or (tag, name) == ("link", "href")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = {page: Loaded(page).addresses for page in site.rglob("*.html")}
    assert len(pages) > 30 and all("docs" not in page.parts or addresses for page, addresses in pages.items())
    for page, addresses in pages.items():
        assert [address for address in addresses if re.match(r"[a-z]+:|//", address)] == [], page
        assert [address for address in addresses if not (page.parent / re.split("[?#]", address)[0]).exists()] == [], page
    for sheet in site.rglob("*.css"):
        found = re.findall(r"@import[^;]*|url\((?!['\"]?data:)[^)]*", sheet.read_text(encoding="utf-8"))
        assert [address for address in found if "//" in address] == [], sheet


def test_a_link_reads_as_the_title_of_its_page(site: Path) -> None:
    links = re.compile(r'<a class="reference internal"[^>]*>((?:<[^>]+>)*[^<]*)')
    found = {page: links.findall(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert "Operating" in {re.sub("<[^>]+>", "", link) for link in found[site / "docs/data.html"]}
    assert [(page.name, link) for page, shown in found.items() for link in shown if link.endswith(".md")] == []


def test_the_first_page_leads_to_the_landing_page(site: Path) -> None:
    address = re.search(r"url=([^\"]+)", (site / "index.html").read_text(encoding="utf-8"))
    assert address is not None and "Where to begin" in Loaded(site / address[1]).text


def test_every_public_name_of_the_client_has_its_place(site: Path) -> None:
    known = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    named = {name for kind in ("py:class", "py:exception", "py:function") for name in known[kind]}
    assert {f"modalbridge.{name}" for name in modalbridge.__all__ if not name.startswith("_")} - named == set()


def test_every_command_has_its_section(site: Path) -> None:
    text = Loaded(site / "docs/command.html").text
    names = [one.name or one.callback.__name__ for one in command.registered_commands if one.callback]
    names += [group.name for group in command.registered_groups if group.name]
    assert [name for name in names if f"$ modalbridge {name} " not in text] == []


def test_every_field_of_the_request_is_told_with_what_it_does(site: Path) -> None:
    text = Loaded(site / "docs/request.html").text
    schema = JobRequest.model_json_schema()
    for name, model in {**schema["$defs"], "JobRequest": schema}.items():
        for field, told in model["properties"].items():
            assert "description" in told, f"{name}.{field} has no docstring"
            assert field in text and told["description"].split()[0].strip("`") in text, f"{name}.{field}"


def test_every_operation_is_on_the_page_of_the_api(site: Path, tmp_path: Path) -> None:
    document = json.loads((site / "openapi.json").read_text(encoding="utf-8"))
    assert document == create_app(Settings(data_dir=tmp_path)).openapi()
    text = Loaded(site / "docs/api.html").text
    operations = [f"{verb.upper()} {path}\n" for path, verbs in document["paths"].items() for verb in verbs]
    assert [operation for operation in operations if operation not in text] == []
