"""Pages that are made of the code when the site is built: the request, the HTTP API, the command line.

Each is a directive without content, in whose place comes Markdown made of the OpenAPI document or of the command's own help.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from typer.cli import get_docs_for_click

from app.main import create_app
from app.settings import Settings
from modalbridge.cli.app import app as command

PREFIX = "#/components/schemas/"
PROBLEM = "application/problem+json"
BOUNDS = {
    "minimum": "at least {}", "exclusiveMinimum": "above {}", "maximum": "at most {}", "exclusiveMaximum": "below {}",
    "minLength": "length at least {}", "maxLength": "length at most {}",
    "minItems": "at least {}", "maxItems": "at most {}", "maxProperties": "at most {}",
}  # fmt: skip


@cache
def openapi() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        return create_app(Settings(data_dir=Path(folder))).openapi()


def request() -> str:
    """Every schema that a job request is made of, from the outside in."""
    return "\n\n".join(schema(name) for name in of_request())


def api() -> str:
    """Operations by tag, then the schemas of their answers."""
    tags: dict[str, list[str]] = {}
    answers: list[str] = []
    for path, verbs in openapi()["paths"].items():
        for verb, operation in verbs.items():
            tags.setdefault(operation["tags"][0], []).append(told(f"{verb.upper()} {path}", operation))
            answers += referred(operation)
    parts = [f"## {tag.capitalize()}\n\n" + "\n\n".join(operations) for tag, operations in tags.items()]
    return "\n\n".join(
        [*parts, "## What they take and answer", *(schema(name, "###") for name in within(answers) if name not in of_request())]
    )


def command_line() -> str:
    group = typer.main.get_command(command)
    return get_docs_for_click(obj=group, ctx=typer.Context(group), name="modalbridge", indent=1)


@cache
def of_request() -> list[str]:
    return within(["JobRequest"])


def told(title: str, operation: dict[str, Any]) -> str:
    """An operation: what it takes, an example of it, what it answers."""
    lines = [f"### {operation['summary']}", f"```text\n{title}\n```", operation.get("description", "")]
    for one in operation.get("parameters", []):
        lines.append(member(one["name"], one["schema"], one.get("description", ""), one["required"], f", {one['in']}"))
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        parts = body["schema"].get("properties", {})
        lines.append(f"Body `{kind}`" + (", of these parts:" if parts else f": {shape(body['schema'])}."))
        for name, part in parts.items():
            lines.append(member(name, part, part.get("description", ""), name in body["schema"].get("required", ())))
        lines += [example(name.capitalize(), one["value"]) for name, one in body.get("examples", {}).items()]
    for status, answer in operation["responses"].items():
        content = dict(answer.get("content", {}))
        codes = content.pop(PROBLEM, {}).get("examples", {})
        what = [f"`{kind}`: {shape(body['schema'])}." for kind, body in content.items()]
        if codes:
            what = [f"A problem: {', '.join(f'`{code}`' for code in codes)}."]
        elif answer["description"] != "Successful Response":
            what.insert(0, answer["description"])
        lines.append(f"{status}\n: {' '.join(what) or 'No body.'}")
    return "\n\n".join(line for line in lines if line)


def schema(name: str, level: str = "##") -> str:
    found = openapi()["components"]["schemas"][name]
    lines = [f"{level} {name}", found.get("description", "")]
    if "enum" in found:
        lines.append(f"One of {shape(found)}.")
    for field, one in found.get("properties", {}).items():
        lines.append(member(field, one, one.get("description", ""), field in found.get("required", ())))
    lines += [example("For example", one) for one in found.get("examples", [])]
    return "\n\n".join(line for line in lines if line)


def member(name: str, field: dict[str, Any], description: str, required: bool, where: str = "") -> str:
    """One field or parameter, as an entry of a list of definitions."""
    default = field.get("default")
    told = (
        "required" if required else f"default `{json.dumps(default)}`" if isinstance(default, str | int | float) else "optional"
    )
    text = " ".join(description.split())
    return f"`{name}`\n: _{shape(field)}{where}; {told}_\n\n  {text}" if text else f"`{name}`\n: _{shape(field)}{where}; {told}_"


def shape(field: dict[str, Any]) -> str:
    """A JSON schema as a few words, with links to the schemas that have a section."""
    if "$ref" in field:
        name = field["$ref"].removeprefix(PREFIX)
        if name.startswith("Page_"):
            return f"a [page](#pages) of {shape({'$ref': PREFIX + name.removeprefix('Page_').rstrip('_')})}"
        return f"[{name}]({'request.md' if name in of_request() else ''}#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in field:
            return " or ".join(shape(one) for one in field[several])
    if "const" in field or "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field.get("enum", [field.get("const")]))
    bounds = ", ".join(text.format(f"{field[bound]:,}".replace(",", " ")) for bound, text in BOUNDS.items() if bound in field)
    kind = field.get("format", field.get("type", "anything"))
    if kind == "array":
        inner = field.get("items") or (field["prefixItems"][0] if "prefixItems" in field else {})
        return f"list of {shape(inner)}" + (f" ({bounds})" if bounds else "")
    if kind == "object" and isinstance(values := field.get("additionalProperties"), dict):
        return f"object of {shape(values)}" + (f" ({bounds})" if bounds else "")
    return f"{kind} ({bounds})" if bounds else kind


def example(title: str, value: Any) -> str:
    return f"{title}:\n\n```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```"


def within(names: Iterable[str]) -> list[str]:
    """The schemas of these names and all that they refer to, each once; of a page, what it is a page of."""
    found = list(dict.fromkeys(names))
    for name in found:
        found += [other for other in dict.fromkeys(referred(openapi()["components"]["schemas"][name])) if other not in found]
    return [name for name in found if not name.startswith("Page_")]


def referred(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"].removeprefix(PREFIX)] if isinstance(node.get("$ref"), str) else []
        return own + [name for value in node.values() for name in referred(value)]
    return [name for value in node for name in referred(value)] if isinstance(node, list) else []


class Made(SphinxDirective):
    markdown: Callable[[], str]

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # the code may have changed where the page has not
        return self.parse_text_to_nodes(self.markdown(), allow_section_headings=True)


def add_files(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        (app.outdir / "openapi.json").write_text(json.dumps(openapi(), indent=2), encoding="utf-8")
        (app.outdir / "index.html").write_text(f'<meta http-equiv="refresh" content="0; url={app.config.root_doc}.html">\n')


def setup(app: Sphinx) -> dict[str, bool]:
    for name, markdown in {"job-request": request, "http-api": api, "command-line": command_line}.items():
        app.add_directive(name, type(name, (Made,), {"markdown": staticmethod(markdown)}))
    app.connect("build-finished", add_files)
    return {"parallel_read_safe": True}
