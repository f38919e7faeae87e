"""Makes training examples for the small checkpoint, with media as the engine sees them.

Shapes: T tokens of an example, N features of a media item.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from vllm.transformers_utils.processors.nano_nemotron_vl import NanoNemotronVLProcessor

from omni_rl.checkpoints.corpus import chat_text, chats
from omni_rl.checkpoints.tokenizer import IM_END, IMAGE, SOUND, VIDEO
from omni_rl.kinds import Modality
from omni_rl.media.types import Prompt
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.packed import PackedMedia, PackedSequences

_CHATS_PER_EXAMPLE = 2  # after the end of a turn comes the next one


@dataclass(frozen=True)
class Example:
    """One example: token ids int64 [T], of which those from `scored_from` on are learnt. `media` is at most one item,
    placed in `ids`."""

    name: str
    ids: torch.Tensor
    scored_from: int
    media: PackedMedia | None = None


class PromptExamples:
    """Makes examples of prompts with one media item, by the engine's own preprocessing and placeholder expansion."""

    def __init__(self, config: NemotronOmniConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        limit = config.llm_config.max_position_embeddings
        self._tokenizer = tokenizer
        self._placeholders = {number: tokenizer.convert_ids_to_tokens(number) for number in (IMAGE, SOUND, VIDEO)}
        self._processor: Any = NanoNemotronVLProcessor(
            config, tokenizer, max_model_len=limit, video_token=self._placeholders[VIDEO]
        )

    def __call__(self, prompt: Prompt) -> Example:
        """Return the prompt, its answer and the end of the turn as an example; what follows the prompt is learnt."""
        with warnings.catch_warnings():
            # PIL's pixels are read-only; the tiler makes a tensor of them and only reads it.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            placeholder, slot, modality, expanded, tensors = self._process(prompt)
        before, after = (self._encode(part) for part in prompt.text.split(placeholder))
        positions = torch.tensor([len(before) + index for index, number in enumerate(expanded) if number == slot])
        ids = [*before, *expanded, *after]
        answer = [*self._encode(str(prompt.answer)), IM_END]
        media = PackedMedia(modality, positions, tensors, sample=prompt.id)
        return Example(prompt.id, torch.tensor(ids + answer), len(ids), media)

    def _process(self, prompt: Prompt) -> tuple[str, int, Modality, list[int], dict[str, torch.Tensor]]:
        """Return the placeholder, the id of a feature's slot, the modality, the placeholder's expansion, and the
        tensors."""
        if prompt.images:
            placeholder = self._placeholders[IMAGE]
            out = self._processor(text=placeholder, images=list(prompt.images))
            return placeholder, IMAGE, "image", out["input_ids"][0], {"pixel_values_flat": out["pixel_values_flat"][0]}
        if prompt.sounds:
            placeholder = self._placeholders[SOUND]
            out = self._processor(text=placeholder, audios=[sound.samples for sound in prompt.sounds])
            tensors = {name: torch.as_tensor(out[name]) for name in ("input_audio_features", "feature_attention_mask")}
            return placeholder, SOUND, "audio", out["input_ids"][0], tensors
        placeholder = self._placeholders[VIDEO]
        (video,) = prompt.videos
        metadata = {"fps": video.fps, "frames_indices": list(video.indices), "total_num_frames": video.total_frames}
        out = self._processor(text=placeholder, videos=[(video.frames, metadata)])
        tensors = {"pixel_values_flat_video": out["pixel_values_flat_video"]}
        return placeholder, IMAGE, "video", out["input_ids"][0], tensors

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def chat_examples(tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[Example]:
    """Yield endless chats of a few turns, every token learnt."""
    source = chats(seed)
    number = 0
    while True:
        text = "".join(chat_text(*next(source)) for _ in range(_CHATS_PER_EXAMPLE))
        yield Example(f"chat-{number}", torch.tensor(tokenizer.encode(text, add_special_tokens=False)), scored_from=1)
        number += 1


def pack_examples(examples: Sequence[Example]) -> PackedSequences:
    """Return the examples back to back, with their media at the right positions."""
    starts = [0]
    media = []
    for example in examples:
        if example.media is not None:
            item = example.media
            media.append(PackedMedia(item.modality, item.positions + starts[-1], item.tensors, item.sample))
        starts.append(starts[-1] + len(example.ids))
    return PackedSequences(
        ids=torch.cat([example.ids for example in examples]),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        score_mask=torch.cat([torch.arange(len(example.ids)) >= example.scored_from for example in examples]),
        media=tuple(media),
    )
