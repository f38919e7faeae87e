"""How many features a model will make of a rendered item, from its tensors' shapes: checked before a model runs.

A wrong count would surface inside a step, where it costs the engine, or the whole trainer group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from omni_rl.errors import MediaError, PromptError
from omni_rl.kinds import Modality
from omni_rl.media.pruning import kept_count
from omni_rl.media.types import MediaItem, RenderedPrompt

if TYPE_CHECKING:
    import torch

_NEEDED: dict[Modality, tuple[str, ...]] = {
    "image": ("pixel_values_flat",),
    "video": ("pixel_values_flat_video",),
    "audio": ("input_audio_features", "feature_attention_mask"),
}


@dataclass(frozen=True)
class FeatureCounts:
    """The rules by which a model makes features of pixels and of sound.

    A picture has one feature for each `side` x `side` pixels, a video one for each square of `frames` frames together,
    and a sound one for every 2^`halvings` mel frames. `side` is None for a model without a vision tower, and `halvings`
    for one without a sound tower. `pruning_rate` is the only rate at which the model prunes videos; where it is None,
    each video is pruned as it was rendered. `pixels` is the only dtype in which the model takes pixels; where it is
    None, it takes any.
    """

    side: int | None
    frames: int
    halvings: int | None
    pruning_rate: float | None = None
    pixels: "torch.dtype | None" = None

    def check(self, prompts: Sequence[RenderedPrompt]) -> None:
        """Raise `PromptError` or `MediaError`, which names prompt and item, where slots and features do not match."""
        for prompt in prompts:
            end = 0
            for item in prompt.items:
                name = f"prompt {prompt.id!r}, {item.modality} {item.index}"
                absent = [tensor for tensor in _NEEDED[item.modality] if tensor not in item.tensors]
                if absent:
                    raise MediaError(f"{name} lacks {' and '.join(absent)}; it has {sorted(item.tensors)}")
                if not end <= item.offset <= item.offset + item.length <= len(prompt.ids):
                    raise PromptError(
                        f"{name} spans {item.offset} to {item.offset + item.length} of {len(prompt.ids)} tokens; "
                        "spans lie in the prompt, in order and apart"
                    )
                end = item.offset + item.length
                self._check_item(name, item)

    def check_kept(self, prompt: RenderedPrompt, kept: Sequence[NDArray[np.bool_] | None]) -> None:
        """Raise `PromptError` unless `kept` fits the prompt's pruned videos: it has an entry for each item, or none at
        all."""
        if kept and len(kept) != len(prompt.items):
            raise PromptError(
                f"prompt {prompt.id!r} has {len(prompt.items)} media items, `kept` has {len(kept)} entries"
            )
        for item, mask in zip(prompt.items, kept, strict=False):
            name = f"prompt {prompt.id!r}, {item.modality} {item.index}"
            if item.pruning is None:
                if mask is not None:
                    raise PromptError(f"{name} is not pruned, but some of its tokens are said to be kept")
                continue
            if mask is None:
                continue
            tokens = self._cells(name, item.tensors["pixel_values_flat_video"])
            shape = (len(item.pruning.text_before), tokens)
            if mask.shape != shape or int(mask.sum()) != len(item.positions):
                raise PromptError(
                    f"{name}: {int(mask.sum())} tokens of {list(mask.shape)} (tubelets, tokens each) are said to be "
                    f"kept; it has {list(shape)}, and {len(item.positions)} slots in the prompt. Score a rollout with "
                    "its own prompt"
                )

    def _check_item(self, name: str, item: MediaItem) -> None:
        slots = np.asarray(item.positions)
        features = self._features(name, item)
        if len(slots) != features:
            raise PromptError(
                f"{name} has {len(slots)} slots in the prompt, its tensors make {features} features; render the prompt "
                "and its media together, once"
            )
        inside = (slots >= item.offset) & (slots < item.offset + item.length)
        if not inside.all() or not (np.diff(slots) > 0).all():
            raise PromptError(f"{name} has slots outside of its span, or out of order; render the prompt anew")

    def _features(self, name: str, item: MediaItem) -> int:
        if item.modality == "image":
            return self._cells(name, item.tensors["pixel_values_flat"])
        if item.modality == "video":
            pixels = item.tensors["pixel_values_flat_video"]
            tubelets, tokens = -(-len(pixels) // self.frames), self._cells(name, pixels)
            rate = 0.0 if item.pruning is None else item.pruning.rate
            if self.pruning_rate is not None and rate != self.pruning_rate:
                raise PromptError(
                    f"{name} was rendered for video_pruning_rate {rate}, the engine has {self.pruning_rate}; "
                    "render the prompt with the engine's own renderer"
                )
            if item.pruning is None:
                return tubelets * tokens
            if len(item.pruning.text_before) != tubelets:
                raise PromptError(
                    f"{name} has text for {len(item.pruning.text_before)} tubelets, its tensors make {tubelets}; "
                    "render the prompt anew"
                )
            return kept_count(tubelets, tokens, item.pruning.rate)
        if self.halvings is None:
            raise MediaError(f"{name}: this checkpoint has no sound tower; leave sounds out")
        clips = item.tensors["feature_attention_mask"].sum(1).tolist()
        for _ in range(self.halvings):
            clips = [(length - 1) // 2 + 1 for length in clips]
        return int(sum(clips))

    def _cells(self, name: str, pixels: "torch.Tensor") -> int:
        if self.pixels not in (None, pixels.dtype):
            raise MediaError(f"{name} was rendered in {pixels.dtype}, the engine takes {self.pixels}; render it there")
        if self.side is None:
            raise MediaError(f"{name}: this checkpoint has no vision tower; leave pictures and videos out")
        height, width = pixels.shape[-2:]
        if height % self.side or width % self.side or not height or not width:
            raise MediaError(f"{name} is {height} x {width} pixels; both must be multiples of {self.side}")
        return int(height // self.side) * int(width // self.side)
