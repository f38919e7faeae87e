"""Video pruning in real vLLM: the trainer rebuilds the sequence that vLLM embeds, and follows its choice."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vllm.model_executor.models.nano_nemotron_vl import NemotronH_Nano_VL_V2

from omni_rl.errors import PromptError
from omni_rl.media.renderer import Renderer
from omni_rl.media.types import Prompt, Video
from omni_rl.models.nemotron_omni.checkpoint import released_state
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.tasks.samples import clip_video, demo_prompts
from omni_rl.train.packing import pack
from omni_rl.train.scoring import score_pack
from omni_rl.train.types import Score

from .conftest import sealed, update

pytestmark = pytest.mark.slow

SAMPLING = SamplingSettings(max_tokens=16, seed=3, ignore_eos=True)
FRAMES = (1, 2, 3, 5, 8, 13)


@pytest.fixture(scope="module")
def policy(small_checkpoint: Path) -> NemotronOmniForConditionalGeneration:
    """The trainer's side, float32; read only."""
    return NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint, dtype=torch.float32)


def clip(frames: int, seed: int = 0) -> Video:
    whole = clip_video()
    chosen = np.sort(np.random.default_rng([frames, seed]).choice(len(whole.frames), frames, replace=False))
    return Video(whole.frames[chosen], whole.fps, tuple(int(number) for number in chosen), whole.total_frames)


def still(frames: int) -> Video:
    """The same picture again and again: every choice behind the first tubelet is between equals."""
    return Video(np.stack([clip_video().frames[frames]] * frames), 2.0, tuple(range(frames)), frames)


def prompts() -> list[Prompt]:
    single = [Prompt(f"{frames} frames", "see <video> now", videos=(clip(frames),)) for frames in FRAMES]
    pair = Prompt("two videos", "<video> and <video> differ", videos=(clip(4), clip(7)))
    same = [Prompt(f"still {frames}", "see <video> now", videos=(still(frames),)) for frames in (4, 7)]
    return [*single, pair, *same, *demo_prompts("video", 3, 0), *demo_prompts("mixed", 4, 0)]


def differences(rollouts: list[Rollout], scores: list[Any]) -> np.ndarray:
    pairs = zip(rollouts, scores, strict=True)
    return np.concatenate([np.abs(score.logprobs - rollout.logprobs) for rollout, score in pairs])


def scored(policy: NemotronOmniForConditionalGeneration, rollouts: list[Rollout], version: str) -> list[Score]:
    return [score for rollout in rollouts for score in score_pack(policy, [rollout], version=version, logprob_chunk=64)]


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7])
def test_decode_agrees_and_both_sides_choose_the_same_tokens(
    start: Callable[..., Any], policy: NemotronOmniForConditionalGeneration, rate: float
) -> None:
    engine = start(video_pruning_rate=rate)
    rollouts = engine.sample(Renderer(engine.llm_engine).render(prompts()), SAMPLING)
    for version in (engine.weight_version, "the policy chooses by itself"):
        scores = scored(policy, rollouts, version)
        difference = differences(rollouts, scores)
        assert difference.mean() <= 1e-5, version
        assert difference.max() <= 1e-4, version
    dropped = 0
    for rollout, score in zip(rollouts, scores, strict=True):
        for item, theirs, own in zip(rollout.prompt.items, rollout.kept, score.kept, strict=True):
            if item.modality != "video":
                assert theirs is None
                assert own is None
                continue
            np.testing.assert_array_equal(theirs, own)
            assert theirs.sum() == len(item.positions)
            assert theirs[0].all()
            dropped += (~theirs).sum()
    assert dropped > 0
    assert differences(rollouts, engine.rescore(rollouts)).max() <= 1e-4


def test_a_choice_that_is_not_the_engines_shows(
    start: Callable[..., Any], policy: NemotronOmniForConditionalGeneration
) -> None:
    """The agreement above would be worth nothing if another choice scored the same."""
    engine = start(video_pruning_rate=0.5)
    rollouts = engine.sample(Renderer(engine.llm_engine).render(prompts()[4:6]), SAMPLING)
    flipped = []
    for rollout in rollouts:
        (kept,) = rollout.kept
        other = kept.copy()
        other[1:] = other[:0:-1, ::-1]
        assert (other != kept).any()
        flipped.append(replace(rollout, kept=(other,)))
    assert differences(rollouts, scored(policy, flipped, engine.weight_version)).max() > 1e-3


def test_the_embedded_sequence_is_vllms_own(
    start: Callable[..., Any], policy: NemotronOmniForConditionalGeneration
) -> None:
    engine = start(video_pruning_rate=0.6)
    for rollout in engine.sample(Renderer(engine.llm_engine).render(prompts()[:9]), replace(SAMPLING, max_tokens=1)):
        batch = pack([rollout])
        with torch.no_grad():
            embeds = policy.embed_packed(batch.ids, batch.media)
            for item in rollout.prompt.items:
                video = {
                    "type": "pixel_values_videos",
                    "pixel_values_flat": item.tensors["pixel_values_flat_video"],
                    "num_patches": item.tensors["video_num_patches"].reshape(1),
                    "frames_indices": item.tensors["frames_indices"],
                    "frame_duration_ms": item.tensors["frame_duration_ms"].reshape(1),
                }
                (theirs,) = NemotronH_Nano_VL_V2._process_video_input(engine.model, video)
                (ours,) = engine.model._process_video_input(video)
                assert torch.equal(ours, theirs)
                rebuilt = embeds[item.offset : item.offset + item.length]
                torch.testing.assert_close(rebuilt, theirs, rtol=1e-4, atol=1e-5)
        engine.model._kept.clear()


def test_after_an_update_both_sides_choose_anew(
    start: Callable[..., Any], small_checkpoint: Path, tmp_path: Path
) -> None:
    moved = NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
    engine = start(video_pruning_rate=0.5)
    rendered = Renderer(engine.llm_engine).render(prompts()[3:6])
    before = engine.sample(rendered, SAMPLING)
    update(engine, sealed(dict(released_state(moved, torch.float32)), "float32", 1, tmp_path / "slab"))
    after = engine.sample(rendered, SAMPLING)
    assert any((old.kept[0] != new.kept[0]).any() for old, new in zip(before, after, strict=True))
    assert differences(after, scored(moved, after, engine.weight_version)).max() <= 1e-4
    # Answers of the old weights, as both sides score them now.
    rescored: list[Rescore] = engine.rescore(before)
    scores = scored(moved, before, engine.weight_version)
    for theirs, ours in zip(rescored, scores, strict=True):
        assert np.abs(theirs.logprobs - ours.logprobs).max() <= 1e-4


def test_in_bfloat16_following_the_engine_is_what_keeps_both_sides_together(
    start: Callable[..., Any], small_checkpoint: Path
) -> None:
    """Rounding decides between near equals there, on each side in its own way."""
    policy = NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint, dtype=torch.bfloat16)
    engine = start("bfloat16", video_pruning_rate=0.5)
    videos = [Prompt(f"still {n}", "see <video> now", videos=(still(n),)) for n in (4, 6, 8, 12)]
    rollouts = engine.sample(Renderer(engine.llm_engine).render(videos), SAMPLING)
    followed = differences(rollouts, scored(policy, rollouts, engine.weight_version)).mean()
    alone = differences(rollouts, scored(policy, rollouts, "")).mean()
    assert followed < 0.05
    assert followed < alone / 2


def test_an_engine_that_does_not_prune_refuses_a_pruned_prompt(start: Callable[..., Any]) -> None:
    pruning, plain = start(video_pruning_rate=0.5), start()
    (prompt,) = Renderer(pruning.llm_engine).render([prompts()[4]])
    with pytest.raises(PromptError, match=r"rendered for video_pruning_rate 0\.5, the engine has 0\.0"):
        plain.sample([prompt], SAMPLING)
    (rollout,) = plain.sample(Renderer(plain.llm_engine).render([prompts()[4]]), SAMPLING)
    assert rollout.kept == (None,)
