"""Submitting a job from the form, as a browser sends it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from app.dashboard import form
from app.method_settings import PRESETS, Settings
from app.spec import JobRequest, Method
from tests.app.conftest import safetensors
from tests.conftest import Service, on_sqlite
from tests.dashboard import seeding
from tests.dashboard.html import Html, checked

ADDRESS = "/dashboard/jobs/new"


def filled(data: Path, **changes: str) -> dict[str, str]:
    return form.defaults() | {
        "name": "from the form", "labels": "team:robots\nsite:b\n", "architecture": "torchvision/resnet18", "classes": "box\nmug",
        "input": '{"size": 32}', "target_uri": f"file://{data}/target", "pairs_uri": f"file://{data}/pairs",
        "evaluation_uri": f"file://{data}/test", "settings": '{"transfer": {"epochs": 3}}', "key": "k1",
    } | changes  # fmt: skip


def sent(service: Service, texts: dict[str, str], file: bytes = b"") -> httpx.Response:
    parts: dict[str, Any] = {name: (None, text.replace("\n", "\r\n")) for name, text in texts.items()}
    parts["source_model"] = ("model.safetensors" if file else "", file, "application/octet-stream")
    return service.client.post(ADDRESS, files=parts, headers={"Sec-Fetch-Site": "same-origin"})


def accepted(service: Service, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 303, checked(answer).text
    return service.client.get(answer.headers["location"].removeprefix("/dashboard")).json()


def refused(answer: httpx.Response, status: int = 422) -> tuple[Html, dict[str, str]]:
    """The form again, and what it says at each field."""
    page = checked(answer)
    assert answer.status_code == status, page.text
    said = {
        element.attrib["id"].removeprefix("fault-"): "".join(element.itertext())
        for element in page.root.iter("p")
        if element.attrib.get("id", "").startswith("fault-")
    }
    marked = {
        given["name"] for tag in ("input", "select", "textarea") for given in page.all(tag) if given.get("aria-invalid") == "true"
    }
    assert marked == set(said)
    return page, said


def test_a_form_with_a_file_makes_the_job_that_the_api_would_make(service: Service, data: Path) -> None:
    job = accepted(service, sent(service, filled(data), safetensors()))
    assert (job["name"], job["labels"], job["status"]) == ("from the form", {"team": "robots", "site": "b"}, "queued")
    assert job["request"]["settings"]["transfer"]["epochs"] == 3
    assert job["request"]["data"]["evaluation"]["uri"] == f"file://{data}/test"
    model = service.client.get(f"/source-models/{job['source_model_id']}").json()
    assert model["description"]["classes"] == ["box", "mug"] and model["description"]["input"]["size"] == 32


def test_a_stored_source_model_is_chosen_and_sent_twice_it_is_one_job(service: Service, data: Path) -> None:
    first = accepted(service, sent(service, filled(data), safetensors()))
    page = checked(service.client.get(ADDRESS))
    assert first["source_model_id"] in [option.get("value") for option in page.all("option")]
    texts = filled(data, model=first["source_model_id"], pairs_uri="", evaluation_uri="", method="shot", key="k2")
    answers = [accepted(service, sent(service, texts)) for _ in range(2)]
    assert answers[0]["id"] == answers[1]["id"] != first["id"]
    assert answers[0]["source_model_id"] == first["source_model_id"]
    assert answers[0]["request"]["data"]["pairs"] is None
    _, said = refused(sent(service, texts | {"key": "k3"}, safetensors()))
    assert "both an id and a file" in said["model"]


def test_what_is_wrong_is_told_at_its_field_and_what_was_typed_is_kept(service: Service, data: Path) -> None:
    wrong = filled(
        data, settings='{"transfer": {"epochs": "many", "epoch": 3}}', seed="-1", labels="team robots", classes="box",
        name="<b>kept & shown</b>",
    )  # fmt: skip
    page, said = refused(sent(service, wrong, safetensors()))
    assert said.keys() == {"labels"}, "what can be read at all comes first"
    page, said = refused(sent(service, wrong | {"labels": ""}, safetensors()))
    assert said.keys() == {"settings", "seed", "classes"}
    assert "/transfer/epoch: 'epoch' is not known here; the nearest known one is 'epochs'" in said["settings"]
    assert "/transfer/epochs: " in said["settings"]
    assert "<b>kept & shown</b>" in [given.get("value") for given in page.all("input")]
    assert service.client.get("/jobs").json()["data"] == []


@on_sqlite
@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"labels": "team:robots\nteam:drones"}, "labels", "'team' has two values"),
        ({"settings": "{"}, "settings", "not JSON"),
        ({"input": '{"size": 8}'}, "input", "/size: "),
        ({"architecture": "resnet"}, "architecture", "pattern"),
        ({"target_uri": ""}, "target_uri", "required"),
        ({"target_uri": "file:///etc"}, "target_uri", "does not lie below a folder that may be read"),
        ({"target_scaling": '{"kind": "range"}'}, "target_scaling", "needs both low and high"),
        ({"pairs_uri": ""}, "pairs_uri", "needs data.pairs"),
        ({"method": "magic"}, "method", "magic"),
        ({"model": "model_unknown"}, "model", "no source model"),
        ({"name": "x" * 201}, "name", "200"),
        ({"rest": "[]"}, "rest", "not a JSON object"),
        ({"rest": "{"}, "rest", "not JSON"),
        ({"rest": '{"seed": 1}'}, "rest", "'seed' has a field of its own"),
        ({"rest": '{"speed": 1}'}, "rest", "'speed' is not known here"),
        ({"rest": '{"further_source_models": [{"id": "model_none"}]}'}, "rest", "no source model 'model_none'"),
    ],
)  # fmt: skip
def test_each_fault_is_at_its_field(service: Service, data: Path, changes: dict[str, str], field: str, words: str) -> None:
    answer = sent(service, filled(data, **changes), b"" if "model" in changes else safetensors())
    _, said = refused(answer, 404 if "model_" in str(changes) else 422)
    assert said.keys() == {field} and words in said[field], said


def test_of_very_many_faults_the_first_are_told_and_the_rest_counted(service: Service, data: Path) -> None:
    page, said = refused(sent(service, filled(data, rest=json.dumps({f"w{number}": 1 for number in range(25)})), safetensors()))
    assert said["rest"].count("is not known here") == 20 and "5 more" in page.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "a\0b"}, "null character"),
        ({"key": "k" * 256}, "at most 255"),
        ({"model": "model_\0"}, "null character"),
        ({"model": "model_\0", "key": "a\0b"}, "null character"),
    ],
)
def test_what_the_database_could_not_take_is_told(service: Service, data: Path, changes: dict[str, str], words: str) -> None:
    page, _ = refused(sent(service, filled(data, **changes), b"" if "model" in changes else safetensors()))
    assert words in page.text
    (key,) = (given["value"] for given in page.all("input") if given.get("name") == "key")
    assert accepted(service, sent(service, filled(data, key=key), safetensors()))["status"] == "queued"


def test_a_file_that_is_missing_or_no_source_model_is_told_at_the_file(service: Service, data: Path) -> None:
    _, said = refused(sent(service, filled(data)))
    assert said.keys() == {"source_model"} and "no multipart part" in said["source_model"]
    page, said = refused(sent(service, filled(data), b"no weights at all"))
    assert "neither safetensors nor a torch state_dict" in page.text


def test_a_form_that_was_sent_and_changed_is_told_and_can_be_sent_again(service: Service, data: Path) -> None:
    accepted(service, sent(service, filled(data), safetensors()))
    page, _ = refused(sent(service, filled(data, seed="1"), safetensors()), 409)
    (key,) = (given["value"] for given in page.all("input") if given.get("name") == "key")
    assert accepted(service, sent(service, filled(data, seed="1", key=key), safetensors()))["request"]["seed"] == 1


def test_a_form_of_another_site_makes_no_job(service: Service, data: Path) -> None:
    parts = {name: (None, text) for name, text in filled(data).items()}
    answer = service.client.post(ADDRESS, files=parts, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert service.client.get("/jobs").json()["data"] == []


def test_a_new_job_like_another_begins_with_its_request(service: Service, data: Path) -> None:
    settings = {"transfer": {"epochs": 7}, "weights": {"kl": 2.0}}
    images = {"target": {"uri": f"file://{data}/target"}, "pairs": {"uri": f"file://{data}/pairs"}, "broken_image_share": 0.5}
    job = seeding.submitted(service, data, settings=settings, seed=5, data=images)
    asked = service.client.get(f"/jobs/{job}").json()["request"]
    page = checked(service.client.get(ADDRESS, params={"like": job}))
    assert job.startswith("job_") and "file below" in page.text
    wanted, faults = form.request_of(form.texts_of(asked))
    assert faults == []
    assert JobRequest.model_validate(wanted) == JobRequest.model_validate(asked)
    assert wanted["settings"] == settings, "defaults are left to be defaults"
    assert service.client.get(ADDRESS, params={"like": "job_nothing"}).status_code == 404


@pytest.mark.parametrize("preset", [None, *PRESETS])
@pytest.mark.parametrize("method", get_args(Method))
def test_a_job_like_another_has_its_settings_whatever_preset_they_came_from(method: str, preset: str | None) -> None:
    """Each setting at the default of its class, which a preset may have otherwise, alone and all at once."""
    usual = Settings().model_dump(mode="json", exclude={"preset"})
    groups = {name: value for name, value in usual.items() if isinstance(value, dict)}
    each = [{group: {name: value}} for group, values in groups.items() for name, value in values.items()]
    for given in ({}, usual, {"precision": "bf16"}, {"weights": {"feat": 0.25}}, *each):
        body = {
            "source_model": {"id": "model_a"}, "method": method, "settings": given | ({"preset": preset} if preset else {}),
            "data": {"target": {"uri": "file:///target"}, "pairs": {"uri": "file:///pairs"}},
        }  # fmt: skip
        asked = JobRequest.model_validate(body)
        again, faults = form.request_of(form.texts_of(asked.model_dump(mode="json")))
        assert faults == []
        assert JobRequest.model_validate(again) == asked, given


@pytest.mark.parametrize(
    "words",
    [
        {"name": "two\nlines"},
        {"name": " indented"},
        {"labels": {"a": "b\nc:d"}},
        {"labels": {"a": "b\na:c"}},
        {"labels": {"a": "b\u2028c"}},
        {"labels": {"a": " b ", "c": "d"}},
        {"labels": {"a": "b:c", "d": ""}},
    ],
)
def test_a_job_like_another_has_its_words_to_the_letter(words: dict[str, Any]) -> None:
    """Also those that a request may hold no more, and a database still has: they are then refused as what they are."""
    body = {"source_model": {"id": "model_a"}, "data": {"target": {"uri": "file:///target"}, "pairs": {"uri": "file:///pairs"}}}
    asked = JobRequest.model_validate(body | words)
    again, faults = form.request_of(form.texts_of(asked.model_dump(mode="json")))
    assert faults == []
    assert JobRequest.model_validate(again) == asked


def test_too_much_text_is_refused(service: Service, data: Path) -> None:
    answer = sent(service, filled(data, settings=" " * 2**20), safetensors())
    assert answer.status_code == 413 and "1048576 bytes" in checked(answer).text
