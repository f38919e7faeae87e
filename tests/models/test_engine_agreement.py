"""A saved checkpoint, served by vLLM, against the training copy: every kind of prompt."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from omni_rl.kinds import KINDS
from omni_rl.media.renderer import Renderer
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.rollout.engine import RolloutEngine
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings
from omni_rl.tasks.samples import demo_prompts
from omni_rl.train.packing import pack
from omni_rl_bench.scoring.policies import load_transformers

pytestmark = pytest.mark.slow


def _ours(source: Path, target: Path) -> None:
    """What we saved."""
    NemotronOmniForConditionalGeneration.from_pretrained(source).save_pretrained(target, max_shard_size="1MB")


def _native(source: Path, target: Path) -> None:
    """What transformers' class saved."""
    load_transformers(source).save_pretrained(target, max_shard_size="1MB")
    for path in source.iterdir():
        if path.is_file() and path.name not in ("config.json", "model.safetensors"):
            shutil.copy(path, target)


def _released(source: Path, target: Path) -> None:
    """As the public one is laid out: 17 shards, Infinity, remote code, D and dt_bias in float32, derived tensors."""
    shutil.copytree(source, target)
    weights = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    for name, tensor in weights.items():
        if name.endswith((".mixer.D", ".mixer.dt_bias")):
            weights[name] = tensor.float() + 1e-4
    weights["vision_model.radio_model.summary_idxs"] = torch.tensor([0])
    weights["vision_model.radio_model.input_conditioner.norm_mean"] = torch.zeros(3, 1, 1)
    names = sorted(weights)
    placed = {name: f"model-{1 + number % 17:05}-of-00017.safetensors" for number, name in enumerate(names)}
    for file in set(placed.values()):
        save_file({name: weights[name] for name in names if placed[name] == file}, target / file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    config = json.loads((target / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Model"}
    config["llm_config"]["time_step_limit"] = [0.0, float("inf")]
    (target / "config.json").write_text(json.dumps(config))
    (target / "modeling.py").write_text("raise RuntimeError('nobody runs this')")


@pytest.mark.parametrize("lay_out", [_ours, _native, _released], ids=["ours", "transformers'", "released"])
def test_what_save_pretrained_writes_is_served_and_agrees(
    small_checkpoint: Path, tmp_path: Path, lay_out: Callable[[Path, Path], None]
) -> None:
    """The weights are moved off the committed ones first, so that only what was written can agree."""
    lay_out(small_checkpoint, tmp_path / "source")
    model = NemotronOmniForConditionalGeneration.from_pretrained(tmp_path / "source", dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    model.save_pretrained(tmp_path / "saved")
    engine = RolloutEngine(EngineSettings(model=tmp_path / "saved", dtype="float32"))
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
