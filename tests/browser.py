"""Fixtures: a real browser. A conftest that wants them imports them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

expect.set_options(timeout=20_000)  # a machine may be busy; what is there is seen at once all the same
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, of one module: while Playwright runs, asyncio believes that this thread is in its event loop."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail(
            "this test needs a browser: install chromium (Debian: apt-get install chromium), or leave out: -m 'not browser'"
        )
    with sync_playwright() as playwright:
        with closing(playwright.chromium.launch(executable_path=path, args=FLAGS)) as launched:
            yield launched


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """(address, *expected, **options of the browser's context) -> its page. What it says on its console, and what breaks in it,
    fails the test, but for what one of `expected` is part of."""
    opened: list[Page] = []
    said: list[str] = []
    allowed: list[str] = []

    def open_(address: str, *expected: str, **options: object) -> Page:
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(str(error)))
        allowed.extend(expected)
        opened.append(page)
        page.goto(address)
        return page

    yield open_
    for page in opened:
        page.context.close()
    assert [line for line in said if not any(word in line for word in allowed)] == []


def grave(page: Page) -> list[tuple[str, list[str]]]:
    """What keeps people out of the page as it is now, by axe: each fault with the elements that have it."""
    found = Axe().run(page).response["violations"]
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found if one["impact"] in ("serious", "critical")
    ]
