"""A sample among the answers to its prompt, and turn by turn: what the model sampled, and what it was given."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.browser.recorded import post_step
from tests.services.live import live

pytestmark = pytest.mark.slow
TEXTS = ["<tool_call>", "add", "(2,3)", "</tool_call>", "5", " is", " the", " sum"]
GIVEN = (4,)
"""Positions of the tool's output."""


def answer(name: str, reward: float, by: float, texts: list[str] | None = None) -> dict[str, Any]:
    size = 8
    rollout = [-1.0] * size
    return {
        "sample": name,
        "kind": "text",
        "prompt_tokens": 1,
        "ids": list(range(size)),
        "rollout_logprobs": rollout,
        "train_logprobs": [value - by for value in rollout],
        "reward": reward,
        "token_texts": texts or [f" w{position}" for position in range(size)],
        "loss_mask": [texts is None or position not in GIVEN for position in range(size)],
    }


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A step of two groups: one as our job names its answers, one as a watched trainer's are named."""
    with live(tmp_path_factory.mktemp("grpo")) as url, httpx.Client(base_url=url, timeout=30) as http:
        http.post("/v1/runs", json={"run": "math", "model": "m", "dtype": "bfloat16"}).raise_for_status()
        ours = [answer("sum/0.0", 1.0, 0.9, TEXTS), answer("sum/0.1", 0.0, 0.1), answer("sum/1.0", 0.5, 0.2)]
        theirs = [answer("7f3a/0", 0.25, 0.3), answer("7f3a/1", 0.75, 0.15), answer("alone", 0.0, 0.05)]
        post_step(http, "math", 0, [*ours, *theirs])
        yield url


def test_a_sample_is_seen_among_the_answers_to_its_prompt(grpo: str, opened: Open) -> None:
    page = opened(grpo, run="math", view="what")
    rows = page.get_by_role("region", name="Answers to the same prompt", exact=True).locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0).locator("td").nth(0)).to_have_text("sum/0.0")
    expect(rows.nth(0).locator("td").nth(2)).to_contain_text("0.500")
    expect(rows.nth(1).locator("td").nth(0)).to_have_text("sum/0.1")
    expect(rows.nth(1)).to_contain_text("w0 w1")
    rows.nth(1).click()
    expect(page.get_by_role("heading", name="Sample sum/0.1")).to_be_visible()
    page.goto(f"{grpo}/#run=math&view=what&sample=7f3a/1&rank=0")
    expect(rows.locator("td:first-child")).to_have_text(["7f3a/0", "7f3a/1"])
    page.goto(f"{grpo}/#run=math&view=what&sample=alone&rank=0")
    expect(page.get_by_role("heading", name="Sample alone")).to_be_visible()
    expect(rows).to_have_count(0)


def test_kept_samples_are_sorted_by_any_of_their_columns(grpo: str, opened: Open) -> None:
    page = opened(grpo, run="math", view="what", sample="alone", rank=0)
    region = page.get_by_role("region", name="Worst samples")
    names = region.locator("tbody td:first-child")
    expect(names.first).to_have_text("sum/0.0")
    region.get_by_role("button", name="sample").click()
    expect(names).to_have_text(["7f3a/0", "7f3a/1", "alone", "sum/0.0", "sum/0.1", "sum/1.0"])
    region.get_by_role("button", name="sample").click()
    expect(names.first).to_have_text("sum/1.0")
    region.get_by_role("button", name="seq_mult_prob_error").click()
    expect(names.first).to_have_text("sum/0.0")
    page.reload()
    region.get_by_role("button", name="seq_mult_prob_error").click()
    expect(names.first).to_have_text("alone")
    expect(region.get_by_role("columnheader", name="seq_mult_prob_error")).to_have_attribute("aria-sort", "ascending")


def test_an_answer_is_read_turn_by_turn(grpo: str, opened: Open) -> None:
    page = opened(grpo, run="math", view="what")
    turns = page.get_by_role("region", name="Turns", exact=True).locator("tbody tr")
    expect(turns).to_have_count(3)
    told = [turns.nth(at).locator("td").all_inner_texts()[:4] for at in range(3)]
    assert told[0] == ["1", "model, calls a tool", "0 to 3", "0.900"]
    assert told[1] == ["2", "given", "4 to 4", "not judged"]
    assert told[2][:3] == ["3", "model", "5 to 7"]
    expect(turns.nth(1)).to_contain_text("5")
    turns.nth(2).click()
    expect(page.locator(".detail")).to_contain_text("#5 ")
    page.goto(f"{grpo}/#run=math&view=what&sample=alone&rank=0")
    expect(page.get_by_role("heading", name="Sample alone")).to_be_visible()
    expect(turns).to_have_count(0)
