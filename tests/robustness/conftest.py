"""Both policies of the small checkpoint in this process, in float32, and what counts as agreement."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.media.types import Prompt, RenderedPrompt, Sound, Video
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.train.evidence import posted_step
from omni_rl.train.pairing import train_against_decode, train_against_prefill

FLOAT32 = Yardstick.of("float32")


def breaches(records: Sequence[SampleRecord]) -> list[str]:
    """Why they are no agreement in float32; nothing if they are."""
    return [str(breach) for breach in FLOAT32.judge(FLOAT32.compare(StepColumns.of(records))).breaches]


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def hiss(seed: int, samples: int, channels: int = 1, rate: int = 16_000) -> Sound:
    values = np.random.default_rng(seed).normal(0, 0.1, (channels, samples)).astype(np.float32)
    return Sound(values[0] if channels == 1 else values, rate)


def clip(seed: int, frames: int, height: int, width: int) -> Video:
    return Video(noise(seed, frames, height, width, 3), 10.0, tuple(range(frames)), frames)


def cut_off() -> Image.Image:
    """Opens, as Pillow opens lazily, and cannot be decoded."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    return Image.open(io.BytesIO(buffer.getvalue()[:500]))


def silence(seconds: int, rate: int, channels: int = 1) -> Sound:
    """Takes no memory: one value, repeated by a stride of zero."""
    return Sound(np.broadcast_to(np.float32(0), (channels, seconds * rate)), rate)


class BothSides:
    """One engine and its renderer, and the training copy, of the same checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        import torch

        from omni_rl.media.renderer import Renderer
        from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
        from omni_rl.rollout.engine import RolloutEngine
        from omni_rl.rollout.settings import EngineSettings

        settings = EngineSettings(model=checkpoint, max_num_seqs=64, max_num_batched_tokens=4096, images=4)
        self.engine = RolloutEngine(settings)
        self.renderer = Renderer(self.engine.llm_engine)
        self.model = NemotronOmniForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)

    def sample(self, prompts: Sequence[RenderedPrompt], tokens: int, seed: int = 0) -> list[Rollout]:
        return self.engine.sample(prompts, SamplingSettings(max_tokens=tokens, seed=seed, ignore_eos=True))

    def score(self, rollouts: Sequence[Rollout]) -> Any:
        from omni_rl.train.scoring import score_pack

        return score_pack(self.model, rollouts, version="test", logprob_chunk=1024)

    def decode_records(self, rollouts: Sequence[Rollout]) -> list[SampleRecord]:
        """Trainer against what was sampled; both must have used the tensors that were rendered."""
        scores = self.score(rollouts)
        records = train_against_decode(rollouts, scores)
        assert posted_step(StepColumns.of(records), rollouts, scores).proofs.tensors_apart == []
        return records

    def prefill_records(self, rollouts: Sequence[Rollout]) -> list[SampleRecord]:
        """Trainer against the engine's rescoring of answers that it need not have sampled."""
        return train_against_prefill(rollouts, self.score(rollouts), self.engine.rescore(rollouts))

    def agree(self, prompts: Sequence[Prompt], tokens: int = 6) -> None:
        """Assert that every prompt is accepted and, each by itself, agrees with decode in float32."""
        records = self.decode_records(self.sample(self.renderer.render(prompts), tokens))
        for record in records:
            assert breaches([record]) == [], record.sample


# Closed with its module: where an engine of the same process is closed, vLLM's other engines there cannot go on.
@pytest.fixture(scope="module")
def both(small_checkpoint: Path) -> Iterator[BothSides]:
    sides = BothSides(small_checkpoint)
    yield sides
    sides.engine.close()
