"""What holds for the package as a whole."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import subprocess
import sys
import tomllib
from typing import Any

import pytest

import modalbridge
from app.errors import CODES
from app.spec import JobRequest
from conftest import CLIENT
from modalbridge import errors, requests, results
from modalbridge.cli.exits import Exit

RAW_JOB: dict[str, Any] = {
    "id": "job_1", "name": None, "labels": {}, "status": "running", "phase": "bridging", "progress": None, "method": "tgmb",
    "source_model_id": "model_1", "request": {}, "result": None, "error": None, "attempt": 1, "lost_attempts": 0,
    "created_at": "2026-11-24T14:28:00Z", "queued_at": "2026-11-24T14:28:00Z", "started_at": None, "finished_at": None,
    "updated_at": "2026-11-24T14:28:40.123456+00:00", "links": {},
}  # fmt: skip
PAIRS = [
    (modalbridge.Client, modalbridge.AsyncClient),
    (modalbridge.Jobs, modalbridge.AsyncJobs),
    (modalbridge.Job, modalbridge.AsyncJob),
    (modalbridge.SourceModels, modalbridge.AsyncSourceModels),
    (modalbridge.Datasets, modalbridge.AsyncDatasets),
    (modalbridge.Webhooks, modalbridge.AsyncWebhooks),
]


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_both_clients_have_the_same_calls_with_the_same_words(blocking: type, asynchronous: type) -> None:
    def calls(kind: type) -> dict[str, tuple[Any, ...]]:
        methods = {name.replace("aclose", "close"): one for name, one in vars(kind).items() if inspect.isfunction(one)}
        return {
            name: ([(one.name, one.default, one.kind) for one in inspect.signature(method).parameters.values()], method.__doc__)
            for name, method in methods.items()
            if not name.startswith("_")
        }

    assert calls(blocking) == calls(asynchronous) != {}


def test_every_code_of_the_service_has_its_class() -> None:
    by_status = {404: errors.NotFound, 409: errors.Conflict}
    for code, kind in CODES.items():
        made = errors.of_document({"code": code, "title": kind.title, "status": kind.status, "detail": "d"}, kind.status)
        expected = by_status.get(kind.status, errors.ServiceFault if kind.status >= 500 else errors.Invalid)
        assert isinstance(made, expected), code
        if kind.status == 409:
            assert type(made) is not errors.Conflict, f"{code} has no class of its own"
    assert set(errors.BY_CODE) <= set(CODES)


def test_a_code_of_the_future_is_the_class_of_its_status() -> None:
    kinds = {404: errors.NotFound, 409: errors.Conflict, 422: errors.Invalid, 500: errors.ServiceFault}
    assert {status: type(errors.of_document({"code": "new", "status": status}, 0)) for status in kinds} == kinds


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.ModalBridgeError):
            assert name in errors.__doc__ and getattr(modalbridge, name) is kind


def test_what_a_newer_service_adds_breaks_nothing() -> None:
    progress = {"phase": "bridging", "step": 1, "of": 2, "fraction": 0.1, "gpu": "new"}
    raw = RAW_JOB | {"status": "paused", "progress": progress, "carbon_g": 12}
    job = results.JobState.read(raw)
    assert (job.status, job.finished, job.progress.of, job.raw["carbon_g"]) == ("paused", False, 2, 12)
    assert results.JobState.read(RAW_JOB | {"status": "archived", "finished_at": "2026-11-24T15:00:00Z"}).finished


@pytest.mark.parametrize(
    "broken", [{"created_at": "yesterday"}, {"created_at": 3}, {"progress": {"phase": "bridging"}}, {"progress": 1}]
)
def test_what_cannot_be_read_is_told(broken: dict[str, Any]) -> None:
    with pytest.raises(errors.UnexpectedAnswer):
        results.JobState.read(RAW_JOB | broken)


def test_results_are_values() -> None:
    job = results.JobState.read(RAW_JOB)
    assert job == results.JobState.read(RAW_JOB | {"links": {"self": "x"}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.status = "succeeded"  # type: ignore[misc]


def test_the_typed_request_has_the_services_names() -> None:
    schema = JobRequest.model_json_schema()["$defs"] | {"JobRequest": JobRequest.model_json_schema()}
    theirs = {
        requests.Input: "InputSpec", requests.SourceModelDescription: "SourceModelDescription", requests.Scaling: "Scaling", requests.StoredSourceModel: "SourceModelId",
        requests.Images: "ImagesReference", requests.Target: "TargetReference", requests.Pairs: "PairsReference",
        requests.Data: "DataSpec", requests.JobRequest: "JobRequest", requests.Export: "Export",
    }  # fmt: skip
    for ours, name in theirs.items():
        assert {one.name for one in dataclasses.fields(ours)} == set(schema[name]["properties"]), name


def test_it_imports_httpx_typer_and_rich_and_nothing_else() -> None:
    declared = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    assert {one.partition(">")[0] for one in declared["dependencies"]} == {"httpx", "typer", "rich"}
    imported: dict[str, set[str]] = {}
    for path in (CLIENT / "modalbridge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                imported.setdefault(name.partition(".")[0], set()).add(path.name)
    foreign = {name: where for name, where in imported.items() if name not in sys.stdlib_module_names}
    assert set(foreign) == {"modalbridge", "httpx", "typer", "rich", "yaml"}
    assert foreign["yaml"] == {"yaml_file.py"}


def test_the_library_loads_without_the_command_and_yaml() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import modalbridge; print({'typer', 'yaml', 'modalbridge.cli'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", code, str(CLIENT)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_exit_codes_are_told_on_the_page_and_in_the_help() -> None:
    from modalbridge.cli.app import app

    page = (CLIENT.parent / "docs/client.md").read_text(encoding="utf-8")
    told = {line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("| `")}
    assert {str(int(code)) for code in Exit} <= told
    for code in Exit:
        assert code is Exit.CUT_OFF or f"{int(code)} " in app.info.epilog
