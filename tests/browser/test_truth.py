"""The page says what is so: the run that a link names and no other, and nothing green without steps that show it."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from omni_rl_services.coordinator.auth import new_token
from omni_rl_services.coordinator.settings import TokenEntry
from playwright.sync_api import Page, expect

from omni_rl.api.state import Scope
from omni_rl.consistency.actions import Cause
from tests.browser.conftest import Open
from tests.browser.recorded import STEPS, drifted, post_recorded, post_step, records_of
from tests.services.fake_bridge import PART, FakeBridge
from tests.services.live import live

pytestmark = pytest.mark.slow
NEWER = 120
"""Runs that were made after the one that halted."""
GREEN = "rgb(0, 112, 79)"
"""--ok of the light theme."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A run that halted, and more runs after it than the coordinator tells of at once; none of these has a step."""
    bridge = FakeBridge(figures=PART, cause=Cause.KERNEL)
    with live(tmp_path_factory.mktemp("many"), bridge) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url, "halted", gated=True)
        post_step(http, "halted", STEPS, drifted(records_of(0), 0.9))
        _until(http, "halted", "gate", "halted")
        for number in range(NEWER):
            body = {"run": f"newer-{number}", "model": "m", "dtype": "bfloat16"}
            http.post("/v1/runs", json=body).raise_for_status()
        yield url


def test_a_link_shows_the_run_that_it_names_however_old_it_is(many: str, opened: Open) -> None:
    page = opened(many, run="halted")
    expect(page.locator("#badge strong")).to_have_text("■ HALTED")
    expect(page.locator("#fact-step")).to_have_text(str(STEPS))
    expect(page).to_have_title("HALTED · halted · omni-rl drift")


def test_a_link_to_a_run_that_is_not_there_says_so_and_shows_no_other(many: str, opened: Open) -> None:
    page = opened(many, run="hatled")
    expect(page.locator("#badge strong")).to_have_text("○ NOT FOUND")
    expect(page.locator("main").get_by_role("alert")).to_contain_text("There is no run hatled")
    expect(page).to_have_title("NOT FOUND · hatled · omni-rl drift")
    expect(page.locator("#fact-step")).to_have_count(0)
    _is_not_green(page)


def test_a_run_without_a_step_agrees_about_nothing(many: str, opened: Open) -> None:
    page = opened(many, run="newer-1")
    expect(page.locator("#badge strong")).to_have_text("○ NO STEPS")
    expect(page.locator("#badge")).not_to_contain_text("agree")
    expect(page).to_have_title("NO STEPS · newer-1 · omni-rl drift")
    _is_not_green(page)


def test_a_run_whose_steps_stopped_is_silent_whatever_its_last_step_was(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url, httpx.Client(base_url=url) as http:
        post_recorded(url, steps=1, silent_after=0.5)
        page = opened(url, run="recorded")
        expect(page.locator("#badge strong")).to_have_text("◌ SILENT")
        expect(page.locator("#badge small")).to_have_text("no step comes any more; its last step was ok")
        expect(page).to_have_title("SILENT · recorded · omni-rl drift")
        _is_not_green(page)
        http.post("/v1/runs/recorded/end").raise_for_status()
        expect(page.locator("#badge strong")).to_have_text("□ ENDED")
        _is_not_green(page)


def test_a_gated_run_whose_cluster_is_not_seen_is_unknown(tmp_path: Path, opened: Open) -> None:
    bridge = FakeBridge()
    with live(tmp_path, bridge) as url:
        post_recorded(url, "digits", steps=1, gated=True)
        page = opened(url, run="digits")
        expect(page.locator("#badge strong")).to_have_text("● OK")
        bridge.down = "the head of Ray is gone"
        expect(page.locator("#badge strong")).to_have_text("? UNKNOWN")
        expect(page).to_have_title("UNKNOWN · digits · omni-rl drift")
        _is_not_green(page)


def test_a_coordinator_that_is_gone_leaves_nothing_green(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url:
        post_recorded(url, steps=1)
        page = opened(url, run="recorded")
        expect(page.locator("#live")).to_have_text("live")
        expect(page.locator("#badge strong")).to_have_text("● OK")
    expect(page.locator("#badge strong")).to_have_text("✕ DISCONNECTED")
    expect(page.locator("#badge small")).to_have_text("when last seen: ● OK")
    expect(page).to_have_title("DISCONNECTED · recorded · omni-rl drift")
    _is_not_green(page)
    page.close()


def test_a_coordinator_that_hangs_is_as_good_as_gone(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url:
        post_recorded(url, steps=1)
        page = opened(url, run="recorded")
        expect(page.locator("#badge strong")).to_have_text("● OK")
        page.clock.install()
        page.reload()
        expect(page.locator("#badge strong")).to_have_text("● OK")
        page.route("**/v1/state", lambda route: None)  # never answered
        page.keyboard.press("r")
        page.clock.run_for(40_000)
        expect(page.locator("#badge strong")).to_have_text("✕ DISCONNECTED")
        page.unroute("**/v1/state")
        page.keyboard.press("r")
        expect(page.locator("#badge strong")).to_have_text("● OK")


@pytest.mark.parametrize("view", ["what", "where"])
def test_a_step_that_is_not_there_leaves_the_way_back(recorded: str, opened: Open, view: str) -> None:
    page = opened(recorded, run="recorded", view=view, step=77)
    expect(page.locator("main").get_by_role("alert")).to_contain_text("is not sealed")
    page.get_by_role("button", name=f"latest ({STEPS - 1})").click()
    expect(page.locator("main").get_by_role("alert")).to_have_count(0)
    expect(page.get_by_label("Step", exact=True)).to_have_value(str(STEPS - 1))


def test_times_name_their_zone(recorded: str, opened_in_kolkata: Open) -> None:
    page = opened_in_kolkata(recorded, run="recorded", view="why")
    page.get_by_role("button", name="Check the probe now").click()
    page.get_by_role("button", name="Check", exact=True).click()
    expect(page.get_by_role("region", name="Checks", exact=True)).to_contain_text("UTC+5:30")


def test_who_logged_in_can_log_out(tmp_path: Path, opened: Open) -> None:
    token, digest = new_token()
    with live(tmp_path, tokens=(TokenEntry(name="ann", scope=Scope.READ, sha256=digest),)) as url:
        page = opened(url)
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Token")).to_be_visible()
        assert page.context.cookies() == []


def _is_not_green(page: Page) -> None:
    colours = page.locator("#badge, #badge *").evaluate_all("(all) => all.map((one) => getComputedStyle(one).color)")
    assert GREEN not in colours


def _until(http: httpx.Client, run: str, field: str, value: str) -> None:
    while http.get(f"/v1/runs/{run}").json()["drift"][field] != value:
        time.sleep(0.01)
