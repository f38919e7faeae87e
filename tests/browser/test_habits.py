"""What every view keeps to: it stays as the reader has it, moves nothing, saves pictures, and asks nobody else."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import Open
from tests.browser.recorded import STEPS, drifted, post_recorded, post_step, records_of
from tests.browser.test_views import VIEWS
from tests.services.fake_bridge import FakeBridge
from tests.services.live import live

pytestmark = pytest.mark.slow
OVER_PAUSE, MOST, STALLED = (
    (217, 115, 31),
    (74, 147, 207),
    (213, 94, 0),
)  # --above-4, --below-4 and --s2 of the light theme
SHIFTS = """() => new Promise((done) => {
    const all = [];
    new PerformanceObserver((list) => all.push(...list.getEntries())).observe({ type: "layout-shift", buffered: true });
    setTimeout(() => done(all.reduce((sum, one) => sum + one.value, 0)), 300);
})"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two runs, one of them drifting in its last step; a sync and a check."""
    with live(tmp_path_factory.mktemp("habits"), FakeBridge()) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url, "older")
        post_recorded(url)
        http.post("/v1/syncs?wait=true", json={}).raise_for_status()
        http.post("/v1/checks", json={"localise": True}).raise_for_status()
        post_step(http, "recorded", STEPS, drifted(records_of(0), 0.9), {"reward": 0.5, "kl": 0.02, "clipped": 0.1})
        yield url


def test_nothing_is_asked_of_anybody_else(served: str, context: BrowserContext) -> None:
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for view in VIEWS:
        page.goto(f"{served}/#run=recorded&view={view}&seen={view}")
        page.wait_for_function("() => performance.getEntriesByName('loaded').length > 0")
        page.evaluate("performance.clearMarks()")
    assert len(asked) > len(VIEWS)
    assert [url for url in asked if not url.startswith((f"{served}/", "blob:", "data:"))] == []


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_moves_as_it_loads(served: str, opened: Open, view: str) -> None:
    page = opened(served, run="recorded", view=view)
    _loaded(page)
    assert page.evaluate(SHIFTS) < 0.05


def test_a_step_that_comes_in_leaves_the_reader_where_he_is(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url, httpx.Client(base_url=url) as http:
        post_recorded(url)
        reading = opened(url, view="what", step=5, sample="mixed-5-1")
        reading.locator("summary", has_text="Both logprobs").click()
        reading.evaluate("document.querySelector('audio').mine = true")
        charts = opened(url, run="recorded")
        charts.locator("summary", has_text="Table").first.click()
        rows = charts.locator("details[open] tbody tr")
        expect(rows).to_have_count(STEPS)
        expect(reading.locator("#live")).to_have_text("live")
        expect(charts.locator("#live")).to_have_text("live")
        post_step(http, "recorded", STEPS, records_of(0))
        expect(rows).to_have_count(STEPS + 1)
        expect(reading.get_by_role("button", name="latest (6)")).to_be_visible()
        assert reading.evaluate("document.querySelector('audio').mine") is True
        expect(reading.get_by_role("region", name="Tokens with both logprobs")).to_be_visible()


def test_the_token_that_is_furthest_off_is_told_first(served: str, opened: Open) -> None:
    page = opened(served, run="recorded", view="what", step=5, sample="mixed-5-1")
    with httpx.Client(base_url=served) as http:
        record = http.get("/v1/runs/recorded/attempts/1/steps/5/samples/mixed-5-1").json()["record"]
    pairs = zip(record["rollout_logprobs"], record["train_logprobs"], strict=True)
    off = [abs(train - rollout) for rollout, train in pairs]
    worst = off.index(max(off))
    expect(page.locator(".detail")).to_contain_text(f"#{worst} ")
    page.locator(".strip").press("ArrowLeft")
    expect(page.locator(".detail")).to_contain_text(f"#{worst - 1} ")


@pytest.mark.parametrize(
    ("view", "button", "colour"),
    [
        ("where", "Kind by position as PNG", OVER_PAUSE),
        ("where", "Router flips as PNG", MOST),
        ("where", "Modules as PNG", (23, 32, 43)),
        ("syncs", "Phases as PNG", STALLED),
        ("why", "Legs as PNG", STALLED),
        ("why", "Legs by token as PNG", MOST),
        ("timeline", "reward, mean as PNG", (0, 114, 178)),
        ("compare", "logprob_abs_diff_mean, nats as PNG", (0, 114, 178)),
    ],
)
def test_every_chart_is_saved_as_it_looks(
    served: str, opened: Open, view: str, button: str, colour: tuple[int, int, int]
) -> None:
    page = opened(served, run="recorded", view=view)
    with page.expect_download() as download:
        page.get_by_role("button", name=button).first.click()
    picture = Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).convert("RGB")
    colours = {shade: count for count, shade in picture.getcolors(1 << 24) or []}
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert colours.get(colour, 0) > 20


def test_what_trainers_post_is_drawn_with_its_units_and_zoomed(served: str, opened: Open) -> None:
    page = opened(served, run="recorded")
    figures = page.get_by_role("region", name="Reward and training")
    titles = ["reward, mean", "kl, nats", "clipped, share of tokens", "effective sample size, share of tokens"]
    expect(figures.locator(".two h2")).to_have_text(titles)
    figures.locator("summary", has_text="Table").first.click()
    steps = figures.locator("details[open] tbody td:first-child")
    expect(steps.first).to_have_text("0")
    page.goto(f"{served}/#run=recorded&x=2-4")
    expect(page.locator("#in-view")).to_have_text("steps 2 to 4")
    expect(figures.locator(".two h2")).to_have_text([titles[0], titles[-1]])
    expect(steps).to_have_text(["2", "3", "4"])
    over = figures.locator(".u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.02 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 20, steps=4)
    page.mouse.up()
    page.wait_for_function("() => location.hash.includes('x=2-3')")


def test_a_first_step_takes_the_place_of_what_said_that_there_is_none(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url, httpx.Client(base_url=url) as http:
        post_recorded(url, "new", steps=0)
        page = opened(url, run="new", view="timeline")
        expect(page.locator("main")).to_contain_text("No step yet")
        expect(page.locator("#live")).to_have_text("live")
        post_step(http, "new", 0, records_of(0))
        expect(page.locator("#in-view")).to_have_text("steps 0 to 0")
        expect(page.locator("main")).not_to_contain_text("No step yet")


def test_an_open_table_stays_open_with_another_figure(served: str, opened: Open) -> None:
    page = opened(served, run="recorded", metric="gen_kl_error")
    page.locator("section.panel", has_text="image: gen_kl_error").locator("summary").click()
    page.get_by_label("figure").select_option("logprob_abs_diff_p99")
    tables = page.locator("main details[open]")
    named = "image: logprob_abs_diff_p99, nats, as a table"
    expect(tables.get_by_role("region")).to_have_attribute("aria-label", named)
    expect(tables).to_have_count(1)


def test_keys_of_the_page_and_of_its_dialogs(served: str, opened: Open) -> None:
    page = opened(served, run="recorded", view="compare")
    log = page.get_by_role("button", name="log", exact=True)
    expect(log).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("l")
    expect(log).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="Keyboard")).to_be_visible()
    page.keyboard.press("1")
    expect(log).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", name="Keyboard")).to_be_hidden()
    page.keyboard.press("1")
    expect(page.locator("#in-view")).to_be_visible()
    page.keyboard.press("t")
    theme = page.evaluate("document.documentElement.dataset.theme")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == theme == "dark"


def test_what_is_not_there_is_said_with_what_to_do(served: str, opened: Open) -> None:
    page = opened(served, run="recorded", view="what", step=2, sample="nobody")
    expect(page.locator("main").get_by_role("alert")).to_contain_text("sample nobody of")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    page.goto(f"{served}/#run=recorded&view=why&check=99")
    expect(page.locator("main").get_by_role("alert")).to_contain_text("there is no check 99")
    page.goto(f"{served}/#run=recorded&view=where&step=77")
    expect(page.locator("main").get_by_role("alert")).to_contain_text("is not sealed")


def _loaded(page: Page) -> None:
    page.wait_for_function("() => performance.getEntriesByName('loaded').length > 0")
