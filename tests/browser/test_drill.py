"""The drill, of a posted run: a fault, and a person is woken, finds the right run, takes it in hand and ends it."""

import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser import drill
from tests.browser.conftest import Open
from tests.browser.recorded import STEPS, drifted, post_recorded, post_step, records_of
from tests.services.live import live
from tests.services.receiver import receiving

pytestmark = pytest.mark.slow


def test_a_fault_of_a_run_that_is_posted_wakes_somebody_who_finds_and_ends_it(tmp_path: Path, opened: Open) -> None:
    with (
        receiving() as receiver,
        live(tmp_path, pager=drill.pager(receiver)) as url,
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        for number in range(60):
            http.post("/v1/runs", json={"run": f"other-{number}", "model": "m", "dtype": "bfloat16"}).raise_for_status()
        post_recorded(url)
        page = opened(url)
        expect(page.locator("#badge strong")).to_have_text("○ 60 NO STEPS")
        expect(page.locator("#live")).to_have_text("live")
        before, sealed = len(receiver.got), time.time()
        post_step(http, "recorded", STEPS, drifted(records_of(0), 0.9))
        told = drill.told(receiver, before, sealed)
        assert (told.json["incident"]["run"], told.json["incident"]["step"]) == ("recorded", STEPS)
        drill.found_on_top(page, "recorded")
        story = drill.story(page, "recorded")
        story.get_by_role("button", name="Acknowledge").click()
        expect(story).to_contain_text("local has it in hand")
        story.get_by_role("button", name="End", exact=True).click()
        page.locator("dialog").get_by_role("button", name="End").click()
        expect(story).to_contain_text(", over ")
        expect(page.locator("#badge strong")).to_have_text("● OK")
        states = [received.json["state"] for received in receiver.wait(before + 3)[before:]]
        assert states == ["open", "acknowledged", "ended"]
