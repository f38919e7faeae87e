"""Defines faults of the media that the trainer gets, while the engine has them right. A fault takes a rank and a
seed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from omni_rl.consistency.actions import Cause
from omni_rl.models.nemotron_omni import scoring as model_scoring
from omni_rl.models.packed import PackedMedia, PackedSequences
from omni_rl.train import scoring
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.fault import Fault, Put

MEAN, STD = 0.45, 0.225
"""About the mean and deviation that pictures are normalised with."""


def batches(change: Callable[[PackedSequences], PackedSequences]) -> None:
    """Change every batch that is scored."""
    patches.replace(scoring, "pack", lambda original: lambda *given, **named: change(original(*given, **named)))


def media(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change a tensor of every media item that has it."""

    def changed(item: PackedMedia) -> PackedMedia:
        if name not in item.tensors:
            return item
        return replace(item, tensors={**item.tensors, name: change(item.tensors[name])})

    batches(lambda batch: replace(batch, media=tuple(changed(item) for item in batch.media)))


def image_dropped(worker: Any, seed: int) -> None:
    """Compute the features of images, but never put them into the embeddings."""

    def instead(original: Any) -> Callable[..., torch.Tensor]:
        def scatter(
            embeds: torch.Tensor, items: Sequence[PackedMedia], features: Sequence[torch.Tensor]
        ) -> torch.Tensor:
            kept = [pair for pair in zip(items, features, strict=True) if pair[0].modality != "image"]
            found: torch.Tensor = original(embeds, *zip(*kept, strict=True)) if kept else embeds
            return found

        return scatter

    patches.replace(model_scoring, "scatter_features", instead)


def other_grid(worker: Any, seed: int) -> None:
    """Scale pictures to a shape of the trainer's own choice, as fixed tiles are, with as many tokens."""

    def scaled(picture: torch.Tensor) -> torch.Tensor:
        height, width = picture.shape[-2:]
        shape = (height // 2, width * 2) if height % 64 == 0 else (height * 2, width // 2) if width % 64 == 0 else None
        if shape is None:
            return picture.flip(-1)
        return F.interpolate(picture[None].float(), shape, mode="bilinear")[0].to(picture.dtype)

    media("pixel_values_flat", scaled)


def normalised_twice(worker: Any, seed: int) -> None:
    """Normalise pictures once more in the tower, after their digests were taken."""
    patches.hook_input(worker.model.vision_model, lambda pixels: (pixels - MEAN) / STD)


def frame_missing(worker: Any, seed: int) -> None:
    """Drop a frame from the middle of a video; the last frame is repeated in its place."""

    def without(frames: torch.Tensor) -> torch.Tensor:
        middle = len(frames) // 2
        return torch.cat([frames[:middle], frames[middle + 1 :], frames[-1:]])

    media("pixel_values_flat_video", without)


def audio_scaled(worker: Any, seed: int) -> None:
    media("input_audio_features", lambda features: features * 0.5)


def audio_longer(worker: Any, seed: int) -> None:
    """Add one frame of silence; where that would make a token more, which is refused, drop one frame."""

    def other(item: PackedMedia) -> PackedMedia:
        if item.modality != "audio":
            return item
        mel, mask = item.tensors["input_audio_features"], item.tensors["feature_attention_mask"]
        mel, mask = F.pad(mel, (0, 0, 0, 1)), F.pad(mask, (0, 1))
        frames = int(mask[-1].sum())
        if _tokens(frames) == _tokens(frames + 1):
            mask[-1, frames] = 1
        else:
            mask[-1, frames - 1] = 0
        return replace(item, tensors={**item.tensors, "input_audio_features": mel, "feature_attention_mask": mask})

    batches(lambda batch: replace(batch, media=tuple(other(item) for item in batch.media)))


def _tokens(frames: int) -> int:
    for _ in range(3):
        frames = (frames - 1) // 2 + 1
    return frames


def video_reversed(worker: Any, seed: int) -> None:
    """Put the last frame first."""
    media("pixel_values_flat_video", lambda frames: frames.flip(0))


def blue_first(worker: Any, seed: int) -> None:
    """Swap the channels to blue, green, red, as OpenCV reads a file."""
    media("pixel_values_flat", lambda picture: picture.flip(0))


def _trainer(name: str, put: Put, *, proven: bool = True) -> Fault:
    return Fault(name, (Cause.MEDIA_MISMATCH,), put, side="trainer", proven=proven)


FAULTS = (
    _trainer("image dropped", image_dropped, proven=False),
    _trainer("fixed grid, not dynamic", other_grid),
    _trainer("normalised twice", normalised_twice, proven=False),
    _trainer("pictures in BGR", blue_first),
    _trainer("one frame missing", frame_missing),
    _trainer("video reversed", video_reversed),
    _trainer("audio scaled", audio_scaled),
    _trainer("audio a frame longer", audio_longer),
)
