"""The first screen: every run in a line, the one that needs somebody most on top; and an incident, taken in hand."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from omni_rl.consistency.actions import Cause
from tests.browser.conftest import Open
from tests.browser.held import after_answers, hold_next
from tests.browser.recorded import STEPS, drifted, post_recorded, post_step, records_of
from tests.services.fake_bridge import PART, FakeBridge
from tests.services.live import live

pytestmark = pytest.mark.slow
NEWER = 120
"""Runs without a step, made after all others: more than one page of the API has."""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A run that halted, one that was told to pause, a silent one, one that is well; and newer ones without a step."""
    bridge = FakeBridge(figures=PART, cause=Cause.KERNEL)
    with live(tmp_path_factory.mktemp("board"), bridge) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url, "halted", gated=True)
        post_step(http, "halted", STEPS, drifted(records_of(0), 0.9), {"reward": 0.5})
        while http.get("/v1/runs/halted").json()["drift"]["gate"] != "halted":
            time.sleep(0.01)
        post_recorded(url, "parted")
        post_step(http, "parted", STEPS, drifted(records_of(0), 0.9))
        post_recorded(url, "quiet", steps=1, silent_after=0.5)
        post_recorded(url, "well", steps=3)
        for number in range(NEWER):
            body = {"run": f"newer-{number}", "model": "m", "dtype": "bfloat16"}
            http.post("/v1/runs", json=body).raise_for_status()
        while http.get("/v1/runs/quiet").json()["need"] != "silent":
            time.sleep(0.01)
        yield url


def test_the_landing_page_tells_of_the_run_that_stopped(board: str, opened: Open) -> None:
    page = opened(board)
    expect(page.locator("#badge strong")).to_have_text("■ 1 HALTED")
    expect(page.locator("#badge small")).to_have_text(f"of {NEWER + 4} runs")
    expect(page).to_have_title("1 HALTED · omni-rl drift")
    rows = _rows(page)
    assert [rows.nth(at).locator("td").nth(1).inner_text() for at in range(3)] == ["halted", "parted", "quiet"]
    first = rows.first.locator("td")
    told = ["■ HALTED", "halted", "image", "0.894 over 0.4", "kernel"]
    expect(first).to_contain_text([*told, f"{STEPS - 1} on", f"{STEPS}, ", "nobody", ""])
    expect(rows.first.locator(".spark")).to_have_count(2)
    rows.first.get_by_role("link").click()
    expect(page.locator("#badge strong")).to_have_text("■ HALTED")
    page.keyboard.press("h")
    expect(page.locator("#badge strong")).to_have_text("■ 1 HALTED")


def test_runs_are_searched_filtered_sorted_and_turned_over(board: str, opened: Open) -> None:
    page = opened(board)
    rows = _rows(page)
    expect(page.get_by_role("heading", name=f"Runs 1 to 50 of {NEWER + 4}")).to_be_visible()
    page.get_by_role("button", name="next").click()
    expect(page.get_by_role("heading", name=f"Runs 51 to 100 of {NEWER + 4}")).to_be_visible()
    page.get_by_label("Search runs").fill("HALT")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("halted")
    page.reload()
    expect(rows).to_have_count(1)
    page.get_by_label("Search runs").fill("nobody")
    expect(page.locator("main")).to_contain_text("No run is like that")
    page.get_by_label("Search runs").fill("")
    page.get_by_role("button", name="SILENT 1").click()
    expect(rows).to_have_count(1)
    page.get_by_role("button", name="OK 1").click()
    expect(rows).to_have_count(2)
    page.get_by_role("button", name="SILENT 1").click()
    page.get_by_role("button", name="OK 1").click()
    page.get_by_label("sorted").select_option("newest")
    expect(rows.first).to_contain_text(f"newer-{NEWER - 1}")


def test_a_search_that_is_answered_late_does_not_undo_a_filter(board: str, opened: Open) -> None:
    page = opened(board)
    expect(_rows(page)).to_have_count(50)
    searched = hold_next(page, re.compile(r"/v1/runs\?search=halted&sort"))
    page.get_by_label("Search runs").fill("halted")
    late = searched()
    page.get_by_role("button", name="SILENT 1").click()
    expect(page.locator("main")).to_contain_text("No run is like that")
    late.fulfill(response=late.fetch())
    after_answers(page)
    assert _rows(page).count() == 0


def test_a_list_that_is_answered_late_does_not_undo_a_search(board: str, opened: Open) -> None:
    page = opened(board)
    expect(_rows(page)).to_have_count(50)
    listed = hold_next(page, re.compile(r"/v1/runs\?sort=newest"))
    page.get_by_label("sorted").select_option("newest")
    late = listed()
    page.get_by_label("Search runs").fill("halted")
    expect(_rows(page)).to_have_count(1)
    late.fulfill(response=late.fetch())
    after_answers(page)
    assert _rows(page).count() == 1


def test_what_happens_to_any_run_is_seen_on_the_first_screen(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url, httpx.Client(base_url=url) as http:
        post_recorded(url, steps=2)
        page = opened(url)
        expect(page.locator("#badge strong")).to_have_text("● 1 OK")
        expect(page.locator("#badge small")).to_have_text("of 1 run")
        expect(page.get_by_role("heading", name="1 run", exact=True)).to_be_visible()
        expect(page.locator("#live")).to_have_text("live")
        post_step(http, "recorded", 2, drifted(records_of(0), 0.9))
        expect(page.locator("#badge strong")).to_have_text("■ 1 PAUSE")
        expect(_rows(page).first).to_contain_text("0.894 over 0.4")


def test_every_run_is_found_by_a_part_of_its_name(board: str, opened: Open) -> None:
    page = opened(board, run="well")
    picker = page.get_by_label("Run", exact=True)
    expect(picker).to_have_value("well")
    picker.fill("alte")
    offered = page.locator("#run-names option")
    expect(offered).to_have_count(1)
    expect(offered).to_have_attribute("value", "halted")
    picker.fill("halted")
    picker.press("Enter")
    expect(page.locator("#badge strong")).to_have_text("■ HALTED")


def test_an_incident_says_what_to_do_and_is_compared_with_the_last_good_step(board: str, opened: Open) -> None:
    page = opened(board, run="halted", view="why")
    story = page.locator("article").first
    expect(story).to_contain_text(f"Step {STEPS}, image only: logprob_abs_diff_mean 0.894, limit 0.4; clean to step")
    expect(story).to_contain_text("What to do: Compare that module's dtype and options on both sides")
    expect(story).to_contain_text("docs/operating.md#kernel")
    rows = page.get_by_role("region", name="Against the last good step").locator("tbody tr")
    image = rows.filter(has_text="image").first.locator("td")
    expect(image).to_have_text(["image", "logprob_abs_diff_mean", "0.0223", "0.894", "0.05", "■ PAUSE"])


def test_an_incident_is_taken_in_hand_noted_and_ended(board: str, opened: Open) -> None:
    page = opened(board, run="parted", view="why")
    story = page.locator("article").first
    expect(story).to_contain_text("nobody has it in hand")
    story.get_by_role("button", name="Acknowledge").click()
    expect(story).to_contain_text("local has it in hand")
    story.get_by_label("Note").fill("the driver was upgraded <b>today</b>")
    with httpx.Client(base_url=board) as http:  # what is typed stays as the page is loaded again
        http.post("/v1/incidents/1/notes", json={"text": "on it"}).raise_for_status()
    page.keyboard.press("Tab")
    page.keyboard.press("r")
    story.get_by_role("button", name="Add note").click()
    expect(story).to_contain_text("local: the driver was upgraded <b>today</b>")
    page.keyboard.press("Escape")
    page.goto(f"{board}/#")
    expect(_rows(page).filter(has_text="parted").locator("td").nth(7)).to_have_text("local")
    page.goto(f"{board}/#run=parted&view=why")
    story.get_by_role("button", name="End", exact=True).click()
    page.locator("dialog").get_by_role("button", name="End").click()
    expect(story).to_contain_text(", over ")
    expect(page.locator("#badge strong")).to_have_text("● OK")


def test_a_halted_run_is_resumed_from_its_incident(tmp_path: Path, opened: Open) -> None:
    bridge = FakeBridge(figures=PART, cause=Cause.KERNEL)
    with live(tmp_path, bridge) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url, steps=1, gated=True)
        post_step(http, "recorded", 1, drifted(records_of(0), 0.9))
        page = opened(url, run="recorded")
        expect(page.locator("#badge strong")).to_have_text("■ HALTED")
        page.get_by_role("alert").get_by_role("button", name="Resume this run").click()
        page.locator("dialog").get_by_role("button", name="Resume").click()
        expect(page.locator("#badge strong")).to_have_text("● OK")
        expect(page.get_by_role("alert")).to_have_count(0)
        assert bridge.open_gate


def test_a_resumed_run_keeps_its_first_steps(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url)
        _resume_at_step_4(http)
        page = opened(url, run="recorded", kind="overall")
        expect(page.locator("#in-view")).to_have_text("steps 0 to 6")
        figures = page.get_by_role("region", name="Reward and training")
        figures.locator("summary", has_text="Table").first.click()
        cells = figures.locator("details[open] tbody tr")
        expect(cells).to_have_count(7)
        expect(cells.nth(4)).to_contain_text("0.250")
        page.get_by_label("attempt").select_option("1")
        expect(page.locator("#in-view")).to_have_text(f"steps 0 to {STEPS - 1}")
        expect(cells.nth(4)).not_to_contain_text("0.250")
        page.goto(f"{url}/#run=recorded&view=what&step=1")
        expect(page.get_by_role("heading", name="Worst samples of step 1")).to_be_visible()


def test_the_cause_is_looked_for_in_the_attempt_that_is_looked_at(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url)
        _resume_at_step_4(http)
        page = opened(url, run="recorded", view="why")
        assert _cause_asked_for(page, step=6)["attempt"] == 2
        page.goto(f"{url}/#run=recorded&view=why&step=1")
        assert _cause_asked_for(page, step=1)["attempt"] == 1
        page.goto(f"{url}/#run=recorded&view=why&step=5&attempt=1")
        assert _cause_asked_for(page, step=5)["attempt"] == 1


def _resume_at_step_4(http: httpx.Client) -> None:
    """A second attempt that does the last two steps again, and one more."""
    for step in (4, 5, 6):
        path = f"/v1/runs/recorded/attempts/2/steps/{step}"
        http.put(f"{path}/parts/0", json={"schema": "omni_rl.step/1", "records": records_of(0)}).raise_for_status()
        http.post(f"{path}/seal", json={"training": {"reward": 0.25}}).raise_for_status()


def _cause_asked_for(page: Page, *, step: int) -> dict[str, Any]:
    """Return what the button for the cause of a step asks the coordinator for."""
    page.get_by_role("button", name=f"Find the cause of step {step}").click()
    with page.expect_request(lambda request: request.method == "POST") as asked:
        page.get_by_role("button", name="Check", exact=True).click()
    body: dict[str, Any] = json.loads(asked.value.post_data or "")
    return body


def _rows(page: Page) -> Locator:
    return page.get_by_role("region", name="Runs", exact=True).locator("tbody tr")
