"""The timeline shows unasked what went wrong: the kind that breaches first, each figure with its own limits."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from omni_rl.kinds import KINDS, OVERALL
from tests.browser.conftest import Open
from tests.browser.recorded import STEPS, drifted, post_recorded, post_step, records_of
from tests.services.live import live

pytestmark = pytest.mark.slow
PAUSE, WARN = (179, 63, 0), (138, 90, 0)
"""Colours of limits in the light theme."""


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A run of which audio alone parts, and one that is well."""
    with live(tmp_path_factory.mktemp("audio")) as url, httpx.Client(base_url=url, timeout=30) as http:
        post_recorded(url)
        post_recorded(url, "well")
        rewards = {"staleness": 1.5, "reward": 0.5}
        post_step(http, "recorded", STEPS, drifted(records_of(0), 0.5, "audio"), rewards)
        yield url


def test_the_kind_that_breaches_stands_first_and_says_so(audio: str, opened: Open) -> None:
    page = opened(audio, run="recorded")
    panels = page.locator("section.panel", has=page.locator(".chart"))
    first = panels.first
    expect(first.get_by_role("heading")).to_have_text("audio: logprob_abs_diff_mean, nats")
    expect(first.locator(".sign")).to_contain_text(f"■ PAUSE at step {STEPS}: 0.5")
    expect(first.locator(".sign")).to_contain_text("limit 0.4")
    headings = [text.split(":")[0] for text in page.locator(".two:not(.stacked .two) h2").all_inner_texts()]
    assert sorted(headings) == sorted([OVERALL, *KINDS])
    expect(panels.filter(has_text="text: ").locator(".sign")).to_have_text("")


def test_a_run_that_is_well_starts_with_all_its_prompts(audio: str, opened: Open) -> None:
    page = opened(audio, run="well")
    expect(page.locator(".chart").first).to_be_visible()
    expect(page.locator(".two h2").first).to_have_text("overall: logprob_abs_diff_mean, nats")
    assert [text for text in page.locator(".panel .sign").all_inner_texts() if text] == []


def test_limits_are_drawn_on_the_figure_that_they_are_of(audio: str, opened: Open) -> None:
    page = opened(audio, run="recorded", kind="audio")
    assert _colours(page, "audio: logprob_abs_diff_mean, nats as PNG") >= {PAUSE, WARN}
    page.goto(f"{audio}/#run=recorded&kind=audio&x=0-{STEPS - 1}")  # without the mark of the severity's change
    expect(page.locator("#in-view")).to_have_text(f"steps 0 to {STEPS - 1}")
    assert not _colours(page, "audio: logprob_abs_diff_max, nats as PNG") & {PAUSE, WARN}
    assert WARN in _colours(page, "audio: gen_kl_error, nats as PNG")


def test_every_figure_is_explained(audio: str, opened: Open) -> None:
    page = opened(audio, run="recorded", kind="audio")
    titles = page.locator(".panel h2 .explained")
    expect(titles.first).to_have_attribute(
        "title",
        "mean of abs d over the tokens that count; d is the trainer's "
        "logprob of a sampled token less the engine's. 0 is agreement.",
    )
    expect(page.get_by_role("heading", name="reward, mean").locator("span")).to_have_attribute(
        "title", "mean reward of the step's answers, as the trainer posted it."
    )


def test_how_old_the_weights_were_is_drawn_with_the_training_figures(audio: str, opened: Open) -> None:
    page = opened(audio, run="recorded")
    heading = page.get_by_role("heading", name="staleness, syncs")
    expect(heading.locator("span")).to_have_attribute("title", re.compile("how many syncs ago the weights were served"))


def test_training_figures_are_smoothed_if_asked(audio: str, opened: Open) -> None:
    page = opened(audio, run="recorded")
    figures = page.get_by_role("region", name="Reward and training")
    figures.locator("summary", has_text="Table").first.click()
    last = figures.locator("details[open] tbody tr").last.locator("td").last
    expect(last).to_have_text("0.500")
    figures.get_by_label("drawn").select_option("0.9")
    expect(last).not_to_have_text("0.500")


def _colours(page: Page, button: str) -> set[object]:
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    picture = Image.open(io.BytesIO(Path(download.value.path()).read_bytes())).convert("RGB")
    return {shade for count, shade in picture.getcolors(1 << 24) or [] if count > 20}
