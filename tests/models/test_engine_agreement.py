"""A saved checkpoint, served by vLLM, against the training copy: every kind of prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch

from omni_rl.kinds import KINDS
from omni_rl.media.renderer import Renderer
from omni_rl.media.samples import demo_prompts
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.rollout.engine import RolloutEngine
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings
from omni_rl.train.packing import pack

pytestmark = pytest.mark.slow


def test_what_save_pretrained_writes_is_served_and_agrees(small_checkpoint: Path, tmp_path: Path) -> None:
    """The weights are moved off the committed ones first, so that only what was written can agree."""
    model = NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    model.save_pretrained(tmp_path)
    engine = RolloutEngine(EngineSettings(model=tmp_path, dtype="float32"))
    try:
        renderer = Renderer(engine.llm_engine)
        for kind in KINDS:
            prompts = renderer.render(demo_prompts(kind, 3, 0))
            rollouts = engine.sample(prompts, SamplingSettings(max_tokens=24, ignore_eos=True))
            with torch.no_grad():
                scores = model.score_packed(pack(rollouts))
            behaviour = np.concatenate([rollout.logprobs for rollout in rollouts])
            difference = np.abs(scores.logprobs.numpy().astype(np.float64) - behaviour)
            assert difference.mean() <= 1e-5, kind
            assert difference.max() <= 1e-4, kind
    finally:
        engine.close()
