"""What both clients say to httpx, and what its errors are here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import httpx

from modalbridge.errors import ConnectionFailed, ModalBridgeError, Timeout, UnexpectedAnswer
from modalbridge.steps import Request

try:
    VERSION = version("modalbridge-client")
except PackageNotFoundError:  # run from its source, not installed
    VERSION = "unknown"


def options(base_url: str, timeout: float, headers: Mapping[str, str] | None) -> dict[str, Any]:
    """Of httpx.Client and httpx.AsyncClient. Raises ValueError on what is no http(s) URL."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{base_url!r} is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{base_url!r} is not a URL of the service, such as http://127.0.0.1:8000")
    return {
        "base_url": url,
        "timeout": timeout,
        "headers": {"User-Agent": f"modalbridge-client/{VERSION}", "Accept": "application/json"} | dict(headers or {}),
    }


@contextmanager
def arguments(request: Request, timeout: float) -> Iterator[dict[str, Any]]:
    """Of httpx's request(); a file to upload is open in the meantime. Raises OSError."""
    made: dict[str, Any] = {
        "method": request.method,
        "url": request.path,
        "params": request.params,
        "headers": request.headers,
        "timeout": httpx.Timeout(timeout, read=timeout + request.held_s),
    }
    # ASCII: half a character, as a file's name of another encoding has, is then for the service to refuse.
    document = json.dumps(request.json, allow_nan=False).encode()
    if request.upload is None:
        if request.json is not None:
            made |= {"content": document, "headers": {**request.headers, "Content-Type": "application/json"}}
        yield made
        return
    upload = request.upload
    with upload.path.open("rb") as file:
        name = upload.path.name.encode("utf-8", "replace").decode()
        yield made | {"files": {upload.json_part: (None, document, "application/json"), upload.file_part: (name, file)}}


@contextmanager
def told() -> Iterator[None]:
    """httpx's errors as ours."""
    try:
        yield
    except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise ConnectionFailed(f"{_address(error)} does not take the connection in time") from error
    except httpx.TimeoutException as error:
        raise Timeout(f"{_address(error)} did not answer in time") from error
    except (httpx.TooManyRedirects, httpx.DecodingError) as error:
        raise UnexpectedAnswer(f"{_address(error)}: {error}") from error
    except httpx.HTTPError as error:
        raise ConnectionFailed(f"{_address(error)}: {error or type(error).__name__}") from error


def _address(error: httpx.HTTPError) -> str:
    return f"{error.request.url.scheme}://{error.request.url.netloc.decode('ascii')}"


def unknown(step: object) -> ModalBridgeError:
    return ModalBridgeError(f"a flow has the step {step!r}, which no client knows")
