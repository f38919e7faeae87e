"""A run over the wall clock: what took long is wide, and the brush is the same."""

import re

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.browser.conftest import Open
from tests.browser.recorded import STEPS

pytestmark = pytest.mark.slow
BEGAN, PAUSED = 1_790_000_000.0, 3600.0
"""The run stood still for an hour before its last step; the others came a minute apart."""


def _sealed(step: int) -> float:
    return BEGAN + 60 * step + (PAUSED if step == STEPS - 1 else 0)


@pytest.fixture
def paused(recorded: str, context: BrowserContext) -> str:
    def told(route: Route) -> None:
        found = route.fetch().json()
        if isinstance(found, list):
            found = [{**line, "sealed": _sealed(line["step"])} for line in found]
        else:
            found["sealed"] = [_sealed(step) for step in found["last"]]
        route.fulfill(json=found)

    context.route(re.compile(r"/v1/runs/recorded/(timeline|steps)\?"), told)
    return recorded


def test_a_run_is_drawn_by_the_wall_clock_if_asked(paused: str, opened: Open) -> None:
    page = opened(paused, run="recorded", kind="overall")
    _loaded(page)
    page.evaluate("performance.clearMarks()")
    page.get_by_label("over", exact=True).select_option("wall clock")
    page.wait_for_function("() => location.hash.includes('over=clock')")
    _loaded(page)
    _over(page, ".two .u-over", 0.5)
    told = page.locator(".hovered").first
    expect(told).to_contain_text(re.compile(r"^step \d, sealed \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC[+-]\d"))


@pytest.mark.parametrize("chart", [".two .u-over", "[aria-label='Reward and training'] .u-over"])
def test_its_brush_is_one_of_steps(paused: str, opened: Open, chart: str) -> None:
    page = opened(paused, run="recorded", kind="overall", over="clock")
    _loaded(page)
    _over(page, chart, 0.005)
    page.mouse.down()
    _over(page, chart, 0.5)
    page.mouse.up()
    # Half of the time, and all steps but the last.
    expect(page.locator("#in-view")).to_have_text(f"steps 0 to {STEPS - 2}")


def _over(page: Page, chart: str, share: float) -> None:
    over = page.locator(chart).first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + share * box["width"], box["y"] + 20, steps=4)


def _loaded(page: Page) -> None:
    page.wait_for_function("() => performance.getEntriesByName('loaded').length > 0")
