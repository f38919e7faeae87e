"""Prompts for an engine that prunes videos: fewer slots, the same text, and where each tubelet's features go in it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from omni_rl.errors import PromptError
from omni_rl.media.pruning import kept_count
from omni_rl.media.renderer import Renderer
from omni_rl.media.slots import FeatureCounts
from omni_rl.media.types import MediaItem, Prompt, RenderedPrompt, Video
from omni_rl.tasks.samples import demo_prompts

COUNTS = FeatureCounts(side=32, frames=2, halvings=3)
RATE = 0.6


@pytest.fixture(scope="module")
def pruning_renderer(start_front_end: Callable[..., Any]) -> Renderer:
    return Renderer(start_front_end(1024, video_pruning_rate=RATE))


def clip(frames: int) -> Video:
    pictures = np.random.default_rng(frames).integers(0, 256, (frames, 64, 96, 3), dtype=np.uint8)
    return Video(pictures, 30.0, tuple(range(0, 7 * frames, 7)), 7 * frames)


def split(rendered: RenderedPrompt, item: MediaItem) -> tuple[list[int], list[int]]:
    """Text tokens of an item's span, and how many of them stand before each slot."""
    slots = {int(position) for position in item.positions}
    text: list[int] = []
    before: list[int] = []
    for position in range(item.offset, item.offset + item.length):
        if position in slots:
            before.append(len(text))
        else:
            text.append(int(rendered.ids[position]))
    return text, before


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8])
def test_a_pruned_video_has_the_unpruned_ones_text_and_its_places(
    renderer: Renderer, pruning_renderer: Renderer, frames: int
) -> None:
    prompt = Prompt("p", "See <video> now", videos=(clip(frames),))
    (whole,), (pruned,) = renderer.render([prompt]), pruning_renderer.render([prompt])
    text, before = split(whole, whole.items[0])
    pruned_text, _ = split(pruned, pruned.items[0])
    assert pruned_text == text
    pruning = pruned.items[0].pruning
    assert pruning is not None
    assert pruning.rate == RATE
    tubelets = -(-frames // 2)
    tokens = len(before) // tubelets
    assert np.repeat(pruning.text_before, tokens).tolist() == before
    assert len(pruned.items[0].positions) == max(tokens, int(tubelets * tokens * (1 - RATE)))
    assert whole.items[0].pruning is None
    assert pruned.items[0].digests == whole.items[0].digests


def test_only_videos_are_pruned(pruning_renderer: Renderer) -> None:
    (rendered,) = pruning_renderer.render(demo_prompts("mixed", 1, 0))
    assert {item.modality: item.pruning is not None for item in rendered.items} == {
        "image": False,
        "audio": False,
        "video": True,
    }
    COUNTS.check([rendered])


def test_an_engine_of_another_rate_refuses_the_prompt(renderer: Renderer, pruning_renderer: Renderer) -> None:
    prompt = Prompt("p", "<video>", videos=(clip(6),))
    (whole,), (pruned,) = renderer.render([prompt]), pruning_renderer.render([prompt])
    COUNTS.check([whole, pruned])
    replace(COUNTS, pruning_rate=RATE).check([pruned])
    replace(COUNTS, pruning_rate=0.0).check([whole])
    for rendered, rate in ((whole, RATE), (pruned, 0.0), (pruned, 0.5)):
        with pytest.raises(PromptError, match=rf"'p', video 0 was rendered for .*the engine has {rate}"):
            replace(COUNTS, pruning_rate=rate).check([rendered])


def test_counts_and_text_that_do_not_fit_the_video_are_named(pruning_renderer: Renderer) -> None:
    (rendered,) = pruning_renderer.render([Prompt("p", "<video>", videos=(clip(6),))])
    (item,) = rendered.items
    assert item.pruning is not None
    fewer = replace(item, positions=item.positions[:-1])
    with pytest.raises(PromptError, match=r"'p', video 0 has \d+ slots"):
        COUNTS.check([replace(rendered, items=(fewer,))])
    shorter = replace(item, pruning=replace(item.pruning, text_before=item.pruning.text_before[:-1]))
    with pytest.raises(PromptError, match="'p', video 0 has text for 2 tubelets, its tensors make 3"):
        COUNTS.check([replace(rendered, items=(shorter,))])


@pytest.mark.parametrize(("rate", "kept"), [(0.3, 8), (0.5, 6), (0.7, 4), (0.99, 4)])
def test_the_first_tubelet_is_never_cut(rate: float, kept: int) -> None:
    assert kept_count(3, 4, rate) == kept


def test_what_an_engine_is_said_to_have_kept_must_fit_the_prompt(
    renderer: Renderer, pruning_renderer: Renderer
) -> None:
    prompt = Prompt("p", "<video>", videos=(clip(6),))
    (whole,), (pruned,) = renderer.render([prompt]), pruning_renderer.render([prompt])
    slots = len(pruned.items[0].positions)
    tokens = len(whole.items[0].positions) // 3
    mask = np.arange(3 * tokens).reshape(3, tokens) < slots
    for fitting in ((), (None,), (mask,)):
        COUNTS.check_kept(pruned, fitting)
    for kept, words in (
        ((mask, mask), "has 1 media items, `kept` has 2 entries"),
        ((mask[:2],), rf"video 0: {slots} tokens of \[2, {tokens}\] .* it has \[3, {tokens}\]"),
        ((np.ones_like(mask),), rf"video 0: {3 * tokens} tokens of \[3, {tokens}\] .* {slots} slots"),
    ):
        with pytest.raises(PromptError, match=words):
            COUNTS.check_kept(pruned, kept)
    COUNTS.check_kept(whole, (None,))
    with pytest.raises(PromptError, match="'p', video 0 is not pruned"):
        COUNTS.check_kept(whole, (mask,))
