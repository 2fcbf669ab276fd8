"""Two jobs side by side."""

from __future__ import annotations

import re

from app.dashboard.compare import differences
from tests.conftest import Service
from tests.dashboard.html import Html, checked
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
