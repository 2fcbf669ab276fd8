"""The API's own description: every example in it is one that the code takes or gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from app.errors import CODES, as_markdown
from app.jobs.schemas import JobView
from app.main import create_app
from app.settings import Settings
from app.spec import JobRequest
from tests.conftest import Service


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return create_app(Settings(data_dir=tmp_path_factory.mktemp("openapi"))).openapi()


def _operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{verb} {path}", operation) for path, verbs in document["paths"].items() for verb, operation in verbs.items()]


def test_the_contract_is_all_there(document: dict[str, Any]) -> None:
    assert {name for name, _ in _operations(document)} >= {
        "post /jobs", "get /jobs", "get /jobs/{job_id}", "post /jobs/{job_id}/cancel", "delete /jobs/{job_id}",
        "get /jobs/{job_id}/events", "get /jobs/{job_id}/metrics", "get /jobs/{job_id}/artifacts",
        "get /jobs/{job_id}/artifacts/{name}", "get /jobs/{job_id}/model", "post /source-models", "get /source-models",
        "get /source-models/{model_id}", "delete /source-models/{model_id}", "post /datasets", "get /datasets",
        "get /datasets/{dataset_id}", "delete /datasets/{dataset_id}", "get /healthz", "get /readyz",
        "get /metrics",
    }  # fmt: skip


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                place: Any = document
                for part in node["$ref"].removeprefix("#/").split("/"):
                    place = place[part]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)


def test_the_request_examples_are_requests(document: dict[str, Any]) -> None:
    content = document["paths"]["/jobs"]["post"]["requestBody"]["content"]
    for example in content["application/json"]["examples"].values():
        JobRequest.model_validate(example["value"])
    for example in content["multipart/form-data"]["examples"].values():
        JobRequest.model_validate(example["value"]["request"])


def test_the_response_examples_are_responses() -> None:
    for example in JobView.model_config["json_schema_extra"]["examples"]:  # type: ignore[index, call-overload, union-attr]
        JobView.model_validate(example)


def test_every_problem_example_is_of_the_table_and_fits_its_schema(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["ProblemDocument"]
    seen = set()
    for name, operation in _operations(document):
        for status, response in operation["responses"].items():
            for code, example in response.get("content", {}).get("application/problem+json", {}).get("examples", {}).items():
                jsonschema.validate(example["value"], schema)
                assert CODES[code].status == int(status), f"{name}: {code} under {status}"
                seen.add(code)
    assert seen >= {"unknown_field", "unsafe_pickle", "reference_outside_roots", "storage_full", "not_found"}


def test_every_refusal_is_a_problem_document(document: dict[str, Any]) -> None:
    for name, operation in _operations(document):
        for status, response in operation["responses"].items():
            assert status < "400" or response["content"].keys() == {"application/problem+json"}, f"{name}: {status}"


def test_real_answers_fit_their_schemas(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    problem = service.client.get("/jobs/job_nothing").json()
    jsonschema.validate(problem, document["components"]["schemas"]["ProblemDocument"])
    page = service.client.get("/docs")
    assert page.status_code == 200 and "https://" not in page.text, "the API's page must work without internet"


def test_the_errors_page_is_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "errors.md"
    assert page.read_text() == as_markdown(), "run `python -m app.errors > docs/errors.md`"
