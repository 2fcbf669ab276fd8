"""Two jobs side by side."""

from __future__ import annotations

import re
from typing import Any

from app.dashboard import aligned, pictures
from app.dashboard.compare import differences
from tests.conftest import Service
from tests.dashboard import seeding
from tests.dashboard.html import SVG, Html, checked
from tests.dashboard.seeding import Jobs

Shown = tuple[Service, Jobs]


def compared(service: Service, *jobs: str, status: int = 200) -> Html:
    answer = service.client.get("/dashboard/compare", params={"job": jobs})
    assert answer.status_code == status
    return checked(answer)


def test_what_differs_and_what_came_of_it(shown: Shown) -> None:
    service, jobs = shown
    page = compared(service, jobs.succeeded, jobs.doubtful)
    assert re.search(r"settings\.transfer\.epochs\s*15\s*3", page.text)
    assert "settings.transfer.batch_size" not in page.text, "it is the same"
    assert re.search(r"Accuracy 44\.3 % 75\.3 % – –", page.text)
    assert re.search(r"Verdict Deploy Look closer", page.text)
    assert [figure["data-series"] for figure in page.all("figure") if figure["data-series"]] == [
        "bridging/L_D", "bridging/L_rec", "transferring/L_KL",
    ]  # fmt: skip


def test_pictures_of_the_same_images_are_beside_each_other(shown: Shown) -> None:
    service, jobs = shown
    page = compared(service, jobs.succeeded, jobs.doubtful)
    labels = [svg["aria-label"] for svg in page.all(SVG + "svg") if svg.get("role") == "img"]
    assert labels == [
        f"{seeding.HOSTILE}: {words}"
        for kind in ("target", "evaluation", "pair")
        for words in (*("Sensor", "Translation, first job", "Translation, second job"), *(["RGB"] if kind == "pair" else []))
    ]
    of = [image["href"].split("/")[2] for image in page.all(SVG + "image")]
    assert of[:3] == [jobs.succeeded, jobs.succeeded, jobs.doubtful]
    assert re.search(r"Image Source model as it is\s+Adapted model, first job Adapted model, second job", page.text)
    assert re.search(r"Target images.*mug 65 % lamp 65 %.*Evaluation set", page.text)


def test_without_common_pictures_it_says_why(shown: Shown) -> None:
    service, jobs = shown
    page = compared(service, jobs.succeeded, jobs.failed)
    assert "The second job has none to compare. A job has its pictures once it has succeeded." in page.text
    strip = pictures.Strip(64, 192, 192, [pictures.Group("target", ["sensor"], ["adapted"], [row("a.png")])])
    other = pictures.Strip(64, 192, 192, [pictures.Group("target", ["sensor"], ["adapted"], [row("b.png")])])
    here, there = asked(uri="file:///a"), asked(uri="file:///b")
    assert "no image in common" in str(aligned.of_two([strip, other], [here, here]))
    assert "no image in common" in str(aligned.of_two([strip, strip], [here, there])), "a name alone tells nothing"


def asked(source_model: str = "model_1", **target: Any) -> dict[str, Any]:
    return {"source_model": {"id": source_model}, "data": {"target": target}}


def row(name: str, said: str = "mug", *tiles: str) -> pictures.Row:
    answers = {"source_only": {"class": "box", "confidence": 0.5}, "adapted": {"class": said, "confidence": 0.5}}
    spots = dict.fromkeys(tiles or ("sensor",), (0, 0))
    return pictures.Row.model_validate({"kind": "target", "name": name, "truth": None, "answers": answers, "tiles": spots})


def test_what_is_the_same_for_both_is_one_column() -> None:
    def strip(*rows: pictures.Row) -> pictures.Strip:
        return pictures.Strip(64, 192, 192, [pictures.Group("target", [], [], list(rows))])

    both = [
        strip(row("c"), row("a", "mug", "sensor", "translation"), row("b")),
        strip(row("a", "lamp"), row("b"), row("d")),
    ]
    here = asked(uri="file:///a", scaling=None)
    (group,) = aligned.of_two(both, [here, here])
    assert [[one.name for one in pair] for pair in group.rows] == [["a", "a"], ["b", "b"]]
    assert [(one.name, one.which) for one in group.tiles] == [("sensor", None), ("translation", 0)]
    assert [(one.name, one.which) for one in group.answers] == [("source_only", None), ("adapted", 0), ("adapted", 1)]
    for other in (asked(uri="file:///a", scaling={"kind": "millimetres"}), asked("model_2", uri="file:///a", scaling=None)):
        (group,) = aligned.of_two(both, [here, other])
        assert [(one.name, one.which) for one in group.tiles] == [("sensor", 0), ("sensor", 1), ("translation", 0)], (
            "read otherwise"
        )


def test_a_job_without_a_result_can_be_compared(shown: Shown) -> None:
    service, jobs = shown
    page = compared(service, jobs.queued, jobs.failed)
    assert "Neither has one" in page.text
    assert "Nothing: both were asked for the same" in compared(service, jobs.queued, jobs.queued).text


def test_any_other_number_than_two_is_a_choice(shown: Shown) -> None:
    service, jobs = shown
    assert len(compared(service).all("option")) == 12
    assert "1 job is ticked: choose two" in compared(service, jobs.queued).text
    assert "3 jobs are ticked" in compared(service, jobs.queued, jobs.failed, jobs.running).text
    compared(service, jobs.queued, "job_nothing", status=404)


def test_without_jobs_it_says_what_to_do(service: Service) -> None:
    assert "No jobs yet" in compared(service).text


def test_what_one_alone_has_is_told_with_a_dash() -> None:
    assert differences({"a": "1", "b": "2"}, {"b": "3", "c": "4"}) == [("a", "1", "–"), ("b", "2", "3"), ("c", "–", "4")]
