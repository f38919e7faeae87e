"""An engine whose prefill has the bits of its decode, alone and in batches of any make-up."""

from collections.abc import Callable

import numpy as np
import pytest

from omni_rl.config import SMALL_CHECKPOINT
from omni_rl.errors import ConfigError
from omni_rl.media.renderer import Renderer
from omni_rl.rollout.engine import RolloutEngine
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings

from .conftest import prompts


@pytest.mark.slow
def test_prefill_is_decode_bit_for_bit(start: Callable[..., RolloutEngine]) -> None:
    engine = start("bfloat16", batch_invariant=True)
    rendered = Renderer(engine.llm_engine).render(prompts())
    together = engine.sample(rendered, SamplingSettings(max_tokens=24, seed=1, ignore_eos=True))
    for answer, prefill in zip(together, engine.rescore(together, alone=True), strict=True):
        assert np.array_equal(prefill.logprobs, answer.logprobs), answer.prompt.id
    # One row at a time, as a batch of one decodes.
    (single,) = engine.sample(rendered[:1], SamplingSettings(max_tokens=24, seed=1, ignore_eos=True))
    assert single.ids.tolist() == together[0].ids.tolist()
    assert np.array_equal(single.logprobs, together[0].logprobs)


@pytest.mark.slow
def test_without_it_they_part(start: Callable[..., RolloutEngine]) -> None:
    engine = start("bfloat16")
    answers = engine.sample(
        Renderer(engine.llm_engine).render(prompts()), SamplingSettings(max_tokens=24, seed=1, ignore_eos=True)
    )
    prefill = engine.rescore(answers, alone=True)
    apart = [np.abs(score.logprobs - answer.logprobs).max() for score, answer in zip(prefill, answers, strict=True)]
    assert max(apart) > 1e-3


@pytest.mark.slow
def test_attention_split_over_threads_is_refused(
    start: Callable[..., RolloutEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_ATTN_SPLIT_KV", "1")
    with pytest.raises(ConfigError, match="VLLM_CPU_ATTN_SPLIT_KV=0"):
        start("bfloat16", batch_invariant=True)


def test_float32_is_refused() -> None:
    with pytest.raises(ConfigError, match="bfloat16"):
        EngineSettings(model=SMALL_CHECKPOINT, dtype="float32", batch_invariant=True)
