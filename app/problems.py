"""Where a Problem becomes an RFC 9457 document, and a validation error a Problem: the one place for both."""

from __future__ import annotations

import codecs
import difflib
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar, Union

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json
from sqlalchemy.exc import InterfaceError, OperationalError
from starlette.exceptions import HTTPException

from app.blobs import BlobsAwayError
from app.errors import CODES, Problem, few
from app.spec import LINE

MEDIA_TYPE = "application/problem+json"
log = structlog.get_logger()
M = TypeVar("M", bound=BaseModel)
MOST_ERRORS = 20
"""That one answer lists: a body of a megabyte can hold very many, and each costs a search for the nearest known name."""
MOST_NAMES = 2000
"""In a body, of which none that is valid has so many: pydantic makes an error of each that is unknown, and no other thread runs while
it does."""
_TEXT = re.compile(rb'"(?:[^"\\]++|\\(?:.|\Z))*+(?:"(\s*+:)?|\Z)', re.DOTALL)
"""A text of JSON, to the end of the body where it has none, and the colon that makes it a name."""
Place = tuple["Place", str | int] | None
"""In a document: where the one that holds it lies, and its name or number there."""


class ProblemDocument(BaseModel):
    """RFC 9457, `application/problem+json`."""

    type: str = Field(examples=["urn:modalbridge:problem:unknown_field"])
    title: str
    status: int
    code: str = Field(description="Stable: write programs against it. docs/errors.md lists them all.")
    detail: str = Field(description="What was found, with names and numbers.")
    pointer: str | None = Field(None, description="JSON pointer to the field that caused it.")
    remedy: str = Field(description="What to do.")
    request_id: str | None = None


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these codes, an example each."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        kind = CODES[code]
        response = responses.setdefault(kind.status, {"description": "", "content": {MEDIA_TYPE: {"examples": {}}}})
        response["description"] = "; ".join(filter(None, [response["description"], kind.title]))
        response["content"][MEDIA_TYPE]["schema"] = {"$ref": "#/components/schemas/ProblemDocument"}
        response["content"][MEDIA_TYPE]["examples"][code] = {"summary": kind.title, "value": Problem(code, "…").document()}
    return responses


def parse(model: type[M], raw: bytes, base: str = "") -> M:
    """A JSON body or part as a model. Raises Problem malformed_json, unknown_field, invalid_request; with several
    faults, `errors` lists the first of them, `more_errors` says how many more there are, and the first one speaks. A large body
    takes a while: not to be called where an event loop runs."""
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("malformed_json", f"not UTF-8 at byte {error.start}") from error
    if sum(map(bool, _TEXT.findall(raw))) > MOST_NAMES:
        raise Problem("invalid_request", f"a body with more than {MOST_NAMES} names", pointer=base or None)
    if b"\\u0000" in raw and (pointer := _null_character(raw, base)) is not None:
        raise Problem("invalid_request", "a text holds a null character", pointer=pointer)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False), model, base) from error


def _null_character(raw: bytes, base: str) -> str | None:
    """The pointer to a text that holds one, or to the object that has one in a name."""
    try:
        stack: list[tuple[Place, Any]] = [(None, from_json(raw))]
    except ValueError:  # said where the model is made of it
        return None
    while stack:
        place, here = stack.pop()
        if isinstance(here, dict):
            if any("\0" in name for name in here):
                return _pointer(base, _parts(place))
            stack.extend(((place, name), value) for name, value in here.items())
        elif isinstance(here, list):
            stack.extend(((place, number), value) for number, value in enumerate(here) if isinstance(value, str | list | dict))
        elif isinstance(here, str) and "\0" in here:
            return _pointer(base, _parts(place))
    return None


def _parts(place: Place) -> list[str | int]:
    parts: list[str | int] = []
    while place is not None:
        place, part = place
        parts.append(part)
    return parts[::-1]


def in_one_line(text: str | None, pointer: str) -> None:
    """Of a name or a label's value that is new. Raises Problem invalid_request."""
    if text is not None and not re.fullmatch(LINE, text):
        raise Problem("invalid_request", f"{text!r:.100} holds a line break or another control character", pointer=pointer)


def from_validation(errors: Sequence[Any], model: type[BaseModel] | None, base: str = "") -> Problem:
    """pydantic's error list as one Problem."""
    if errors[0]["type"] == "json_invalid":
        return Problem("malformed_json", errors[0]["msg"])
    found = [_one(error, model, base) for error in errors[:MOST_ERRORS]]
    first = found[0]
    rest: dict[str, Any] = {}
    if len(found) > 1:
        rest["errors"] = [{"code": p.code, "pointer": p.pointer, "detail": p.detail} for p in found]
    if len(errors) > len(found):
        rest["more_errors"] = len(errors) - len(found)
    return Problem(first.code, first.detail, pointer=first.pointer, **rest)


def _one(error: Any, model: type[BaseModel] | None, base: str) -> Problem:
    of_a_name = error["loc"][-1:] == ("[key]",) and error["type"] != "extra_forbidden"  # pydantic's mark of an object's name
    known, parts = _walk(model, error["loc"][:-1] if of_a_name else error["loc"])
    pointer = (error.get("ctx") or {}).get("pointer") or _pointer(base, parts)
    if error["type"] == "extra_forbidden":
        return _unknown(str(parts[-1]), known, pointer)
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f"; given: {given!r:.100}" if isinstance(given, str | int | float | bool) else ""
    return Problem("invalid_request", message + shown, pointer=pointer)


def _unknown(name: str, known: list[str], pointer: str) -> Problem:
    near = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.5)
    hint = f"the nearest known one is {near[0]!r}" if near else f"known here: {few(sorted(known), 20) or 'none'}"
    return Problem("unknown_field", f"{name[:100]!r} is not known here; {hint}", pointer=pointer)


def _pointer(base: str, parts: Sequence[str | int]) -> str:
    return base + "".join(f"/{_escaped(part)}" for part in parts)


def _escaped(part: object) -> str:
    return str(part)[:200].replace("~", "~0").replace("/", "~1")


def _walk(model: type[BaseModel] | None, location: tuple[int | str, ...]) -> tuple[list[str], list[int | str]]:
    """The field names that the last part's place knows, and the location without pydantic's union tags."""
    here: Any = model
    known: list[str] = []
    parts: list[int | str] = []
    for part in location:
        options = _models(here)
        if len(options) > 1 and (tagged := [one for one in options if one.__name__ == part]):
            here = tagged[0]  # a union's tag, not a part of the client's document
            continue
        known = [name for one in options for name in one.model_fields]
        here = next((one.model_fields[str(part)].annotation for one in options if part in one.model_fields), None)
        parts.append(part)
    return known, parts


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _models(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [model for option in typing.get_args(annotation) for model in _models(option)]
    return []


async def no_null_characters(request: Request) -> None:
    """PostgreSQL cannot take one in a text, and nothing of ours is called by one: no query is asked about it."""
    if "\0" in request.url.path:
        raise Problem("not_found", "the address holds a null character")
    if any("\0" in value for pair in request.query_params.multi_items() for value in pair):
        raise Problem("invalid_request", "a query parameter holds a null character")


async def no_unknown_parameters(request: Request) -> None:
    """A filter that was misspelt would be one that is not there: the answer would be all there is."""
    known = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            raise _unknown(name, known, f"/{_escaped(name)}")


def respond(request: Request, problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """As a document; or as the route's own way of showing one has it, which a page leaves in `request.state.show_problem`."""
    document = problem.document() | {"instance": request.url.path, "request_id": getattr(request.state, "request_id", None)}
    if (show := getattr(request.state, "show_problem", None)) is not None:
        return show(request, document, headers)
    return JSONResponse(document, status_code=problem.kind.status, media_type=MEDIA_TYPE, headers=headers)


def install(app: FastAPI) -> None:
    """Makes every error of the app a problem document."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> Response:
        unsatisfiable = {"Content-Range": f"bytes */{error.context['size']}"} if error.code == "range_not_satisfiable" else None
        return respond(request, error, unsatisfiable)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        # Of query, path and header parameters; bodies are parsed by parse(). The location starts with which of them.
        errors = [{**one, "loc": one["loc"][1:] or one["loc"]} for one in error.errors()]
        return respond(request, from_validation(errors, None))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return respond(request, Problem(code, detail), dict(error.headers or {}))

    async def _database(request: Request, error: Exception) -> Response:
        log.error("database error", request_id=request.state.request_id, error=repr(error))
        if "disk is full" in str(error) or "No space left" in str(error):
            return respond(request, Problem("storage_full", "no space is left for the database"))
        return respond(request, Problem("database_unavailable", "the database did not answer"), {"Retry-After": "2"})

    app.add_exception_handler(OperationalError, _database)
    app.add_exception_handler(InterfaceError, _database)

    @app.exception_handler(BlobsAwayError)
    async def _blobs(request: Request, error: BlobsAwayError) -> Response:
        log.error("blob store error", request_id=request.state.request_id, error=str(error))
        return respond(request, Problem("blobs_unavailable", "the blob store did not answer"), {"Retry-After": "5"})

    @app.exception_handler(Exception)
    async def _internal(request: Request, error: Exception) -> Response:
        log.error("unexpected error", request_id=request.state.request_id, exc_info=error)
        return respond(request, Problem("internal", f"{type(error).__name__}; see the log under the request_id"))
