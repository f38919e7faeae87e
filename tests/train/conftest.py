"""Rollouts made by hand, as the media path and the engine would hand them over."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from omni_rl.kinds import Modality
from omni_rl.media.digests import tensor_digest
from omni_rl.media.types import MediaItem, RenderedPrompt
from omni_rl.rollout.types import Rollout, VersionSpan

MakeRollout = Callable[..., Rollout]

PLACEHOLDERS: dict[Modality, int] = {"image": 18, "video": 18, "audio": 27}
MEL_BINS = 80


def _tensors(
    modality: Modality, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[dict[str, torch.Tensor], int]:
    """The processor's tensors for one item, and its number of tokens: 16-pixel patches, merged 2 x 2 into one token.

    Shapes: image (H, W); video (frames, H, W), two frames a group; audio (mel frames,), subsampled three times by two.
    """
    noise = torch.from_numpy(rng.standard_normal(np.prod(shape) * MEL_BINS).astype(np.float32))
    if modality == "audio":
        (frames,) = shape
        tokens = frames
        for _ in range(3):
            tokens = (tokens - 1) // 2 + 1
        mel = noise.reshape(1, frames, MEL_BINS)
        return {"input_audio_features": mel, "feature_attention_mask": torch.ones(1, frames, dtype=torch.bool)}, tokens
    height, width = shape[-2:]
    cells = (height // 32) * (width // 32)
    if modality == "image":
        return {"pixel_values_flat": noise[: 3 * height * width].reshape(3, height, width)}, cells
    pixels = noise[: shape[0] * 3 * height * width].reshape(shape[0], 3, height, width)
    return {"pixel_values_flat_video": pixels}, -(-shape[0] // 2) * cells


def _item(modality: Modality, shape: tuple[int, ...], index: int, offset: int, rng: np.random.Generator) -> MediaItem:
    tensors, tokens = _tensors(modality, shape, rng)
    return MediaItem(
        modality=modality,
        index=index,
        offset=offset,
        length=tokens,
        positions=np.arange(offset, offset + tokens),
        tensors=tensors,
        digests={name: tensor_digest(tensor) for name, tensor in tensors.items()},
        content_hash=f"{modality}-{index}",
    )


@pytest.fixture
def make_rollout() -> MakeRollout:
    """`make_rollout(seed, prompt=P, answer=T, media=[(modality, shape), ...])`: media stand after the second token."""

    def make(
        seed: int,
        *,
        prompt: int = 6,
        answer: int = 4,
        media: Sequence[tuple[Modality, tuple[int, ...]]] = (),
        temperature: float = 1.0,
    ) -> Rollout:
        rng = np.random.default_rng(seed)
        ids = list(rng.integers(40, 500, 2))
        items = []
        for index, (modality, shape) in enumerate(media):
            items.append(_item(modality, shape, index, len(ids), rng))
            ids += [PLACEHOLDERS[modality]] * items[-1].length + [int(rng.integers(40, 500))]
        ids += list(rng.integers(40, 500, prompt - 2))
        modalities = {modality for modality, _ in media}
        return Rollout(
            prompt=RenderedPrompt(
                id=f"prompt-{seed}",
                kind="text" if not modalities else modalities.pop() if len(modalities) == 1 else "mixed",
                ids=np.asarray(ids, dtype=np.int64),
                items=tuple(items),
            ),
            ids=rng.integers(40, 500, answer).astype(np.int64),
            logprobs=np.zeros(answer),
            temperature=temperature,
            version_spans=(VersionSpan("run/1/0/abc", 0, answer),),
            engine_digests=(),
            experts=None,
            finish_reason="length",
        )

    return make
