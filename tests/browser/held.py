"""Requests of the page that wait until a test lets them go, so that answers come in the order that it chooses."""

from collections.abc import Callable
from re import Pattern

from playwright.sync_api import Page, Route

POLL_MS = 10


def hold_next(page: Page, url: str | Pattern[str]) -> Callable[[], Route]:
    """Hold the next request for `url`; later ones pass. The returned call waits until the page has sent it."""
    held: list[Route] = []
    page.route(url, lambda route: held.append(route), times=1)

    def sent() -> Route:
        while not held:
            page.wait_for_timeout(POLL_MS)
        return held[0]

    return sent


def after_answers(page: Page) -> None:
    """Return once the page has had every answer that was given before this call: it asks for one more."""
    page.evaluate("() => fetch('/v1/state').then((answer) => answer.text())")
