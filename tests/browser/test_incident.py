"""An incident as whoever is woken by it sees it: a gated run that parted from its trainer, and a sync that failed."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from omni_rl.consistency.actions import Cause
from omni_rl.errors import ReplicaDeadError
from tests.browser.conftest import Open
from tests.browser.recorded import STEPS, drifted, post_recorded, post_step, records_of
from tests.services.fake_bridge import PART, FakeBridge
from tests.services.live import live

pytestmark = pytest.mark.slow
WRONG = "rollout-0: language_model.layers.3.mixer.D differs from the slab in 64 of 64 elements"


@pytest.fixture(scope="module")
def halted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A run whose gate is shut for good, one sync that was committed and a later one that was not."""
    bridge = FakeBridge()
    with live(tmp_path_factory.mktemp("halted"), bridge) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url, gated=True)
        http.post("/v1/syncs?wait=true", json={}).raise_for_status()
        bridge.sync_error = ReplicaDeadError(WRONG)
        http.post("/v1/syncs?wait=true", json={})
        bridge.sync_error = None
        bridge.figures, bridge.cause = PART, Cause.KERNEL
        post_step(http, "recorded", STEPS, drifted(records_of(0), 0.9))
        while http.get("/v1/runs/recorded").json()["drift"]["gate"] != "halted":
            time.sleep(0.01)
        yield url


def test_the_alarm_says_its_cause_and_what_was_done(halted: str, opened: Open) -> None:
    page = opened(halted, run="recorded")
    expect(page.locator("#badge strong")).to_have_text("■ HALTED")
    alarm = page.get_by_role("alert")
    expect(alarm.get_by_role("heading")).to_have_text(f"■ PAUSE at step {STEPS}: kernel")
    lines = alarm.get_by_role("paragraph")
    expect(lines.nth(0)).to_contain_text("The kernel check found it")
    expect(lines.nth(1)).to_contain_text("What to do: Compare that module's dtype")
    expect(alarm).to_contain_text("Done: generation is stopped until a person resumes it")
    alarm.get_by_role("link", name="evidence").click()
    evidence = page.get_by_role("region", name="Evidence").first.locator("tbody tr")
    expect(evidence.nth(0)).to_contain_text("▲ suspicious")
    expect(evidence.nth(0)).to_contain_text("engine mean: 0.900")
    expect(evidence.nth(1)).to_contain_text("■ explains")
    whole = "(region) => region.scrollHeight <= region.clientHeight"
    assert page.get_by_role("region", name="Evidence").first.evaluate(whole)
    page.locator("main").get_by_role("link", name="worst samples").first.click()
    expect(page.get_by_role("heading", name=f"Worst samples of step {STEPS}")).to_be_visible()


def test_the_time_since_the_last_sync_ticks_and_is_that_of_one_that_brought_weights(halted: str, opened: Open) -> None:
    page = opened(halted, run="recorded")
    last = page.locator("#fact-last-sync")
    expect(last).to_have_text(re.compile(r"^\d+ s ago$"))
    page.route("**/v1/**", lambda route: route.abort())  # so that nothing is loaded again
    before = last.inner_text()
    page.wait_for_function("(text) => document.querySelector('#fact-last-sync').innerText !== text", arg=before)
    with httpx.Client(base_url=halted) as http:
        failed, committed = http.get("/v1/syncs").json()
    assert failed["outcome"] != "committed"
    assert float(page.locator("#fact-last-sync time").get_attribute("data-at") or "") == committed["finished"]
    expect(page.locator(".facts div", has_text="last sync")).to_contain_text("▲ one since failed")


def test_a_failed_sync_names_the_tensor(halted: str, opened: Open) -> None:
    page = opened(halted, run="recorded", view="syncs")
    rows = page.get_by_role("region", name="Syncs", exact=True).locator("tbody tr")
    expect(rows.first).to_contain_text("failed")
    expect(rows.first).to_contain_text(WRONG)
    expect(page.locator("p.pause")).to_have_text(WRONG)
    rows.last.press("Enter")
    water = page.locator(".water")
    expect(water).to_have_attribute("aria-label", "prepare 200 ms, apply 10 ms, verify 80 ms")
    widths = water.locator(".fill").evaluate_all("(bars) => bars.map((bar) => Number.parseFloat(bar.style.width))")
    assert widths == pytest.approx([100 * part / 0.29 for part in (0.2, 0.01, 0.08)], rel=1e-3)
    expect(rows.last).to_contain_text("296 MB/s")


def test_a_check_beside_the_syncs_leads_to_what_it_found(halted: str, opened: Open) -> None:
    page = opened(halted, run="recorded", view="syncs")
    page.get_by_role("button", name="Check both policies").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("main").get_by_role("link", name="check")).to_have_count(0)
    page.get_by_role("button", name="Check both policies").click()
    page.get_by_role("button", name="Check", exact=True).click()
    told = page.locator("main").get_by_role("status").filter(has_text="the kernel check found it")
    expect(told).to_contain_text("■ PAUSE")
    told.get_by_role("link").click()
    expect(page.get_by_role("heading", name=re.compile(r"^Check \d+ of the probe: PAUSE"))).to_be_visible()


def test_a_person_resumes_it(tmp_path: Path, opened: Open) -> None:
    bridge = FakeBridge()
    with live(tmp_path, bridge) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url, steps=1, gated=True)
        http.post("/v1/pause", json={"reason": "the cluster is being moved"}).raise_for_status()
        page = opened(url, run="recorded")
        expect(page.locator("#fact-generation")).to_contain_text("■ stopped")
        expect(page.locator(".facts")).to_contain_text("the cluster is being moved")
        page.get_by_role("button", name="Resume").click()
        page.locator("dialog").get_by_role("button", name="Cancel").click()
        assert not bridge.open_gate
        page.get_by_role("button", name="Resume").click()
        page.locator("dialog").get_by_role("button", name="Resume").click()
        expect(page.locator("#fact-generation")).to_contain_text("goes on")
        assert bridge.open_gate


def test_a_pause_or_a_resume_that_fails_says_so(tmp_path: Path, opened: Open) -> None:
    with live(tmp_path) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url, steps=1)
        page = opened(url, run="recorded")
        refusal = {"title": "No cluster", "detail": "nothing can be paused"}
        page.route("**/v1/pause", lambda route: route.fulfill(status=503, json=refusal), times=1)
        _press(page, "Pause")
        failed = page.locator("#head .error")
        expect(failed).to_contain_text("nothing can be paused")
        post_step(http, "recorded", 1, records_of(0))
        expect(page.locator("#fact-step")).to_have_text("1")
        expect(failed).to_be_visible()  # though the head was drawn anew
        _press(page, "Pause")
        expect(page.locator("#fact-generation")).to_contain_text("■ stopped")
        expect(failed).to_have_count(0)
        page.route("**/v1/resume", lambda route: route.abort(), times=1)
        _press(page, "Resume")
        expect(failed).to_contain_text("The coordinator does not answer")
        page.keyboard.press("4")
        expect(page.get_by_role("button", name="Check the probe now")).to_be_visible()
        expect(failed).to_have_count(0)


@pytest.mark.parametrize("place", [{"run": "recorded"}, {"run": "recorded", "view": "why"}])
def test_what_an_incident_refused_is_said_until_its_reader_goes_on(
    tmp_path: Path, opened: Open, place: dict[str, str]
) -> None:
    with live(tmp_path, FakeBridge(sync_error=ReplicaDeadError(WRONG))) as url, httpx.Client(base_url=url) as http:
        post_recorded(url, steps=1)
        post_step(http, "recorded", 1, drifted(records_of(0), 0.9))
        http.post("/v1/syncs?wait=true", json={})
        page = opened(url, **place)
        card = page.locator("[data-incident]").first
        refusal = {"title": "The ledger is locked", "detail": "nobody can be noted now"}
        page.route("**/acknowledge", lambda route: route.fulfill(status=503, json=refusal), times=1)
        card.get_by_role("button", name="Acknowledge").click()
        refused = page.locator("[data-incident] .error")
        expect(refused).to_contain_text("nobody can be noted now")
        path = f"/v1/incidents/{card.get_attribute('data-incident')}/notes"
        http.post(path, json={"text": "on it"}).raise_for_status()
        expect(card).to_contain_text("on it")
        expect(refused).to_be_visible()  # though the card was drawn anew
        page.keyboard.press("5")
        expect(page.get_by_role("region", name="Syncs", exact=True)).to_be_visible()
        expect(refused).to_have_count(0)


@pytest.mark.parametrize("place", [{}, {"view": "why"}])
def test_an_address_of_an_incident_alone_is_of_its_run(halted: str, opened: Open, place: dict[str, str]) -> None:
    with httpx.Client(base_url=halted) as http:
        number = http.get("/v1/runs/recorded").json()["incident"]
        http.post("/v1/runs", json={"run": "newer", "model": "m", "dtype": "bfloat16"}).raise_for_status()
    page = opened(halted, **place, incident=number)
    expect(page.locator("#badge strong")).to_have_text("■ HALTED")
    expect(page).to_have_title(re.compile("recorded"))
    card = page.locator(f"article[data-incident='{number}']")
    expect(card.get_by_role("button", name="Resume this run")).to_be_visible()
    expect(page.get_by_role("button", name=f"Find the cause of step {STEPS}")).to_be_visible()


def test_an_address_of_no_incident_says_so(halted: str, opened: Open) -> None:
    page = opened(halted, view="why", incident=4711)
    expect(page.locator("main .error")).to_contain_text("4711")


def _press(page: Page, name: str) -> None:
    page.locator("#fact-generation").get_by_role("button", name=name).click()
    page.locator("dialog").get_by_role("button", name=name).click()
