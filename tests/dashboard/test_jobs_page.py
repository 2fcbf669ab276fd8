"""The page of all jobs and the page of one, over HTTP, without a browser."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from app.dashboard.job import phases
from app.jobs import queries
from app.jobs.states import Status
from app.jobs.table import Job, JobEvent, MlflowExport
from tests.conftest import Service, serving
from tests.dashboard import seeding
from tests.dashboard.html import SVG, Html, checked
from tests.dashboard.seeding import HOSTILE, Jobs

Shown = tuple[Service, Jobs]


def read(service: Service, address: str, status: int = 200, **headers: str) -> Html:
    answer = service.client.get(address, headers=headers)
    page = checked(answer)
    assert answer.status_code == status, page.text
    return page


def listed(page: Html) -> list[str]:
    return [link["href"].rpartition("/")[2] for link in page.all("a") if link.get("id", "").startswith("open-")]


def test_the_root_leads_to_the_jobs(shown: Shown) -> None:
    service, jobs = shown
    answer = service.client.get("/", follow_redirects=True)
    assert answer.url.path == "/dashboard/jobs"
    assert listed(checked(answer)) == [
        jobs.queued, jobs.cancelled, jobs.running, jobs.failed, jobs.doubtful, jobs.succeeded,
    ]  # fmt: skip


def test_filters_are_in_the_address(shown: Shown) -> None:
    service, jobs = shown
    page = read(service, "/dashboard/jobs?status=queued&status=running&label=team:robots&label=")
    assert listed(page) == [jobs.queued, jobs.running]
    assert [box["value"] for box in page.all("input") if "checked" in box] == ["queued", "running"]
    assert [box["value"] for box in page.all("input") if box.get("name") == "label"] == ["team:robots", ""]
    nothing = read(service, "/dashboard/jobs?label=team:drones")
    assert listed(nothing) == [] and "No job fits" in nothing.text
    page = read(service, "/dashboard/jobs?label=robots", 422)
    assert "&#39;robots&#39; is not `key:value`" in page.source or "'robots' is not `key:value`" in page.text
    assert [box.get("aria-invalid") for box in page.all("input") if box.get("name") == "label"] == ["true", "true"]
    page = read(service, "/dashboard/jobs?label=team:robots&label=team:drones", 422)
    assert "has two values" in page.text


def test_pages_of_the_list_have_no_gaps(changed: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.dashboard.jobs.ROWS", 4)
    service, _ = changed
    first = read(service, "/dashboard/jobs?label=team:robots")
    (older,) = (link["href"] for link in first.all("a") if link.get("rel") == "next")
    second = read(service, older)
    everything = service.client.get("/jobs", params={"label": "team:robots"}).json()["data"]
    assert len(listed(first)) == 4
    assert listed(first) + listed(second) == [job["id"] for job in everything]
    assert not [link for link in second.all("a") if link.get("rel") == "next"]


@pytest.mark.parametrize(
    ("told", "shown_as"),
    [
        ({"verdict": []}, "none"),
        ({"verdict": {"deploy": 1}}, "none"),
        ({"verdict": "perfect"}, "none"),
        (seeding.result("deploy", []) | {"accuracy": {model: {"accuracy": 10**400} for model in seeding.MODELS}}, "Deploy"),
    ],
)
def test_a_result_that_is_odd_takes_no_page_down(service: Service, data: Path, told: dict[str, Any], shown_as: str) -> None:
    job_id = seeding.submitted(service, data)
    seeding.publish(service, seeding.claimed(service, job_id), told, report__json=b"{}")
    assert listed(read(service, "/dashboard/jobs")) == [job_id]
    assert f"Verdict: {shown_as}" in read(service, f"/dashboard/jobs/{job_id}").text
    read(service, f"/dashboard/compare?job={job_id}&job={job_id}")


def test_rows_come_again_only_while_a_job_may_change(shown: Shown) -> None:
    service, jobs = shown
    rows = read(service, f"/dashboard/jobs?status=running&job={jobs.running}", **{"HX-Request": "true"})
    assert "<html" not in rows.source
    assert [box["value"] for box in rows.all("input") if "checked" in box] == [jobs.running], "a poll keeps what is ticked"
    (section,) = rows.all("section")
    assert section["hx-get"] == "/dashboard/jobs?status=running"
    (section,) = (one for one in read(service, "/dashboard/jobs?status=failed").all("section") if one.get("id") == "rows")
    assert "hx-get" not in section


def test_an_empty_list_says_what_to_do(service: Service) -> None:
    assert "No jobs yet" in read(service, "/dashboard/jobs").text


def test_a_job_that_succeeded_shows_its_result_beside_the_source_model(shown: Shown) -> None:
    service, jobs = shown
    page = read(service, f"/dashboard/jobs/{jobs.succeeded}")
    assert "Verdict: Deploy" in page.text
    assert re.search(r"Accuracy\s*44\.3 %\s*61\.0 %\s*75\.3 %", page.text)
    assert re.search(r"mug\s*20\s*35\.0 %\s*75\.0 %", page.text), "recall of a class"
    downloads = [link["href"] for link in page.all("a") if "/artifacts/" in link.get("href", "")]
    assert downloads == [
        f"/jobs/{jobs.succeeded}/artifacts/{name}"
        for name in ("model.safetensors", "pictures.json", "pictures.webp", "report.html", "report.json")
    ]
    assert all(service.client.get(link).status_code == 200 for link in downloads)
    series = [figure["data-series"] for figure in page.all("figure") if figure["data-series"]]
    assert series == ["bridging/L_D", "bridging/L_rec", "transferring/L_KL"]
    assert f"/dashboard/jobs/{jobs.succeeded}/delete" in [form.get("action") for form in page.all("form")]


def test_a_job_leads_to_its_run_in_mlflow_where_the_operator_says(changed: Shown) -> None:
    service, jobs = changed
    address = f"/dashboard/jobs/{jobs.succeeded}"
    with service.db.write() as session:
        session.add(MlflowExport(job_id=jobs.succeeded, run_id='../x"><script>?y#z', next_at=None))
        session.add(MlflowExport(job_id=jobs.running, run_id=None, next_at=service.db.now(session)))
    assert "MLflow" not in checked(service.client.get(address)).text
    with serving(service.settings.model_copy(update={"mlflow_ui_url": "https://mlflow.example/at/"})) as linked:
        links = [link["href"] for link in checked(linked.client.get(address)).all("a") if "mlflow" in link["href"]]
        assert links == ["https://mlflow.example/at/#/runs/..%2Fx%22%3E%3Cscript%3E%3Fy%23z"]
        for without in (jobs.running, jobs.queued):
            assert "MLflow" not in checked(linked.client.get(f"/dashboard/jobs/{without}")).text


def test_a_job_that_succeeded_shows_its_pictures(shown: Shown) -> None:
    service, jobs = shown
    page = read(service, f"/dashboard/jobs/{jobs.succeeded}")
    tiles = [svg for svg in page.all(SVG + "svg") if svg.get("role") == "img"]
    assert [tile["viewBox"] for tile in tiles] == [
        "0 0 64 64", "64 0 64 64", "0 64 64 64", "64 64 64 64", "0 128 64 64", "64 128 64 64", "128 128 64 64",
    ]  # fmt: skip
    assert [tile["aria-label"] for tile in tiles[-3:]] == [f"{HOSTILE}: {column}" for column in ("Sensor", "Translation", "RGB")]
    assert {(tile["width"], tile["height"]) for tile in tiles} == {("96", "96")}
    (address,) = {image["href"] for image in page.all(SVG + "image")}
    answer = service.client.get(address)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
    assert page.text.count(HOSTILE) >= 3 and "alert(" not in "".join(page.scripts)
    assert re.search(r"mug\s+\(right\)\s+65 %", page.text), "the adapted model's answer to the labelled image"


def test_a_verdict_comes_with_its_reasons_and_what_a_client_wrote_is_text(shown: Shown) -> None:
    service, jobs = shown
    page = read(service, f"/dashboard/jobs/{jobs.doubtful}")
    assert "Verdict: Look closer" in page.text and "Mean entropy of the predictions" in page.text
    assert HOSTILE in page.text and "alert(" not in "".join(page.scripts)
    assert "Balanced accuracy" not in page.text


def test_a_job_that_failed_says_why_and_what_to_do(shown: Shown) -> None:
    service, jobs = shown
    page = read(service, f"/dashboard/jobs/{jobs.failed}")
    assert "L_rec is nan by step 40" in page.text and "Lower the stage's learning rate" in page.text
    assert "/settings/bridging/lr" in page.text
    assert "Try again" in page.text and "It recorded none" in page.text


def test_a_running_job_shows_where_it_is(shown: Shown) -> None:
    service, jobs = shown
    page = read(service, f"/dashboard/jobs/{jobs.running}")
    (now,) = (step for step in page.all("li") if step.get("aria-current") == "step")
    assert now["class"] == "now"
    assert "bridging, step 100000 of 200000; about 4 min 12 s left" in page.text
    part = service.client.get(f"/dashboard/jobs/{jobs.running}/live", headers={"HX-Request": "true"})
    assert part.status_code == 200 and "HX-Refresh" not in part.headers
    assert service.client.get(f"/dashboard/jobs/{jobs.failed}/live").headers["HX-Refresh"] == "true"


def test_ten_thousand_points_are_a_thousand_a_curve_and_no_spike_is_lost(service: Service, data: Any) -> None:
    job = seeding.submitted(service, data)
    claim = seeding.claimed(service, job)
    seeding.trained(service, claim, 100_000)
    with service.db.write() as session:
        seeding.lifecycle.record_metrics(
            session,
            claim,
            {("bridging/L_rec", 50_005): 99.0, ("bridging/L_rec", 2**62): 0.5, ("few", 1): 2.0, ("few", 2**63 - 1): 1.0},
            now=service.db.now(session),
        )
        assert seeding.lifecycle.record(session, claim, now=service.db.now(session))
    address = f"/dashboard/jobs/{job}/curves"
    answer = service.client.get(address)
    series = answer.json()["series"]
    assert set(series) == {"bridging/L_D", "bridging/L_rec", "transferring/L_KL", "few"}
    for steps, values in series.values():
        assert len(steps) == len(values) <= 1000 and steps == sorted(steps)
    assert len(series["bridging/L_D"][0]) >= 900
    assert (series["bridging/L_D"][0][0], series["bridging/L_D"][0][-1]) == (0, 99_990)
    assert 99.0 in series["bridging/L_rec"][1]
    assert series["few"][1] == [2.0, 1.0]
    assert service.client.get(address, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_a_curve_that_is_short_enough_comes_whole(service: Service, data: Any) -> None:
    job = seeding.submitted(service, data)
    seeding.trained(service, seeding.claimed(service, job), 9_000)
    steps, _ = service.client.get(f"/dashboard/jobs/{job}/curves").json()["series"]["bridging/L_rec"]
    assert steps == list(range(0, 9_000, 10))


SAME = {"Sec-Fetch-Site": "same-origin"}


def test_a_job_is_cancelled_tried_again_and_deleted_by_plain_forms(changed: Shown) -> None:
    service, jobs = changed
    address = f"/dashboard/jobs/{jobs.queued}"
    for action, status, to in [("cancel", "cancelled", address), ("retry", "queued", address), ("cancel", "cancelled", address)]:
        answer = service.client.post(f"{address}/{action}", headers=SAME)
        assert (answer.status_code, answer.headers["location"]) == (303, to), answer.text
        assert seeding.status(service, jobs.queued) == status
    answer = service.client.post(f"{address}/delete", headers={"Origin": service.url})
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/jobs")
    assert read(service, address, 404).text.count("no job") == 1
    refused = service.client.post(f"/dashboard/jobs/{jobs.failed}/cancel", headers=SAME)
    assert refused.status_code == 409 and "The job is in a final state" in checked(refused).text


@pytest.mark.parametrize(
    "headers",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "none"}, {"Origin": "https://evil.example"},
     {"Origin": "null"}, {"Origin": "http://["}],
)  # fmt: skip
def test_a_form_of_another_site_changes_nothing(shown: Shown, headers: dict[str, str]) -> None:
    service, jobs = shown
    for job, action in [(jobs.queued, "cancel"), (jobs.failed, "retry"), (jobs.succeeded, "delete")]:
        before = seeding.status(service, job)
        answer = service.client.post(f"/dashboard/jobs/{job}/{action}", headers=headers)
        assert answer.status_code == 403 and "cross_origin" in checked(answer).text
        assert seeding.status(service, job) == before


def test_another_tenants_jobs_are_not_there(changed: Shown) -> None:
    service, jobs = changed
    with service.db.write() as session:
        session.execute(sa.text("INSERT INTO tenants (id, created_at) VALUES ('tenant_b', CURRENT_TIMESTAMP)"))
        session.execute(sa.update(Job).values(tenant_id="tenant_b"))
        assert queries.by_status(session, "tenant_b")
    assert listed(read(service, "/dashboard/jobs")) == []
    for part in ("", "/live", "/curves"):
        read(service, f"/dashboard/jobs/{jobs.succeeded}{part}", 404)
    for action in ("cancel", "retry", "delete"):
        assert service.client.post(f"/dashboard/jobs/{jobs.queued}/{action}", headers=SAME).status_code == 404


@pytest.mark.parametrize("address", ["/dashboard/nowhere", "/dashboard/jobs/job_nothing", "/dashboard/jobs?after=x", "/dashboard/jobs?status=x"])  # fmt: skip
def test_what_goes_wrong_on_a_page_is_told_by_a_page(shown: Shown, address: str) -> None:
    answer = shown[0].client.get(address)
    assert answer.status_code in (404, 422) and answer.headers["content-type"].startswith("text/html")
    assert answer.headers["x-request-id"] in checked(answer).text


def test_the_api_still_answers_with_problem_documents(shown: Shown) -> None:
    answer = shown[0].client.get("/jobs/job_nothing")
    assert answer.headers["content-type"] == "application/problem+json"


def test_no_page_can_run_what_is_not_ours_or_be_framed(shown: Shown) -> None:
    service, jobs = shown
    for address in ("/dashboard/jobs", f"/dashboard/jobs/{jobs.doubtful}", "/dashboard/nowhere"):
        headers = service.client.get(address).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert headers["cache-control"] == "no-store"


def test_static_files_come_with_their_licences_and_change_their_address_with_their_content(shown: Shown) -> None:
    service, _ = shown
    page = read(service, "/dashboard/jobs")
    for address in page.resources:
        answer: httpx.Response = service.client.get(address)
        assert answer.status_code == 200 and re.search(r"\?v=[0-9a-f]{12}$", address)
    for name in ("htmx.LICENSE", "uPlot.LICENSE"):
        assert service.client.get(f"/dashboard/static/vendor/{name}").status_code == 200


def test_phases_of_an_attempt_that_resumed_and_of_one_that_failed() -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)

    def told(status: Status, *entered: str, finished_s: float | None = None) -> list[tuple[str, float | None]]:
        job = Job(status=status, finished_at=began + timedelta(seconds=finished_s) if finished_s is not None else None)
        at = [JobEvent(message=name, at=began + timedelta(seconds=10 * place)) for place, name in enumerate(entered)]
        return [(phase.state, phase.seconds) for phase in phases(job, at, began + timedelta(seconds=60))]

    done, to_come = ("done", None), ("to come", None)
    assert told(Status.QUEUED) == [to_come] * 5
    assert told(Status.RUNNING, "preparing", "transferring") == [("done", 10), done, ("now", 50), to_come, to_come]
    assert told(Status.FAILED, "preparing", "bridging", finished_s=25) == [
        ("done", 10),
        ("stopped", 15),
        to_come,
        to_come,
        to_come,
    ]
    assert told(Status.SUCCEEDED, "preparing", "evaluating", "publishing", finished_s=25) == [
        ("done", 10), done, done, ("done", 10), ("done", 5),
    ]  # fmt: skip
