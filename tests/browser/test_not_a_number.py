"""Figures that are not numbers say so on every page: not 0, not a dash, not green."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from omni_rl.api.runs import RunBody
from omni_rl.api.syncs import SyncBody
from omni_rl.client import Client
from tests.browser.conftest import Open
from tests.services.fake_bridge import LOST, FakeBridge
from tests.services.live import live

pytestmark = pytest.mark.slow
NOT = "not a number"
NONE = "\u2013"
"""No such figure."""
LOGPROBS = [-1.0, -2.0, -0.5]


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A coordinator with three steps, the second without numbers, a sync that was allowed all the same, and a check."""
    bridge = FakeBridge(figures=LOST, nonfinite=("layers.3.A_log: 17 NaN of 64 elements",))
    with live(tmp_path_factory.mktemp("lost"), bridge) as url, Client(url) as client:
        client.create_run(RunBody(run="digits", model="m", dtype="float32"))
        for step in (1, 2, 3):
            train = [math.nan] * len(LOGPROBS) if step == 2 else LOGPROBS
            record = {"sample": "a", "kind": "text", "rollout_logprobs": LOGPROBS, "train_logprobs": train}
            client.put_part("digits", 1, step, 0, [record])
            client.seal("digits", 1, step, parts=1)
        client.sync(SyncBody(allow_nonfinite=True))
        client.check()
        yield url


def test_the_timeline_counts_them_and_its_table_names_them(lost: str, opened: Open, tmp_path: Path) -> None:
    page = opened(lost, run="digits", view="timeline")
    expect(page.locator("#in-view")).to_contain_text(f"steps 1 to 3, in 1 of them figures are {NOT}")
    panel = page.locator("section.panel", has=page.get_by_text("Table")).first
    panel.get_by_text("Table").click()
    row = panel.locator("tbody tr").nth(1)
    expect(row.locator("td").nth(2)).to_have_text(NOT)
    with page.expect_download() as download:
        panel.get_by_role("button", name="as CSV").click()
    download.value.save_as(tmp_path / "timeline.csv")
    with (tmp_path / "timeline.csv").open() as file:
        saved = list(csv.reader(file))
    assert saved[2][3] == "nan"
    assert float(saved[1][3]) == 0


def test_a_step_its_samples_and_their_tokens(lost: str, opened: Open) -> None:
    page = opened(lost, run="digits", view="what", step=2)
    expect(page.get_by_role("region", name="Worst samples").locator("tbody td").nth(3)).to_have_text(NOT)
    expect(page.locator(".detail")).to_contain_text(f"train {NOT}")
    expect(page.locator(".detail")).to_contain_text(f"d {NOT}")
    page.goto(f"{lost}/#run=digits&view=where&step=2")
    cell = page.get_by_role("table", name="logprob_abs_diff_mean by kind and position").locator(".cell").first
    expect(cell).to_have_text("nan")
    expect(cell).to_have_attribute("title", f"overall, answer positions 0 to 7: {NOT}")
    expect(cell).to_have_attribute("data-heat", "4")


def test_a_check_and_a_sync(lost: str, opened: Open) -> None:
    page = opened(lost, run="digits", view="why")
    expect(page.get_by_role("heading", name="Check 1 of the probe: PAUSE")).to_be_visible()
    rows = page.get_by_role("region", name="Train against rollout").locator("tbody tr")
    expect(rows.nth(0).locator("td")).to_have_text(["overall", "160", NOT, NOT, NONE])
    expect(rows.nth(2).locator("td")).to_have_text(["video", "0", NONE, NONE, NONE])
    expect(page.get_by_role("table", name="Legs by kind of prompt").locator(".leg .num").first).to_have_text(NOT)
    page.goto(f"{lost}/#run=digits&view=syncs")
    expect(page.get_by_role("region", name="Agreement by kind")).to_contain_text(NOT)
    expect(page.get_by_text("not finite, as allowed: layers.3.A_log: 17 NaN of 64 elements").first).to_be_visible()
