"""What every command takes, and the client that it makes of it."""

from __future__ import annotations

from typing import Annotated

import typer

from modalbridge.cli.exits import UsageError
from modalbridge.client import Client
from modalbridge.retries import Retries

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option("--url", envvar="MODALBRIDGE_URL", help="Of the service.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout; messages go to stderr.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Of the job: job_...")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most this many.")]


def connect(url: str, timeout: float = 30, retries: Retries = Retries()) -> Client:  # noqa: B008 - frozen
    try:
        return Client(url, timeout, retries=retries)
    except ValueError as error:
        raise UsageError(f"{error}; it is from --url or MODALBRIDGE_URL") from error
