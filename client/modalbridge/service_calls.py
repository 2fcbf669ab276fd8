"""The calls about source models, about datasets, and about the service itself, as flows of steps."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from modalbridge.errors import NotReady, UnexpectedAnswer
from modalbridge.job_calls import each
from modalbridge.requests import SourceModelDescription, as_document
from modalbridge.results import Dataset, Health, SourceModel
from modalbridge.retries import Retries, answered, refusal
from modalbridge.steps import Answer, Request, Send, Steps, Upload

SOURCE_MODELS = "/source-models"
DATASETS = "/datasets"
READYZ_S = 10
"""Database, broker, blob store and worker are asked at the same time and have 5 s; where many ask, an answer may wait for others."""


def _address(model: str | SourceModel) -> str:
    return f"{SOURCE_MODELS}/{quote(model if isinstance(model, str) else model.id, safe='')}"


def upload(retries: Retries, path: str | Path, description: SourceModelDescription | Mapping[str, Any]) -> Steps[SourceModel]:
    # The same bytes with the same description are one source model: sending them twice stores them once.
    parts = Upload("description", "source_model", Path(path))
    post = Request("POST", SOURCE_MODELS, json=as_document(description), upload=parts, held_s=60, repeatable=True)
    answer = yield from answered(post, retries)
    return SourceModel.read(answer.document())


def list_source_models(retries: Retries, page_size: int) -> Steps[None]:
    yield from each(SOURCE_MODELS, SourceModel.read, retries, {}, page_size)


def get_source_model(retries: Retries, model: str | SourceModel) -> Steps[SourceModel]:
    answer = yield from answered(Request("GET", _address(model), repeatable=True), retries)
    return SourceModel.read(answer.document())


def delete_source_model(retries: Retries, model: str | SourceModel) -> Steps[None]:
    yield from answered(Request("DELETE", _address(model)), retries)


def _dataset(dataset: str | Dataset) -> str:
    return f"{DATASETS}/{quote(dataset if isinstance(dataset, str) else dataset.id, safe='')}"


def upload_dataset(retries: Retries, path: str | Path, name: str | None) -> Steps[Dataset]:
    # The same bytes are one dataset. It is read to its end before the answer.
    parts = Upload("description", "dataset", Path(path))
    described = {} if name is None else {"name": name}
    answer = yield from answered(Request("POST", DATASETS, json=described, upload=parts, held_s=600, repeatable=True), retries)
    return Dataset.read(answer.document())


def list_datasets(retries: Retries, page_size: int) -> Steps[None]:
    yield from each(DATASETS, Dataset.read, retries, {}, page_size)


def get_dataset(retries: Retries, dataset: str | Dataset) -> Steps[Dataset]:
    answer = yield from answered(Request("GET", _dataset(dataset), repeatable=True), retries)
    return Dataset.read(answer.document())


def delete_dataset(retries: Retries, dataset: str | Dataset) -> Steps[None]:
    yield from answered(Request("DELETE", _dataset(dataset)), retries)


def alive() -> Steps[None]:
    """Asked once."""
    answer: Answer = yield Send(Request("GET", "/healthz"))
    if answer.status >= 300:
        raise refusal(answer)
    if answer.document().get("status") != "ok":
        raise UnexpectedAnswer(f"/healthz answers {answer.body[:80]!r}; is the URL that of the service?")


def health() -> Steps[Health]:
    """Not being ready is an answer here, not an error. Asked once."""
    answer: Answer = yield Send(Request("GET", "/readyz", held_s=READYZ_S))
    failure = refusal(answer) if answer.status >= 300 else None
    if failure is not None and not isinstance(failure, NotReady):
        raise failure
    document = answer.document()
    checks = document.get("checks")
    if not isinstance(checks, dict):
        raise UnexpectedAnswer(f"/readyz answers {document!r:.200}; is the URL that of the service?")
    return Health(failure is None, checks, _date(answer))


def _date(answer: Answer) -> Any:
    try:
        return parsedate_to_datetime(answer.headers.get("date", ""))
    except ValueError:
        return None


def openapi(retries: Retries) -> Steps[dict[str, Any]]:
    answer = yield from answered(Request("GET", "/openapi.json", repeatable=True), retries)
    return answer.document()
