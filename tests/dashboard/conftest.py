"""A front end with jobs in every state, and a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from app.settings import Settings
from tests.app.conftest import make_data
from tests.conftest import Service, serving
from tests.dashboard.seeding import Jobs, seeded

expect.set_options(timeout=20_000)  # a machine may be busy; what is there is seen at once all the same
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


@contextmanager
def front_end(folder: Path, template: Path) -> Iterator[Service]:
    root = folder / "data"
    root.mkdir()
    database = folder / "modalbridge.db"
    database.write_bytes(template.read_bytes())
    with serving(Settings(data_dir=folder / "var", database_url=f"sqlite:///{database}", data_roots=(root,))) as running:
        yield running


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path) -> Iterator[tuple[Service, Jobs]]:
    """For tests that change nothing."""
    with front_end(tmp_path_factory.mktemp("dashboard"), sqlite_template) as service:
        yield service, seeded(service, steps=100_000)


@pytest.fixture
def changed(tmp_path: Path, sqlite_template: Path) -> Iterator[tuple[Service, Jobs]]:
    """For tests that change something."""
    with front_end(tmp_path, sqlite_template) as service:
        yield service, seeded(service)


@pytest.fixture
def data(data_root: Path) -> Path:
    return make_data(data_root)


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
