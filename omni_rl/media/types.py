"""The types of what goes into the media path (a prompt) and of what comes out (a rendered prompt that both sides use).

Shapes: P prompt tokens after expansion, N tokens of one media item, F frames, H x W pixels, S samples.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from omni_rl.kinds import Kind, Modality
from omni_rl.media.packed import PackedTensor
from omni_rl.media.pruning import Pruning

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


@dataclass(frozen=True)
class Sound:
    """One sound. `samples` is float32 [S] (mono) or [channels, S]; `rate` is in Hz."""

    samples: NDArray[np.float32]
    rate: int


@dataclass(frozen=True)
class Video:
    """One video. `frames` is uint8 [F, H, W, 3]; `indices` are the frames' numbers in the source, and `fps` and
    `total_frames` are the source's."""

    frames: NDArray[np.uint8]
    fps: float
    indices: tuple[int, ...]
    total_frames: int


@dataclass(frozen=True)
class Prompt:
    """A chat text with one placeholder per media item: `<image>`, `<so_embedding>` (sound), `<video>`, as
    `omni_rl.media.formats` has them.

    Media of one kind are given in the order of their placeholders. `answer` is what an exact-match reward
    compares with, if the prompt has one.
    """

    id: str
    text: str
    images: tuple["Image", ...] = ()
    sounds: tuple[Sound, ...] = ()
    videos: tuple[Video, ...] = ()
    answer: str | None = None

    @property
    def media(self) -> dict[Kind, tuple[Any, ...]]:
        """The prompt's items of every kind, in the order of their placeholders."""
        return {"image": self.images, "audio": self.sounds, "video": self.videos}

    @property
    def kind(self) -> Kind:
        present = [kind for kind, items in self.media.items() if items]
        if not present:
            return "text"
        return present[0] if len(present) == 1 else "mixed"


@dataclass(frozen=True)
class MediaItem:
    """One image, sound or video as both sides use it; of other media, the one that the model takes them in as.

    `positions` is int64 [N]: the prompt positions that take the item's features, in feature order (for a video the
    frame separators inside its span are not among them). `offset` and `length` give the whole span, separators
    included. `tensors` are the processor's outputs for this item, by the processor's names. `digests` holds, for each
    tensor, blake3 over dtype, shape and bytes. `content_hash` is the engine's cache key for the item. `pruning` is
    there for a video that the model prunes: its `positions` are then only as many as its kept features.
    """

    modality: Modality
    index: int
    offset: int
    length: int
    positions: NDArray[np.int64]
    tensors: "dict[str, torch.Tensor]"
    digests: dict[str, str]
    content_hash: str
    pruning: Pruning | None = None

    def __getstate__(self) -> dict[str, Any]:
        packed = {name: PackedTensor.of(tensor) for name, tensor in self.tensors.items()}
        return {**vars(self), "tensors": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tensors = {name: packed.tensor() for name, packed in state["tensors"].items()}
        vars(self).update(state, tensors=tensors)


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt rendered once. `ids` is int64 [P] with expanded placeholders; `items` are in the order of their
    offsets."""

    id: str
    kind: Kind
    ids: NDArray[np.int64]
    items: tuple[MediaItem, ...] = ()
    answer: str | None = None
    text: str = field(default="", repr=False)
