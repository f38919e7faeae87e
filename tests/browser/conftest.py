"""Debian's Chromium against a live coordinator: its headless shell where there is one, which opens a page with half of
the whole browser's work."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.recorded import post_recorded
from tests.services.live import live

ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-gpu"]
"""No sandbox: root has none, and these pages are ours."""
Open = Callable[..., Page]
PATIENCE_MS = 10_000
"""A machine that does other things as well takes its time."""
expect.set_options(timeout=PATIENCE_MS)


# By module: playwright has an event loop in this thread while it is open, and then nobody else can start one.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if path is None:
        pytest.fail("Chromium is needed: apt-get install chromium-headless-shell")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a coordinator with the recorded run in it."""
    with live(tmp_path_factory.mktemp("recorded")) as url:
        post_recorded(url)
        yield url


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.unroute_all(behavior="ignoreErrors")  # the page still asks, and an answer that is too late is no failure
    context.close()


@pytest.fixture
def opened(context: BrowserContext) -> Iterator[Open]:
    """`opened(url, view=..., step=...)`: the page there. What it logs as an error, a policy's refusal above all, fails
    the test."""
    yield from _pages(context)


@pytest.fixture
def opened_in_kolkata(browser: Browser) -> Iterator[Open]:
    """As `opened`, for a reader in Kolkata."""
    context = browser.new_context(timezone_id="Asia/Kolkata")
    yield from _pages(context)
    context.close()


def _pages(context: BrowserContext) -> Iterator[Open]:
    wrong: list[str] = []

    def open_page(url: str, **place: Any) -> Page:
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{url}/#" + "&".join(f"{name}={value}" for name, value in place.items()))
        return page

    yield open_page
    expected = ("404 (Not Found)", "401 (Unauthorized)", "422 (Unprocessable", "net::ERR_", "503 (Service")
    assert [text for text in wrong if not any(known in text for known in expected)] == []


@pytest.fixture
def axe() -> str:
    return (Path(__file__).parent / "vendor" / "axe-core-4.14.1.min.js").read_text()
