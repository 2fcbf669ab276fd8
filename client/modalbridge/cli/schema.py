"""modalbridge schema: what a job file may hold, for an editor."""

from __future__ import annotations

import json
from typing import Any

from modalbridge.cli.exits import reported
from modalbridge.cli.options import DEFAULT_URL, AsJson, Url, connect
from modalbridge.cli.output import print_json
from modalbridge.errors import UnexpectedAnswer

PREFIX = "#/components/schemas/"
REQUEST = "JobRequest"


@reported
def schema(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Print the JSON schema of a job file, as this service has it. With --json on one line."""
    with connect(url) as client:
        found = of_request(client.openapi())
    print_json(found) if as_json else print(json.dumps(found, indent=2, ensure_ascii=False))


def of_request(openapi: dict[str, Any]) -> dict[str, Any]:
    """The schema of the request, with all that it refers to and nothing else. Raises UnexpectedAnswer."""
    known = openapi.get("components", {}).get("schemas", {})
    needed: dict[str, Any] = {}
    missing = [REQUEST]
    while missing:
        name = missing.pop()
        if name not in known:
            raise UnexpectedAnswer(f"the service's OpenAPI document has no schema {name!r}")
        needed[name] = _relocated(known[name])
        missing += [other for other in _references(known[name]) if other not in needed]
    request = needed.pop(REQUEST)
    # An editor is told by this member where the schema is; `submit` leaves it out.
    request.setdefault("properties", {})["$schema"] = {"type": "string"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **request, "$defs": dict(sorted(needed.items()))}


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = node.get("$ref")
        found = [own.removeprefix(PREFIX)] if isinstance(own, str) and own.startswith(PREFIX) else []
        return found + [name for value in node.values() for name in _references(value)]
    return [name for value in node for name in _references(value)] if isinstance(node, list) else []


def _relocated(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            name: f"#/$defs/{value.removeprefix(PREFIX)}" if name == "$ref" and isinstance(value, str) else _relocated(value)
            for name, value in node.items()
        }
    return [_relocated(value) for value in node] if isinstance(node, list) else node
