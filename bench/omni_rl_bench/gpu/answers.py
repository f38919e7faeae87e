"""Makes answers to prompts of every kind without an engine: text of the small checkpoint's corpus, media from noise.

Shapes: N features of a media item.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from omni_rl.checkpoints.corpus import chats, question_text
from omni_rl.kinds import MODALITIES, Kind, Modality
from omni_rl.media.digests import tensor_digest
from omni_rl.media.types import MediaItem, RenderedPrompt
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.rollout.types import Rollout

PER_KIND = 4
OF_KIND: dict[Kind, tuple[Modality, ...]] = {
    "text": (),
    **{modality: (modality,) for modality in MODALITIES},
    "mixed": MODALITIES,
}
SIDES = ((96, 128), (64, 64), (128, 96), (160, 64))  # pixels, height and width
FRAMES = (4, 5, 8, 6)
MEL_FRAMES = (101, 57, 160, 200)


@dataclass(frozen=True)
class _Features:
    """The tensors of one item by the processor's names, and its slots: `placeholder`, once for each."""

    tensors: dict[str, torch.Tensor]
    placeholder: int
    slots: int


def answers(checkpoint: Path) -> list[Rollout]:
    """Return `PER_KIND` answers of each kind, at temperature 1; no engine sampled them, so their logprobs are 0."""
    config = NemotronOmniConfig.from_pretrained(checkpoint)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    source = chats(seed=20)
    found = []
    for kind in OF_KIND:
        for number, (question, answer) in enumerate(islice(source, PER_KIND)):
            made = (_features(config, modality, number) for modality in OF_KIND[kind])
            prompt = _prompt(f"{kind}-{number}", kind, encode(question_text(question)), list(made))
            found.append(_answer(prompt, encode(f"{answer}<|im_end|>")))
    return found


def text_answers(config: NemotronOmniConfig, count: int, prompt: int, answer: int) -> list[Rollout]:
    """Return `count` answers of random ids, lengths in tokens."""
    rng = np.random.default_rng(20)
    ids = rng.integers(100, config.llm_config.vocab_size, (count, prompt + answer))
    return [
        _answer(RenderedPrompt(f"text-{number}", "text", row[:prompt].astype(np.int64)), row[prompt:].tolist())
        for number, row in enumerate(ids)
    ]


def _answer(prompt: RenderedPrompt, ids: Sequence[int]) -> Rollout:
    return Rollout(
        prompt=prompt,
        ids=np.asarray(ids, np.int64),
        logprobs=np.zeros(len(ids)),
        temperature=1.0,
        version_spans=(),
        engine_digests=tuple(item.digests for item in prompt.items),
        experts=None,
        finish_reason="stop",
    )


def _prompt(name: str, kind: Kind, text: list[int], made: Sequence[_Features]) -> RenderedPrompt:
    """Return the question with its media behind the first token."""
    ids, items = text[:1], []
    for index, (modality, features) in enumerate(zip(OF_KIND[kind], made, strict=True)):
        offset = len(ids)
        items.append(
            MediaItem(
                modality=modality,
                index=index,
                offset=offset,
                length=features.slots,
                positions=np.arange(offset, offset + features.slots),
                tensors=features.tensors,
                digests={tensor: tensor_digest(value) for tensor, value in features.tensors.items()},
                content_hash=f"{name}-{index}",
            )
        )
        ids += [features.placeholder] * features.slots
    return RenderedPrompt(name, kind, np.asarray(ids + text[1:], np.int64), tuple(items))


def _features(config: NemotronOmniConfig, modality: Modality, number: int) -> _Features:
    make: dict[Modality, Callable[[NemotronOmniConfig, int, torch.Generator], _Features]] = {
        "image": _image,
        "audio": _sound,
        "video": _video,
    }
    return make[modality](config, number, torch.Generator().manual_seed(number))


def _image(config: NemotronOmniConfig, number: int, noise: torch.Generator) -> _Features:
    pixels = torch.randn(3, *SIDES[number], generator=noise)
    return _Features({"pixel_values_flat": pixels}, config.img_context_token_id, _cells(config, pixels))


def _video(config: NemotronOmniConfig, number: int, noise: torch.Generator) -> _Features:
    frames = torch.randn(FRAMES[number], 3, *SIDES[number], generator=noise)
    tubelets = -(-len(frames) // (config.video_temporal_patch_size or 1))
    slots = tubelets * _cells(config, frames)
    return _Features({"pixel_values_flat_video": frames}, config.img_context_token_id, slots)


def _sound(config: NemotronOmniConfig, number: int, noise: torch.Generator) -> _Features:
    frames = MEL_FRAMES[number]
    *_, slots = _halved(frames, int(config.sound_config.subsampling_factor).bit_length() - 1)
    mel = torch.randn(1, frames, config.sound_config.num_mel_bins, generator=noise)
    mask = torch.ones(1, frames, dtype=torch.bool)
    tensors = {"input_audio_features": mel, "feature_attention_mask": mask}
    return _Features(tensors, config.sound_context_token_id, slots)


def _halved(frames: int, times: int) -> Iterator[int]:
    for _ in range(times):
        frames = (frames - 1) // 2 + 1
        yield frames


def _cells(config: NemotronOmniConfig, pixels: torch.Tensor) -> int:
    side = round(config.patch_size / config.downsample_ratio)
    return int(pixels.shape[-2] // side * (pixels.shape[-1] // side))
