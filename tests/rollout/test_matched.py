"""The matched mode against vLLM itself: every module's bits, and every token's logprob of every kind of prompt."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_rl.media.renderer import Renderer
from omni_rl.models.nemotron_omni.backend import BackendConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.policies.probe import probe_answers, probe_prompts
from omni_rl.rollout.engine import RolloutEngine
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.settings import Numerics
from omni_rl.train.packing import pack
from omni_rl_bench.agreement.parity import calls, parities

from .conftest import prompts

pytestmark = pytest.mark.slow


def _matched(checkpoint: Path, dtype: str, numerics: Numerics = "matched") -> NemotronOmniForConditionalGeneration:
    backend = BackendConfig(numerics=numerics)
    return NemotronOmniForConditionalGeneration.from_pretrained(
        checkpoint, dtype=getattr(torch, dtype), backend=backend
    )


def _scores(model: NemotronOmniForConditionalGeneration, rollouts: list[Rollout]) -> np.ndarray:
    with torch.no_grad():
        return model.score_packed(pack(rollouts)).logprobs.double().numpy()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_module_and_every_logprob_is_the_engines_prefill(
    start: Callable[..., RolloutEngine], small_checkpoint: Path, dtype: str
) -> None:
    engine = start(dtype)
    renderer = Renderer(engine.llm_engine)
    probe = list(probe_answers(renderer.render(probe_prompts())))
    # Several pictures of other sizes in a prompt, and answers that were sampled.
    sampled = engine.sample(renderer.render(prompts()), SamplingSettings(max_tokens=24, ignore_eos=True))
    model = _matched(small_checkpoint, dtype)

    found = parities(model, [calls(engine, answer) for answer in (*probe, *sampled)])
    assert {name for name, parity in found.items() if parity.equal != 1.0} == set()
    assert {"norm", "layers.0.mixer", "vision_projector", "sound_projection", "sound.layers.1"} < found.keys()

    for answer in (*probe, *sampled):
        (prefill,) = engine.score([answer])
        assert np.array_equal(_scores(model, [answer]), prefill.logprobs), answer.prompt.kind
    together = np.concatenate([prefill.logprobs for prefill in engine.score(sampled)])
    assert np.array_equal(_scores(model, sampled), together)


def test_batch_invariant_logprobs_are_those_that_were_sampled(
    start: Callable[..., RolloutEngine], small_checkpoint: Path
) -> None:
    """Not a prefill's alone, but what a batch of other prompts decoded, in a batch of other sequences."""
    engine = start("bfloat16", batch_invariant=True)
    answers = engine.sample(
        Renderer(engine.llm_engine).render(prompts()), SamplingSettings(max_tokens=24, ignore_eos=True)
    )
    decoded = np.concatenate([answer.logprobs for answer in answers])
    assert np.array_equal(_scores(_matched(small_checkpoint, "bfloat16", "batch_invariant"), answers), decoded)
    backwards = np.concatenate([answer.logprobs for answer in answers[::-1]])
    assert np.array_equal(_scores(_matched(small_checkpoint, "bfloat16", "batch_invariant"), answers[::-1]), backwards)


def test_the_reference_parts_in_bfloat16(start: Callable[..., RolloutEngine], small_checkpoint: Path) -> None:
    """Without the mode the same comparison finds differences: it can."""
    engine = start("bfloat16")
    answers = probe_answers(Renderer(engine.llm_engine).render(probe_prompts()[:2]))
    model = NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint, dtype=torch.bfloat16)
    found = parities(model, [calls(engine, answer) for answer in answers])
    assert 0.3 < found["layers.1.mixer"].equal < 0.95
    assert 0 < found["layers.1.mixer"].relative < 0.02
    assert found["layers.4.mixer"].equal == 1.0
    assert not np.array_equal(_scores(model, [answers[0]]), engine.score(answers[:1])[0].logprobs)
