"""docker-compose.yml as data, its variables filled in as Compose fills them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).resolve().parent.parent / "docker-compose.yml"
VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?:(?P<how>:-|:\?)(?P<what>[^}]*))?\})")
"""`$$`, `${NAME}`, `${NAME:-default}`, `${NAME:?what to say}`: what our file uses of Compose's syntax."""
PERIOD = re.compile(r"(?:(\d+)m)?(?:(\d+)s)?")


def read(variables: Mapping[str, str], file: Path = FILE) -> dict[str, Any]:
    """The whole file. Raises ValueError for a variable that must be set and is not."""
    return _filled(yaml.safe_load(file.read_text(encoding="utf-8")), variables)


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(part, variables) for key, part in value.items()}
    if isinstance(value, list):
        return [_filled(part, variables) for part in value]
    return VARIABLE.sub(lambda found: _one(found, variables), value) if isinstance(value, str) else value


def _one(found: re.Match[str], variables: Mapping[str, str]) -> str:
    name, how, what = found["name"], found["how"], found["what"]
    if name is None:
        return "$"
    if value := variables.get(name, ""):
        return value
    if how == ":?":
        raise ValueError(f"{name} is not set: {what}")
    return what or ""


def seconds(period: str) -> int:
    """`90s`, `2m`, `1m30s`. Raises ValueError for anything else."""
    found = PERIOD.fullmatch(period)
    if not period or found is None:
        raise ValueError(f"not a period of minutes and seconds: {period!r}")
    minutes, rest = found.groups(default="0")
    return 60 * int(minutes) + int(rest)
