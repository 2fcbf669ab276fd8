"""What a call is made of. A flow (of several requests, pauses, pieces of a file) is written once, as a generator of these
steps; the client and the asynchronous client perform the same steps, each in its way, and so cannot drift apart.

A flow gets back, for each step, what is said below, or the step's error thrown into it. What it returns is the call's
result; what it emits is what an iterator gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from modalbridge.errors import UnexpectedAnswer

R = TypeVar("R")
Steps = Generator[Any, Any, R]


@dataclass(frozen=True)
class Upload:
    """Multipart: a JSON part and a file, which is opened anew each time it is sent."""

    json_part: str
    file_part: str
    path: Path


@dataclass(frozen=True)
class Request:
    """repeatable: sending it twice does no more than sending it once. held_s: how long the service may hold its answer,
    beyond the client's timeout."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    upload: Upload | None = None
    held_s: float = 0
    repeatable: bool = False


@dataclass(frozen=True)
class Send:
    """-> Answer. Raises ConnectionFailed, Timeout."""

    request: Request


@dataclass(frozen=True)
class Open:
    """-> Answer without a body, of which Read gets the pieces; one that is no success comes whole. Ends the stream before."""

    request: Request


@dataclass(frozen=True)
class Read:
    """-> the next piece of the open stream, b"" at its end. Raises ConnectionFailed, Timeout."""


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Run:
    """-> what the function returns. For what takes long and is no network: reading a large file."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Tell:
    """Calls what the user gave; to the asynchronous client it may be a coroutine function."""

    callback: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Emit:
    """The iterator's next item."""

    item: Any


@dataclass(frozen=True)
class Answer:
    status: int
    headers: httpx.Headers
    body: bytes = b""

    def document(self) -> dict[str, Any]:
        """The JSON object in the body. Raises UnexpectedAnswer."""
        try:
            found = json.loads(self.body)
        except ValueError as error:
            raise UnexpectedAnswer(f"the answer is not JSON, but {self.body[:80]!r}; is the URL that of the service?") from error
        if not isinstance(found, dict):
            raise UnexpectedAnswer(f"the answer is not a JSON object, but {self.body[:80]!r}; is the URL that of the service?")
        return found

    def rows(self) -> tuple[list[dict[str, Any]], str | None]:
        """The items of a page, and the cursor of the next one. Raises UnexpectedAnswer."""
        document = self.document()
        if not isinstance(document.get("data"), list):
            raise UnexpectedAnswer(f"the answer is not a page of a list, but {self.body[:80]!r}; is the URL that of the service?")
        return document["data"], document.get("next")
