"""Every view, in a real browser, on a run that was really played."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from omni_rl.consistency.actions import Cause
from omni_rl.kinds import KINDS, OVERALL
from omni_rl.ledger.records import StepRecords
from tests.browser.conftest import Open
from tests.browser.recorded import STEPS, drifted, post_recorded, post_step, records_of
from tests.services.fake_bridge import MODULES, PART, TOKENS, FakeBridge
from tests.services.live import live

pytestmark = pytest.mark.slow
VIEWS = ("runs", "timeline", "where", "what", "why", "syncs", "jobs", "compare")
MINUS, MISSING = "\u2212", "\u2013"


@pytest.fixture(scope="module")
def drifting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two runs, one of them parted from its trainer in its last step, a sync, and a check before and after."""
    bridge = FakeBridge()
    with live(tmp_path_factory.mktemp("drifting"), bridge) as url, httpx.Client(base_url=url) as http:
        post_recorded(url)
        post_recorded(url, "older")
        http.post("/v1/syncs?wait=true", json={}).raise_for_status()
        http.post("/v1/checks", json={"localise": True}).raise_for_status()
        post_step(http, "recorded", STEPS, drifted(records_of(0), 0.9))
        bridge.figures, bridge.cause = PART, Cause.KERNEL
        about = {"run": "recorded", "attempt": 1, "step": STEPS, "reference": True, "localise": True}
        http.post("/v1/checks", json=about).raise_for_status()
        yield url


def test_the_head_says_how_it_stands_and_why(drifting: str, opened: Open) -> None:
    page = opened(drifting, run="recorded")
    expect(page.locator("#badge")).to_contain_text("PAUSE")
    expect(page.locator("#fact-step")).to_have_text(str(STEPS))
    for member, doing in (("rollout-0", "serving"), ("trainer", "idle")):
        expect(page.locator(f"#fact-{member}")).to_have_text("1 · 9f2c3c1d")
        expect(page.locator(".facts div", has_text=member)).to_contain_text(doing)
    expect(page.get_by_role("alert")).to_contain_text("image only: logprob_abs_diff_mean")
    assert "PAUSE" in page.title()
    page.get_by_label("Run", exact=True).fill("older")
    page.get_by_label("Run", exact=True).press("Enter")
    expect(page.locator("#badge")).to_contain_text("OK")


def test_a_chart_has_its_numbers_behind_it(drifting: str, opened: Open, tmp_path: Path) -> None:
    page = opened(drifting, run="recorded", kind=OVERALL)
    page.locator("details", has_text="Table").first.click()
    rows = page.locator("details[open] tbody tr")
    expect(rows).to_have_count(STEPS + 1)
    with page.expect_download() as download:
        page.get_by_role("button", name="logprob_abs_diff_mean as CSV").click()
    download.value.save_as(tmp_path / "drift.csv")
    with httpx.Client(base_url=drifting) as http:
        lines = http.get("/v1/runs/recorded/steps").json()
    with (tmp_path / "drift.csv").open() as file:
        saved = list(csv.DictReader(file))
    expected = [line["figures"]["logprob_abs_diff_mean"] for line in lines]
    assert [float(row["logprob_abs_diff_mean greatest"]) for row in saved] == expected
    assert {row["run"] for row in saved} == {"recorded"}
    assert download.value.suggested_filename.startswith("recorded-")
    with page.expect_download() as picture:
        page.get_by_role("button", name="overall: logprob_abs_diff_mean, nats as PNG").click()
    assert Path(picture.value.path()).read_bytes().startswith(b"\x89PNG")


def test_one_brush_moves_every_chart_and_is_in_the_address(drifting: str, opened: Open) -> None:
    page = opened(drifting, run="recorded")
    over = page.locator(".u-over").first
    expect(over).to_be_visible()
    box = over.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, middle, steps=4)
    page.mouse.up()
    page.wait_for_function("() => location.hash.includes('x=1-4')")
    expect(page.locator("#in-view")).to_contain_text("steps 1 to 4")
    page.reload()
    expect(page.locator("#in-view")).to_contain_text("steps 1 to 4")
    page.keyboard.press("0")
    expect(page.locator("#in-view")).to_contain_text(f"steps 0 to {STEPS}")


@pytest.mark.parametrize("view", ["timeline", "compare"])
def test_the_kinds_to_pick_from_are_those_that_the_api_says(
    drifting: str, context: BrowserContext, opened: Open, view: str
) -> None:
    page = opened(drifting, run="recorded", view=view)
    offered = page.get_by_label("prompts").locator("option")
    apart = ["each kind"] if view == "timeline" else []
    expect(offered).to_have_text([*apart, "all kinds", *KINDS])
    _kinds(context, recorded=["text", "image"], older=["text", "audio"])
    expect(page.locator("canvas").first).to_be_visible()  # what is under way has the kinds from before
    page.keyboard.press("r")
    expect(offered).to_have_text([*apart, "all kinds", "text", "image", *(["audio"] if view == "compare" else [])])
    page.get_by_label("prompts").select_option("text")
    page.wait_for_function("() => location.hash.includes('kind=text')")
    expect(page.locator("canvas").first).to_be_visible()


def test_rows_are_the_kinds_that_the_api_says(drifting: str, context: BrowserContext, opened: Open) -> None:
    page = opened(drifting, run="recorded", view="where", step=STEPS)
    rows = page.get_by_role("table", name="logprob_abs_diff_mean by kind and position").get_by_role("rowheader")
    expect(rows).to_have_text([OVERALL, *KINDS])
    _kinds(context, recorded=["mixed", "image"], older=["mixed"])
    page.keyboard.press("r")
    expect(rows).to_have_text([OVERALL, "mixed", "image"])


def test_figures_by_position_are_those_that_are_kept_so(drifting: str, context: BrowserContext, opened: Open) -> None:
    def changed(route: Route) -> None:
        found = route.fetch().json()
        for bins in found["positions"].values():
            for one in bins:
                del one["figures"]["logprob_abs_diff_p99"]
        route.fulfill(json=found)

    context.route(re.compile(r"/steps/\d+$"), changed)
    page = opened(drifting, run="recorded", view="where", step=STEPS)
    offered = page.get_by_label("figure").locator("option")
    expect(offered.filter(has_text="gen_kl_error")).to_have_count(1)
    expect(offered.filter(has_text="router_flips")).to_have_count(1)
    expect(offered.filter(has_text="logprob_abs_diff_p99")).to_have_count(0)


def test_where_the_drift_is(drifting: str, opened: Open) -> None:
    page = opened(drifting, run="recorded", view="where", step=STEPS)
    rows = page.get_by_role("table", name="logprob_abs_diff_mean by kind and position").get_by_role("row")
    expect(rows.filter(has_text="image").locator("[data-heat='4']").first).to_be_visible()
    expect(rows.filter(has_text="audio").locator("[data-heat='4']")).to_have_count(0)
    with httpx.Client(base_url=drifting) as http:
        flips = http.get("/v1/runs/recorded/attempts/1/steps/1").json()["flips"]
    layers = page.get_by_role("table", name="Router flips by layer and step").get_by_role("row")
    shown = [layers.nth(layer + 1).locator(".cell").nth(1).inner_text() for layer in range(len(flips))]
    assert shown == [str(count) for count in flips]


def test_what_drifted_token_by_token(drifting: str, opened: Open) -> None:
    page = opened(drifting, run="recorded", view="what", step=5, sample="mixed-5-1")
    with httpx.Client(base_url=drifting) as http:
        record = http.get("/v1/runs/recorded/attempts/1/steps/5/samples/mixed-5-1").json()["record"]
    assert StepRecords.from_json(json.dumps({"schema": "omni_rl.step/1", "records": [record]})).tokens
    tokens = page.locator(".strip > span")
    expect(tokens).to_have_count(len(record["ids"]))
    tokens.nth(3).hover()
    detail = page.locator(".detail")
    expect(detail).to_contain_text(f"id {record['ids'][3]}")
    rollout, train = record["rollout_logprobs"][3], record["train_logprobs"][3]
    told = dict(part.strip().split(" ", 1) for part in detail.inner_text().split("·")[1:4])
    assert float(told["rollout"].replace(MINUS, "-")) == pytest.approx(rollout, rel=1e-2)
    assert float(told["train"].replace(MINUS, "-")) == pytest.approx(train, rel=1e-2)
    page.wait_for_function("() => document.querySelector('.media img').naturalWidth > 0")
    page.wait_for_function("() => document.querySelector('.media audio').duration > 0.4")
    expect(page.locator(".frames canvas")).to_have_count(6)
    expect(page.locator(".media figcaption").first).to_contain_text("same tensors on every side")


def test_tensors_are_the_same_where_both_sides_got_them(drifting: str, context: BrowserContext, opened: Open) -> None:
    same, differ, unknown = "same tensors on every side", "tensors differ", "digests not posted"
    expected = {
        ("a", "a", "a"): same,
        (None, "a", "a"): same,  # each side rendered for itself
        ("a", None, "a"): differ,
        ("a", "a", None): differ,
        ("a", None, None): differ,
        (None, "a", None): differ,
        (None, "a", "b"): differ,
        ("a", "b", "b"): differ,
        (None, None, None): unknown,
    }
    _media(context, [[tensor] for tensor in expected] + [[], [("a", "a", "a"), (None, None, None)]])
    page = opened(drifting, run="recorded", view="what", step=5, sample="mixed-5-1")
    said = page.locator(".media figcaption span")
    expect(said).to_contain_text([*expected.values(), unknown, same])


def test_where_modules_part_and_from_which_check_on(drifting: str, opened: Open, tmp_path: Path) -> None:
    page = opened(drifting, run="recorded", view="where")
    found = page.get_by_role("table", name="Difference over its band by module and check")
    expect(found.get_by_role("rowheader")).to_have_text(list(MODULES))
    rows = found.get_by_role("row")
    parted = rows.filter(has_text="layers.1.mixer").locator(".cell")
    expect(parted).to_have_text(["0.0100", "50,000"])
    expect(parted.last).to_have_attribute("data-heat", "4")
    expect(parted.last).to_have_attribute(
        "title", re.compile(r"step 6 of recorded.*relative difference 0.500, band 1.00e")
    )
    expect(rows.locator(".marked")).to_have_count(3)
    expect(rows.filter(has_text="logits").locator(".cell").last).to_have_text("nan")
    with page.expect_download() as download:
        page.get_by_role("button", name="modules as CSV").click()
    download.value.save_as(tmp_path / "modules.csv")
    with (tmp_path / "modules.csv").open() as file:
        saved = list(csv.DictReader(file))
    assert len(saved) == 2 * len(MODULES)
    last = saved[-1]
    assert (last["module"], last["relative difference"], last["band"]) == ("logits", "nan", "0.00001")
    page.get_by_role("link", name="#2 step 6").press("Enter")
    expect(page.get_by_role("heading", name=f"Check 2 of step {STEPS} of recorded: PAUSE")).to_be_visible()


def test_the_legs_side_by_side(drifting: str, opened: Open) -> None:
    page = opened(drifting, run="recorded", view="what", step=STEPS)
    legs = page.get_by_role("table", name="Legs by kind of prompt")
    sides = ["train vs prefill", "prefill vs decode", "batch vs alone", "trainer vs float32", "engine vs float32"]
    expect(legs.get_by_role("columnheader")).to_have_text(["kind", *sides])
    image = legs.get_by_role("row").filter(has_text="image").locator(".leg")
    expect(image).to_have_text(["0.900", "0.900", "0.900", f"3.00e{MINUS}7", "0.900"])
    expect(image.first).to_have_attribute("title", "image, train vs prefill: mean 0.900, greatest 3")
    tokens = page.get_by_role("table", name="Legs by token").get_by_role("row").nth(1).locator(".cell")
    expect(tokens).to_have_count(TOKENS)
    assert tokens.all_inner_texts()[-2:] == [f"6e{MINUS}7", "nan"]
    expect(page.get_by_role("heading", name="The probe's image answer")).to_be_visible()
    page.goto(f"{drifting}/#run=recorded&view=what&step=2")
    expect(page.locator("main")).to_contain_text("No check has looked into this step")


def test_media_that_are_gone_are_said_to_be(drifting: str, opened: Open) -> None:
    page = opened(drifting, run="recorded", view="what", step=1, sample="image-1-0")
    expect(page.locator(".media")).to_contain_text("is not kept")


def test_why_it_rang_and_a_check_on_demand(drifting: str, opened: Open) -> None:
    page = opened(drifting, run="recorded", view="why")
    expect(page.locator("main .alarm")).to_contain_text("Done: the trainer was told")
    page.get_by_role("button", name="Check the probe now").click()
    page.get_by_role("button", name="Check", exact=True).click()
    expect(page.get_by_role("heading", name="Check 3 of the probe")).to_be_visible()
    page.wait_for_function("() => location.hash.includes('check=3')")
    rows = page.get_by_role("region", name="Checks", exact=True).locator("tbody tr")
    expect(rows).to_have_count(3)
    rows.last.press("Enter")
    expect(page.get_by_role("heading", name="Check 1 of the probe: OK")).to_be_visible()
    expect(page.locator("main")).to_contain_text("all 5 lie within their noise bands")
    page.get_by_label("answer").select_option("image")
    expect(page.get_by_role("heading", name="The probe's image answer")).to_be_visible()


def test_a_sync_is_asked_for_and_seen(drifting: str, opened: Open) -> None:
    page = opened(drifting, run="recorded", view="syncs")
    rows = page.get_by_role("region", name="Syncs", exact=True).locator("tbody tr")
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="Sync weights").click()
    page.get_by_role("button", name="Sync", exact=True).click()
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("1,480,704 of 1,480,704")
    expect(page.locator(".water")).to_contain_text("prepare")


def test_jobs_are_started_watched_and_stopped(drifting: str, opened: Open) -> None:
    page = opened(drifting, run="recorded", view="jobs")
    page.get_by_role("button", name="Start a job").click()
    page.locator("dialog input[name=run]").fill("fresh")
    page.get_by_role("button", name="Start", exact=True).click()
    row = page.get_by_role("region", name="Jobs").locator("tbody tr")
    expect(row).to_contain_text("running")
    row.locator("td").first.click()
    expect(page.locator("pre.logs")).to_contain_text("step 1 of 50")
    row.get_by_role("button", name="Stop").click()
    page.locator("dialog").get_by_role("button", name="Stop").click()
    expect(row).to_contain_text("stopped")


def test_two_runs_over_each_other(drifting: str, opened: Open) -> None:
    page = opened(drifting, run="recorded", view="compare")
    page.locator("details", has_text="Table").first.click()
    cells = page.locator("details[open] tbody tr").first.locator("td")
    expect(cells).to_have_count(3)
    assert cells.nth(1).inner_text() == cells.nth(2).inner_text() != MISSING
    last = page.locator("details[open] tbody tr").last.locator("td")
    assert last.nth(2).inner_text() == MISSING


def test_without_anything_it_says_what_to_do(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path, FakeBridge(down="the head of Ray is gone")) as url:
        for view in VIEWS:
            page = opened(url, view=view)
            expect(page.locator("#badge")).to_contain_text("NO RUN")
            expect(page.locator(".empty").first).to_be_visible()
            page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1440])
def test_axe_finds_nothing(drifting: str, opened: Open, axe: str, theme: str, width: int) -> None:
    page = opened(drifting, run="recorded")
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    # Through the debugger: the page's own policy lets no script in that is not a file of its own.
    page.evaluate(axe + "; 0")
    found = []
    for view in VIEWS:
        _show(page, view)
        result = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        found += [(view, one["id"], [node["html"][:160] for node in one["nodes"][:3]]) for one in result["violations"]]
    assert found == []


@pytest.mark.parametrize("width", [400, 1440])
def test_nothing_is_wider_than_the_screen(drifting: str, opened: Open, width: int) -> None:
    page = opened(drifting, run="recorded")
    page.set_viewport_size({"width": width, "height": 900})
    for view in VIEWS:
        _show(page, view)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_the_keyboard_reaches_everything(drifting: str, opened: Open) -> None:
    page = opened(drifting, run="recorded")
    expect(page.locator("#badge")).to_contain_text("PAUSE")
    page.keyboard.press("3")
    expect(page.get_by_role("heading", name=f"Worst samples of step {STEPS}")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", name=f"Worst samples of step {STEPS - 1}")).to_be_visible()
    before = page.evaluate("document.documentElement.dataset.theme")
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") != before
    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="Keyboard")).to_be_visible()


def _kinds(context: BrowserContext, **kinds: list[str]) -> None:
    """From now on the API says that these are the runs' kinds."""

    def changed(route: Route) -> None:
        found = route.fetch().json()
        for run in found.get("runs", [found]):
            run["kinds"] = kinds[run["run"]]
        route.fulfill(json=found)

    context.route("**/v1/state", changed)
    context.route(re.compile(r"/v1/runs/\w+$"), changed)


def _media(context: BrowserContext, items: Sequence[Sequence[tuple[str | None, ...]]]) -> None:
    """From now on the API says that a sample's media are these: of each item, the digests of its tensors."""

    def changed(route: Route) -> None:
        found = route.fetch().json()
        sides = ("rendered", "engine", "train")
        found["record"]["media"] = [
            {
                "modality": "image",
                "offset": 0,
                "length": 0,
                "tensors": [{"name": "pixel_values", **dict(zip(sides, tensor, strict=True))} for tensor in tensors],
            }
            for tensors in items
        ]
        route.fulfill(json=found)

    context.route(re.compile(r"/samples/mixed-5-1"), changed)


def _show(page: Page, view: str) -> None:
    page.evaluate("performance.clearMarks()")
    page.evaluate(f"location.hash = 'run=recorded&view={view}&seen={view}'")
    page.wait_for_function("() => performance.getEntriesByName('loaded').length > 0")


def test_updates_that_an_agent_told_of_are_listed_with_what_is_wrong(drifting: str, opened: Open) -> None:
    sums = {"norm.weight": [["float32", 4, "00000000000000ff", 2.0]]}
    receipt = {
        "session": "s",
        "at": 2.0,
        "began": 1.0,
        "how": ["load_weights"],
        "of": 1,
        "tensors": 1,
        "changed": 1,
        "parts": {"norm.weight": [["float32", 4, "00000000000000fe", 2.0], "1/1", True]},
    }
    with httpx.Client(base_url=drifting) as http:
        http.post("/v1/runs", json={"run": "theirs", "model": "any", "dtype": "float32"}).raise_for_status()
        http.put("/v1/runs/theirs/updates/1", json={"at": 0.0, "parts": sums}).raise_for_status()
        http.put("/v1/runs/theirs/engines/e0/updates/1", json=receipt).raise_for_status()
    page = opened(drifting, run="theirs", view="syncs")
    rows = page.get_by_role("region", name="Weight updates").get_by_role("row")
    expect(rows).to_have_count(3)
    expect(rows.nth(1)).to_contain_text("norm.weight is neither the trainer's nor those of an update before")
