"""What is large stays readable: answers of 16,000 tokens, 64 engines; and what is well does not look ill."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from omni_rl.bridge.seam import ClusterState, ReplicaState
from tests.browser.conftest import Open
from tests.browser.recorded import STEPS, post_recorded, post_step
from tests.services.fake_bridge import FakeBridge
from tests.services.live import live

pytestmark = pytest.mark.slow
TOKENS, OFF, BY = 16_000, 15_990, 9.25
ENGINES, DEAD, BEHIND = 64, 37, (5, 6)


@dataclass
class Crowd(FakeBridge):
    """64 engines: one is dead, two have older weights than the others."""

    async def state(self) -> ClusterState:
        found = await super().state()
        engines = (self._engine(number) for number in range(ENGINES))
        return ClusterState(True, "", found.address, found.run, found.gate, (*engines, found.members[-1]))

    def _engine(self, number: int) -> ReplicaState:
        version = "digits/1/3/aaaaaaaa" if number in BEHIND else self.version
        return ReplicaState(f"rollout-{number}", "rollout", version, "dead" if number == DEAD else "serving")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("large"), Crowd()) as url, httpx.Client(base_url=url, timeout=60) as http:
        post_recorded(url)
        http.post("/v1/runs", json={"run": "long", "model": "m", "dtype": "bfloat16"}).raise_for_status()
        post_step(http, "long", 0, [_long_answer()])
        yield url


def test_the_worst_token_of_a_long_answer_is_drawn_and_told(large: str, opened: Open) -> None:
    page = opened(large, run="long", view="what")
    page.set_viewport_size({"width": 1440, "height": 1200})
    expect(page.locator(".detail")).to_contain_text(f"#{OFF} ")
    expect(page.locator(".detail")).to_contain_text(f"d \u2212{BY:.2f}")
    chosen = page.locator(".strip > .chosen")
    expect(chosen).to_have_text(f" w{OFF}")
    expect(chosen).to_have_attribute("data-heat", "-4")
    expect(chosen).to_be_in_viewport()


def test_one_jumps_to_the_tokens_that_are_furthest_off(large: str, opened: Open) -> None:
    page = opened(large, run="long", view="what")
    jumps = page.locator(".worst button")
    expect(jumps).to_have_count(5)
    expect(jumps.first).to_have_text(f"#{OFF}: \u2212{BY:.2f}")
    jumps.nth(1).click()
    second = jumps.nth(1).inner_text().split(":")[0]
    expect(page.locator(".detail")).to_contain_text(f"{second} ")
    expect(page.locator(".strip > .chosen")).to_be_in_viewport()


def test_a_dead_engine_among_sixty_four_is_seen_at_once(large: str, opened: Open) -> None:
    page = opened(large, run="recorded")
    expect(page.locator(f"#fact-rollout-{DEAD}")).to_be_visible()
    dead = page.locator(".facts div.bad")
    expect(dead).to_have_count(1)
    expect(dead).to_contain_text("■ dead")
    serving = page.locator(".facts div", has_text="engines serving")
    expect(serving).to_contain_text(str(ENGINES - 1))
    expect(serving).to_contain_text("apart: rollout-5, rollout-6")
    assert page.locator(".facts > div").count() < 10
    height = page.locator("#head").bounding_box()
    assert height is not None
    assert height["height"] < 200


def test_a_map_of_a_run_that_is_well_has_no_cell_that_warns(large: str, opened: Open) -> None:
    page = opened(large, run="recorded", view="where", step=STEPS - 1)
    cells = page.get_by_role("table", name="logprob_abs_diff_mean by kind and position").locator(".cell")
    expect(cells.first).to_be_visible()
    levels = cells.evaluate_all("(cells) => cells.map((cell) => Number(cell.dataset.heat))")
    assert len(levels) > 10
    assert max(levels) <= 0
    key = page.locator("section", has=page.get_by_role("heading", name="position in the answer")).locator(".keyline")
    expect(key).to_contain_text("over pause")
    flips = page.get_by_role("table", name="Router flips by layer and step").locator(".cell")
    assert max(flips.evaluate_all("(cells) => cells.map((cell) => Number(cell.dataset.heat))")) <= 0


def _long_answer() -> dict[str, Any]:
    noise = random.Random(0)
    rollout = [-1 - noise.random() for _ in range(TOKENS)]
    train = [value + 0.02 * (noise.random() - 0.5) for value in rollout]
    train[OFF] = rollout[OFF] - BY
    texts = [f" w{position}" for position in range(TOKENS)]
    ids = [noise.randrange(1000) for _ in range(TOKENS)]
    both = {"rollout_logprobs": rollout, "train_logprobs": train}
    return {"sample": "long/0", "kind": "text", "prompt_tokens": 1, "ids": ids, "token_texts": texts, **both}
