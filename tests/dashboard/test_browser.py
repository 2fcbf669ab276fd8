"""The dashboard in a real browser: what it loads, how it moves, what keys and a screen reader get, and what it does over time."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Request, Route, expect

from app.jobs import events, lifecycle
from tests.app.conftest import safetensors
from tests.browser import grave
from tests.conftest import Service
from tests.dashboard import seeding
from tests.dashboard.seeding import Jobs

pytestmark = pytest.mark.browser
Shown = tuple[Service, Jobs]
Open = Callable[..., Page]
PAGES = {
    "jobs": "/dashboard/jobs",
    "no job": "/dashboard/jobs?label=team:nobody",
    "running": "/dashboard/jobs/{running}",
    "succeeded": "/dashboard/jobs/{succeeded}",
    "failed": "/dashboard/jobs/{failed}",
    "compare": "/dashboard/compare?job={succeeded}&job={doubtful}",
    "new": "/dashboard/jobs/new?like={failed}",
    "workers": "/dashboard/workers",
    "problem": "/dashboard/nowhere",
}
MOST_BYTES = 300_000


def address(shown: Shown, name: str) -> str:
    service, jobs = shown
    return service.url + PAGES[name].format(**vars(jobs))


def drawn(page: Page) -> None:
    """Its curves are there, if it has any."""
    figures = page.locator("#curves > figure")
    expect(page.locator("#curves canvas")).to_have_count(figures.count())


WATCH_SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => { for (const entry of list.getEntries()) window.shifts.push(entry.value); })
  .observe({ type: "layout-shift", buffered: true });
"""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_small_and_of_one_place_does_not_move_and_can_be_used_by_all(shown: Shown, open_page: Open, name: str) -> None:
    page = open_page("about:blank", *(["404"] if name == "problem" else []), color_scheme="light")
    sizes: dict[str, int] = {}
    page.on("response", lambda answer: sizes.update({answer.url: len(answer.body())}))
    page.add_init_script(WATCH_SHIFTS)
    page.goto(address(shown, name))
    drawn(page)
    assert {url for url in sizes if not url.startswith(shown[0].url)} == set()
    assert sum(sizes.values()) < MOST_BYTES, sizes
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        drawn(page)
        assert grave(page) == [], scheme
    assert sum(page.evaluate("window.shifts")) < 0.02


def test_each_tile_is_cut_out_of_its_own_jobs_sprite(shown: Shown, open_page: Open) -> None:
    page = open_page(address(shown, "compare"))
    greys = {}
    for column in ("Sensor", "Translation, first job", "Translation, second job", "RGB"):
        tile = page.get_by_role("img", name=f"{seeding.HOSTILE}: {column}", exact=True).last
        with Image.open(io.BytesIO(tile.screenshot())) as seen:
            greys[column] = seen.convert("RGB").getpixel((48, 48))
    # The third row of 3 by 3 tiles, each of which is 20 brighter than the one before: from 40 up, and from 50 up.
    assert greys == {
        "Sensor": (160,) * 3,
        "Translation, first job": (180,) * 3,
        "Translation, second job": (190,) * 3,
        "RGB": (200,) * 3,
    }


def said(service: Service, claim: lifecycle.Claim, message: str, **progress: float) -> None:
    """A line of a job's log, and how far it is."""
    with service.db.write() as session:
        now = service.db.now(session)
        told = {"phase": "bridging", "step": 10, "of": 600, "fraction": 0.1, "eta_s": None, "losses": {}} | progress
        job = lifecycle.record(session, claim, now=now, phase="bridging", progress=told)
        assert job is not None
        events.append(session, job, "log", message, now=now)
        points = {("bridging/L_rec", step): 1 / (1 + step) for step in (0, told["step"])}
        lifecycle.record_metrics(session, claim, points, now=now)


def new_running(service: Service, jobs: Jobs) -> lifecycle.Claim:
    return seeding.claimed(service, jobs.queued)


def test_a_running_jobs_page_follows_it_to_its_end(changed: Shown, open_page: Open) -> None:
    service, jobs = changed
    claim = new_running(service, jobs)
    page = open_page(f"{service.url}/dashboard/jobs/{jobs.queued}")
    expect(page.locator("#log")).to_contain_text("attempt 1 is running")
    said(service, claim, "it is under way", step=120)
    expect(page.locator("#log")).to_contain_text("it is under way")
    expect(page.locator("#live")).to_contain_text("bridging, step 120 of 600")
    expect(page.locator("#curves figure")).to_have_attribute("data-series", "bridging/L_rec")
    expect(page.locator("#curves figcaption")).to_contain_text("last 0.008264")
    seeding.publish(service, claim, seeding.result("deploy", []), model__safetensors=b"weights")
    expect(page.get_by_role("heading", name="Verdict: Deploy")).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3500)
    assert asked == [], "nothing changes any more"


def test_where_the_stream_is_refused_the_log_is_asked_for(changed: Shown, open_page: Open) -> None:
    service, jobs = changed
    claim = new_running(service, jobs)

    def refuse(route: Route, request: Request) -> None:
        if "text/event-stream" in request.headers.get("accept", ""):
            route.fulfill(status=503)
        else:
            route.continue_()

    page = open_page("about:blank", "503")
    page.route("**/events?*", refuse)
    page.goto(f"{service.url}/dashboard/jobs/{jobs.queued}")
    said(service, claim, "nobody streams this")
    expect(page.locator("#log")).to_contain_text("nobody streams this")


def test_curves_that_could_not_be_read_are_said_to_be_so_until_they_can(changed: Shown, open_page: Open) -> None:
    service, jobs = changed
    page = open_page("about:blank", "503")
    page.route("**/curves", lambda route: route.fulfill(status=503))
    page.goto(f"{service.url}/dashboard/jobs/{jobs.queued}")
    expect(page.locator("#no-curves")).to_contain_text("could not be read")
    page.unroute("**/curves")
    expect(page.locator("#no-curves")).to_contain_text("There are none yet")


HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_a_tab_that_nobody_sees_asks_for_nothing_and_catches_up(changed: Shown, open_page: Open) -> None:
    service, jobs = changed
    claim = new_running(service, jobs)
    page = open_page(f"{service.url}/dashboard/jobs/{jobs.queued}")
    expect(page.locator("#log")).to_contain_text("attempt 1 is running")
    page.evaluate(HIDE, True)
    page.wait_for_timeout(300)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    said(service, claim, "meanwhile", step=500)
    page.wait_for_timeout(3500)
    assert asked == []
    page.evaluate(HIDE, False)
    expect(page.locator("#log")).to_contain_text("meanwhile")
    expect(page.locator("#live")).to_contain_text("step 500 of 600")


def test_the_list_follows_its_jobs_keeps_what_is_ticked_and_says_when_nobody_answers(changed: Shown, open_page: Open) -> None:
    service, jobs = changed
    page = open_page(f"{service.url}/dashboard/jobs", "net::ERR_FAILED", "503", "htmx:")
    page.get_by_label("Compare good").check()
    page.get_by_role("link", name="next").focus()
    new_running(service, jobs)
    row = page.get_by_role("row").filter(has_text="next")
    expect(row).to_contain_text("running")
    expect(page.get_by_label("Compare good")).to_be_checked()
    expect(page.get_by_role("link", name="next")).to_be_focused()
    for away in (lambda route: route.abort(), lambda route: route.fulfill(status=503)):
        page.route("**/dashboard/jobs*", away)
        expect(page.get_by_role("status")).to_contain_text("does not answer")
        page.unroute("**/dashboard/jobs*")
        expect(page.get_by_role("status")).to_be_empty()


def test_the_page_of_a_job_that_was_deleted_meanwhile_says_so(changed: Shown, open_page: Open) -> None:
    service, jobs = changed
    page = open_page(f"{service.url}/dashboard/jobs/{jobs.queued}", "404", "htmx:")
    expect(page.locator("#log")).to_contain_text("queued")
    page.evaluate(HIDE, True)
    assert service.client.post(f"/jobs/{jobs.queued}/cancel").status_code == 202
    assert service.client.delete(f"/jobs/{jobs.queued}").status_code == 204
    page.evaluate(HIDE, False)
    expect(page.get_by_role("status")).to_contain_text("deleted meanwhile")


def test_keys_are_enough(changed: Shown, open_page: Open) -> None:
    service, jobs = changed
    page = open_page(f"{service.url}/dashboard/jobs/{jobs.failed}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    for expected, key in [("Try again", "Tab"), ("Delete…", "Enter"), ("Delete this job with its artifacts", "Enter")]:
        while page.evaluate("document.activeElement.innerText.trim()") != expected:
            assert page.evaluate("document.activeElement !== document.body"), f"{expected!r} is not reached"
            page.keyboard.press("Tab")
        if key == "Enter":
            page.keyboard.press(key)
    expect(page.get_by_role("heading", name="Jobs", exact=True)).to_be_visible()
    assert service.client.get(f"/jobs/{jobs.failed}").status_code == 404


def test_without_javascript_everything_but_the_drawings_works(changed: Shown, open_page: Open) -> None:
    service, jobs = changed
    page = open_page(f"{service.url}/dashboard/jobs", java_script_enabled=False)
    page.get_by_label("queued").check()
    page.get_by_role("button", name="Filter").click()
    assert page.url == f"{service.url}/dashboard/jobs?status=queued&label="
    page.get_by_role("link", name="next").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".state")).to_contain_text("cancelled")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".state")).to_contain_text("queued")
    assert seeding.status(service, jobs.queued) == "queued"


def test_a_job_is_submitted_from_the_browser(changed: Shown, open_page: Open, tmp_path: Path) -> None:
    service, _ = changed
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(safetensors(seed=3))
    page = open_page(f"{service.url}/dashboard/jobs", "422")
    page.get_by_role("link", name="New job").click()
    page.get_by_label("File of weights").set_input_files(weights)
    page.get_by_label("Architecture").fill("torchvision/resnet18")
    page.get_by_label("Classes").fill("box\nmug")
    for group, folder in (("Target images", "target"), ("Pairs", "pairs")):
        page.get_by_role("group", name=group).get_by_label("Where").fill(f"file://{service.settings.data_roots[0]}/{folder}")
    page.get_by_label("Settings").fill('{"transfer": {"epoch": 1}}')
    page.get_by_role("button", name="Submit").click()
    summary = page.get_by_role("alert")
    expect(summary).to_be_focused()
    expect(summary).to_contain_text("the nearest known one is 'epochs'")
    summary.get_by_role("link", name="Settings").click()
    expect(page.get_by_label("Settings")).to_be_focused()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text('{"transfer": {"epochs": 1}}')
    page.get_by_label("File of weights").set_input_files(weights)
    page.get_by_role("button", name="Submit").click()
    expect(page.locator(".state")).to_contain_text("queued")
    job = service.client.get(f"/jobs/{page.url.rpartition('/')[2]}").json()
    assert job["request"]["settings"]["transfer"]["epochs"] == 1
