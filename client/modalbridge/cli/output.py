"""What is printed: what was asked for to stdout, everything else to stderr."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text


def say(message: str) -> None:
    """A message, for people."""
    typer.echo(safe(message), err=True)


def print_line(line: str) -> None:
    typer.echo(safe(line))


def print_json(document: Any) -> None:
    """One document a line; escaped is what would move a terminal's cursor, and where the charset may lack a character all but ASCII."""
    utf_8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    text = json.dumps(document, ensure_ascii=not utf_8, allow_nan=False)
    typer.echo("".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text))


def print_rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table to a terminal; lines of cells between tabs, without headings, to anything else."""
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("\t".join(_cell(one) for one in row))
        return
    table = Table(*headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(_cell(one)) for one in row), style=None)
    Console().print(table)


def safe(text: str) -> str:
    """Without what would move a terminal's cursor or change its title: names and messages come from others."""
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)


def _cell(text: str) -> str:
    """Without what would make another row, too."""
    return safe(text).replace("\n", "\N{REPLACEMENT CHARACTER}")


def moment(value: datetime | None) -> str:
    """In the local time zone."""
    return "-" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """1 d 2 h, 3 h 4 min, 5 min 6 s, 7 s."""
    whole = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (large, size), (small, below) in pairwise(units):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // below} {small}"
    return f"{whole} s"
