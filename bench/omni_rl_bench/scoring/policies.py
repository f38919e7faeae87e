"""Defines the policies that the scoring benchmark compares: ours, packed, and transformers' own Omni on the same
weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn import functional as F
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer
from transformers.models.nemotron_h_omni import NemotronH_Omni_Reasoning_V3, NemotronH_Omni_Reasoning_V3_Config

from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.vision import radio_config
from omni_rl.train.plan import plan_packs
from omni_rl_bench.scoring.workload import Sample, packed

BUDGET = 2048
"""The tokens of one of our packs, twice the longest sequence; its memory is measured, and compared with theirs for one
sequence."""
BUCKET = 4096
"""The tokens, padding included, of one batch of sequences of about the same length."""


@dataclass(frozen=True)
class Method:
    """How a policy scores. `policy` is "ours" or "transformers"; theirs has the `layout` (one_by_one, bucketed,
    padded), the Mamba scan's `chunk` (None: the checkpoint's) and the implementation of the experts."""

    policy: str
    layout: str = "packed"
    chunk: int | None = None
    experts: str = "eager"

    @property
    def name(self) -> str:
        if self.policy == "ours":
            return "ours, packed"
        return f"transformers, {self.layout}, chunk_size {self.chunk or 'of the checkpoint'}, {self.experts} experts"


class Policy(Protocol):
    """Scores batch by batch, so that a batch's graph can be freed before the next begins."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def batches(self, samples: list[Sample]) -> list[list[int]]: ...

    def score(self, samples: list[Sample]) -> torch.Tensor: ...


class Ours:
    """Scores packs of at most `BUDGET` tokens."""

    def __init__(self, model: NemotronOmniForConditionalGeneration) -> None:
        self.model = model
        self.cell = round(model.patch_size / model.downsample_ratio)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return self.model.parameters()

    def batches(self, samples: list[Sample]) -> list[list[int]]:
        return plan_packs([len(sample.ids) for sample in samples], BUDGET, 1)[0]

    def score(self, samples: list[Sample]) -> torch.Tensor:
        """Return float32 [scored tokens], sample after sample."""
        return self.model.score_packed(packed(samples, self.cell), record_routing=False).logprobs


class Theirs:
    """Scores batches padded on the right, without a mask: causal layers never see padding, and no mask is fastest."""

    def __init__(self, model: NemotronH_Omni_Reasoning_V3, method: Method) -> None:
        self.model = model
        self.layout = method.layout
        self.patch = model.config.vision_config.patch_size
        chunk = method.chunk or model.config.text_config.chunk_size
        for module in model.modules():
            if isinstance(module, NemotronHMamba2Mixer):
                module.chunk_size = chunk
        model.language_model.set_experts_implementation(method.experts)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        parameters: Iterator[torch.nn.Parameter] = self.model.parameters()
        return parameters

    def batches(self, samples: list[Sample]) -> list[list[int]]:
        lengths = [len(sample.ids) for sample in samples]
        order = sorted(range(len(samples)), key=lengths.__getitem__)
        if self.layout == "one_by_one":
            return [[index] for index in order]
        if self.layout == "padded":
            return [order]
        buckets: list[list[int]] = [[]]
        for index in order:
            if (len(buckets[-1]) + 1) * lengths[index] > BUCKET and buckets[-1]:
                buckets.append([])
            buckets[-1].append(index)
        return buckets

    def score(self, samples: list[Sample]) -> torch.Tensor:
        """Return float32 [scored tokens], sample after sample."""
        ids = torch.nn.utils.rnn.pad_sequence([sample.ids for sample in samples], batch_first=True)
        logits = self.model(input_ids=ids, use_cache=False, **self._pixels(samples)).logits[:, :-1]
        # Cross-entropy takes the least memory: no log-softmax of every logit is stored.
        scores = -F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view(
            len(ids), -1
        )
        return torch.cat([row[: len(sample.ids) - 1] for row, sample in zip(scores, samples, strict=True)])

    def _pixels(self, samples: list[Sample]) -> dict[str, Any]:
        images = [image for sample in samples for image in sample.images]
        if not images:
            return {}
        side = self.patch
        patches = [
            image.reshape(3, image.shape[1] // side, side, -1, side).permute(1, 3, 0, 2, 4).reshape(-1, 3 * side * side)
            for image in images
        ]
        grid = torch.tensor([image.shape[1:] for image in images]) // side
        return {"pixel_values": torch.cat(patches), "image_grid_hw": grid}


def load(checkpoint: Path, method: Method) -> Policy:
    """Return the policy of `method` in float32."""
    if method.policy == "ours":
        return Ours(NemotronOmniForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32))
    return Theirs(load_transformers(checkpoint), method)


def with_method(policy: Policy, method: Method) -> Policy:
    """Return the same transformers model under another method."""
    assert isinstance(policy, Theirs)
    return Theirs(policy.model, method)


def load_transformers(checkpoint: Path, dtype: torch.dtype = torch.float32) -> NemotronH_Omni_Reasoning_V3:
    """Return transformers' Omni with a released checkpoint's weights, dt not clamped (as the model's authors have it;
    the clamp changes scores, not speed)."""
    ours = NemotronOmniConfig.from_pretrained(checkpoint)
    config = NemotronH_Omni_Reasoning_V3_Config(
        vision_config=radio_config(ours).to_dict(),
        text_config=ours.llm_config.to_dict(),
        audio_config={name: value for name, value in ours.sound_config.to_dict().items() if name != "model_type"},
        force_image_size=ours.force_image_size,
        downsample_ratio=ours.downsample_ratio,
        projector_hidden_size=ours.projector_hidden_size,
        vision_hidden_size=ours.vit_hidden_size,
        video_temporal_patch_size=ours.video_temporal_patch_size,
        image_token_id=ours.img_context_token_id,
        audio_token_id=ours.sound_context_token_id,
    )
    model = NemotronH_Omni_Reasoning_V3.from_pretrained(
        checkpoint, config=config, dtype=dtype, attn_implementation="sdpa"
    ).eval()
    for module in model.modules():
        if isinstance(module, NemotronHMamba2Mixer):
            module.time_step_limit = (0.0, float("inf"))
    return model
