"""Rebuilds a rendered prompt, from plain tensors and with ids of the caller's choice, as the input that vLLM takes.

A rendered prompt crosses processes, so it holds no object of vLLM's. This module takes vLLM's items apart into plain
tensors, and makes them again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalFieldConfig,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)

from omni_rl.errors import PromptError
from omni_rl.media.types import MediaItem, RenderedPrompt

# The processor's tensors, by its names. One media item has a single row of each tensor in _ROW, and several consecutive
# rows of each tensor in _RUN (the clips of a sound, the frames of a video).
_ROW = {
    "image": ("pixel_values_flat", "imgs_sizes", "num_tokens_per_image"),
    "audio": ("audio_num_clips",),
    "video": ("video_num_patches", "frames_indices", "frame_duration_ms"),
}
_RUN = {
    "image": (),
    "audio": ("input_audio_features", "feature_attention_mask"),
    "video": ("pixel_values_flat_video",),
}
# vLLM moves these to the accelerator; the others stay on the CPU.
_ON_DEVICE = ("pixel_values_flat", "pixel_values_flat_video", "input_audio_features", "feature_attention_mask")


def plain_tensors(item: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of one vLLM item, each with storage of its own; sizes and counts become int64 tensors."""
    return {
        name: torch.as_tensor(element.data).clone(memory_format=torch.contiguous_format)
        for name, element in sorted(item.items())
    }


def to_engine_input(rendered: RenderedPrompt, ids: Sequence[int] | np.ndarray) -> Any:
    """Return what `LLMEngine.add_request` takes for `ids`: the rendered prompt's ids, alone or followed by an answer.

    The engine's model receives exactly the tensors of `rendered.items`. Raises `PromptError` if `ids` do not begin with
    the prompt's: the spans would point at the wrong tokens.
    """
    tokens = [int(token) for token in ids]
    if tokens[: len(rendered.ids)] != rendered.ids.tolist():
        raise PromptError(f"prompt {rendered.id!r}: the ids given do not begin with the rendered prompt's ids")
    if not rendered.items:
        return tokens_input(tokens)
    kwargs: dict[str, list[Any]] = {}
    hashes: dict[str, list[str]] = {}
    spans: dict[str, list[Any]] = {}
    for item in rendered.items:
        kwargs.setdefault(item.modality, []).append(_kwargs_item(item))
        hashes.setdefault(item.modality, []).append(item.content_hash)
        spans.setdefault(item.modality, []).append(_span(item))
    return mm_input(tokens, MultiModalKwargsItems(kwargs), hashes, spans)


def _span(item: MediaItem) -> Any:
    # A video's encoder output covers its frame separators too: vLLM embeds them together with the frames.
    if item.modality == "video":
        return PlaceholderRange(item.offset, item.length)
    takes_feature = torch.zeros(item.length, dtype=torch.bool)
    takes_feature[torch.tensor(item.positions - item.offset)] = True
    return PlaceholderRange(item.offset, item.length, takes_feature)


def _kwargs_item(item: MediaItem) -> Any:
    elements = {}
    for name in _ROW[item.modality]:
        field = MultiModalFieldConfig.batched(item.modality, keep_on_cpu=name not in _ON_DEVICE)
        (elements[name],) = field.build_elems(name, [_row(name, item.tensors[name])])
    for name in _RUN[item.modality]:
        rows = item.tensors[name]
        field = MultiModalFieldConfig.flat(item.modality, [slice(0, len(rows))])
        (elements[name],) = field.build_elems(name, rows)
    return MultiModalKwargsItem(elements)


def _row(name: str, tensor: torch.Tensor) -> Any:
    """Return a tensor as vLLM's model wants it: image sizes and token counts as Python numbers."""
    if name == "imgs_sizes":
        return tuple(tensor.tolist())
    if name == "num_tokens_per_image":
        return int(tensor)
    return tensor
