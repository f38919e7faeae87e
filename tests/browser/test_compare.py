"""Several runs over each other, against one that is pinned, and in what their configurations differ."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.browser.recorded import post_step, records_of
from tests.services.live import live

pytestmark = pytest.mark.slow
REWARDS = {"first": 0.25, "second": 0.5, "third": 0.75}
STALE_SECONDS = {"first": 60.0, "second": 120.0, "third": 120.0}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("three")) as url, httpx.Client(base_url=url, timeout=30) as http:
        for run, reward in REWARDS.items():
            body = {"run": run, "model": "m", "dtype": "bfloat16", "silent_after": STALE_SECONDS[run]}
            http.post("/v1/runs", json=body).raise_for_status()
            post_step(http, run, 0, records_of(0), {"reward": reward})
        yield url


def test_several_runs_lie_over_the_one_that_is_pinned(three: str, opened: Open, tmp_path: Path) -> None:
    page = opened(three, run="first", view="compare", metric="reward", **{"with": "second"})
    expect(page.locator(".keyline", has_text="is pinned")).to_contain_text("first is pinned")
    page.get_by_label("Add a run").fill("third")
    page.get_by_label("Add a run").press("Enter")
    cells = page.locator("details[open] tbody tr td")
    page.locator("summary", has_text="Table").first.click()
    expect(cells).to_have_text(["0", "0.250", "0.500", "0.750"])
    with page.expect_download() as download:
        page.get_by_role("button", name="compare as CSV").click()
    download.value.save_as(tmp_path / "compare.csv")
    with (tmp_path / "compare.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert {run: float(row[run]) for run in REWARDS} == REWARDS
    page.get_by_role("button", name="Pin third").click()
    expect(page.locator(".keyline", has_text="is pinned")).to_contain_text("third is pinned")
    page.get_by_role("button", name="Take first out").click()
    expect(cells).to_have_text(["0", "0.750", "0.500"])


@pytest.mark.parametrize("name", ["nobody", "no name!"])
def test_a_run_that_is_not_there_is_left_out(three: str, opened: Open, name: str) -> None:
    page = opened(three, run="first", view="compare", **{"with": "second"})
    add = page.get_by_label("Add a run")
    add.fill(name)
    add.press("Enter")
    page.wait_for_function("() => location.hash.includes('with=second%2Cno')")
    add.fill("third")
    add.press("Enter")
    expect(page.locator(".chip")).to_have_text([re.compile(r"^ ?second"), re.compile(r"^ ?third")])
    page.wait_for_function("() => location.hash.includes('with=second%2Cthird')")


def test_what_differs_in_their_configurations_is_listed_and_nothing_else(three: str, opened: Open) -> None:
    page = opened(three, run="first", view="compare", **{"with": "second"})
    rows = page.get_by_role("region", name="Configurations").locator("tbody tr")
    expect(rows).to_have_count(1)
    expect(rows.first.locator("td")).to_have_text(["silent_after", "60", "120"])
    page.goto(f"{three}/#run=second&view=compare&with=third")
    expect(page.locator("main")).to_contain_text("in nothing but their names")
