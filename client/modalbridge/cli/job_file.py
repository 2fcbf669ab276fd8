"""A job file as a request: JSON always, YAML where PyYAML is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modalbridge.cli.exits import UsageError

YAML_ENDINGS = (".yaml", ".yml")


def read(path: Path) -> dict[str, Any]:
    """Raises UsageError, OSError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    found = _yaml(path, text) if path.suffix.lower() in YAML_ENDINGS else _json(path, text)
    try:
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError) as error:  # 1e999, which is read as infinity; a YAML alias of what holds it
        raise UsageError(f"{path} holds what JSON cannot: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds a {type(found).__name__}, not one object with the members of a request")
    # For editors: where the schema is that `modalbridge schema` prints.
    return {name: value for name, value in found.items() if name != "$schema"}


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        hint = "" if path.suffix.lower() == ".json" else f"; YAML is told by its ending: {' or '.join(YAML_ENDINGS)}"
        raise UsageError(f"{path} is not JSON: {error}{hint}") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON has")


def _yaml(path: Path, text: str) -> Any:
    try:
        from modalbridge.cli import yaml_file  # only where a YAML file is given: PyYAML may not be there
    except ModuleNotFoundError as error:
        raise UsageError(f"{path} is YAML, which takes PyYAML: pip install pyyaml, or write the file as JSON") from error
    try:
        return yaml_file.parse(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from error
