"""Turns the plain arguments of `forward` (padded ids, tiles or padded images, frames, mel features) into embeddings."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from omni_rl.errors import MediaError, PromptError
from omni_rl.models.nemotron_omni.features import media_features
from omni_rl.models.nemotron_omni.parts import NemotronOmniParts
from omni_rl.models.nemotron_omni.pruned import place
from omni_rl.models.nemotron_omni.scatter import scatter_features
from omni_rl.models.nemotron_omni.slots import fill_slots
from omni_rl.models.nemotron_omni.sound import subsampled_lengths
from omni_rl.models.nemotron_omni.unused import zero_gradients_of_unused
from omni_rl.models.packed import PackedMedia

Pixels = torch.Tensor | list[torch.Tensor]
Sizes = torch.Tensor | list[tuple[int, int]]


def merge(
    model: NemotronOmniParts,
    input_ids: torch.Tensor,
    pixel_values: Pixels | None,
    image_flags: torch.Tensor | None,
    imgs_sizes: Sizes | None,
    pixel_values_videos: torch.Tensor | None,
    sound_features: torch.Tensor | None,
    sound_attention_mask: torch.Tensor | None,
    media: Sequence[PackedMedia] = (),
) -> torch.Tensor:
    """Return embeddings [B, L, hidden] of `input_ids` [B, L] with all media in place; `media` by their spans in B·L.

    A modality without input leaves its placeholder ids ordinary tokens. Raises `PromptError` for images and video
    together: they share one placeholder id, and without spans nobody knows whose is whose.
    """
    if pixel_values is not None and pixel_values_videos is not None:
        raise PromptError(
            "images and video share one placeholder id; give their spans (`media`) to use both in one batch"
        )
    placed = place(input_ids.flatten(), media, media_features(model, media))
    embeds: torch.Tensor = model.get_input_embeddings()(placed.ids.view_as(input_ids))
    if pixel_values is not None:
        items = _image_items(model, pixel_values, image_flags, imgs_sizes)
        embeds = fill_slots(embeds, input_ids, model.img_context_token_id, "image", items)
    if pixel_values_videos is not None:
        tubelets = list(_public(model, "extract_video_feature")(pixel_values_videos))
        embeds = fill_slots(embeds, input_ids, model.img_context_token_id, "video", tubelets)
    if sound_features is not None:
        clips = _clips(model, sound_features, sound_attention_mask)
        embeds = fill_slots(embeds, input_ids, model.sound_context_token_id, "audio", clips)
    if media:
        embeds = scatter_features(embeds.flatten(0, 1), placed.media, placed.features).view_as(embeds)
    plain = {"image": pixel_values, "video": pixel_values_videos, "audio": sound_features}
    present = [name for name, given in plain.items() if given is not None]
    return zero_gradients_of_unused(model, embeds, [*present, *(item.modality for item in media)])


def _public(model: NemotronOmniParts, name: str) -> Callable[..., Any]:
    """Return the model's own method, which a subclass or a caller may have replaced.

    Under FSDP it is the method without the wrapper that gathers parameters: they are gathered, and its hooks do not
    nest.
    """
    if isinstance(model, FSDPModule):
        return partial(getattr(type(model), name), model)
    method: Callable[..., Any] = getattr(model, name)
    return method


def crop(pixel_values: Pixels, imgs_sizes: Sizes) -> list[torch.Tensor]:
    """Return each image of a padded batch [n, C, H, W], or of a list [C, H, W], cut to its own size (h, w), so that
    padding never matters.

    Raises `MediaError` (a ValueError) that names the image whose size is missing or larger than what is given.
    """
    sizes = [(int(height), int(width)) for height, width in imgs_sizes]
    if len(sizes) != len(pixel_values):
        first = min(len(sizes), len(pixel_values))
        raise MediaError(
            f"imgs_sizes gives {len(sizes)} sizes for {len(pixel_values)} images; image {first} has no counterpart"
        )
    for number, (image, (own_height, own_width)) in enumerate(zip(pixel_values, sizes, strict=True)):
        height, width = image.shape[-2:]
        if own_height > height or own_width > width:
            raise MediaError(
                f"image {number} is said to be {own_height} x {own_width} in a batch of {height} x {width} pixels"
            )
    return [image[:, :h, :w] for image, (h, w) in zip(pixel_values, sizes, strict=True)]


def _image_items(
    model: NemotronOmniParts,
    pixel_values: Pixels,
    image_flags: torch.Tensor | None,
    imgs_sizes: Sizes | None,
) -> list[torch.Tensor]:
    if imgs_sizes is not None:
        rows = _public(model, "extract_feature_dynamic")(pixel_values, imgs_sizes).flatten(0, -2)
        merged = model.patch_size * round(1 / model.downsample_ratio)
        return list(torch.split(rows, [int(h) // merged * (int(w) // merged) for h, w in imgs_sizes]))
    tiles = [tile.flatten(0, -2) for tile in _public(model, "extract_feature")(pixel_values)]
    if image_flags is None:
        return tiles
    flags = image_flags.reshape(-1).tolist()
    if len(flags) != len(tiles):
        raise MediaError(f"image_flags has {len(flags)} entries for {len(tiles)} tiles")
    return [tile for tile, real in zip(tiles, flags, strict=True) if real == 1]


def _clips(model: NemotronOmniParts, sound_features: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Return [N, llm_hidden] of each clip, trimmed to its own length."""
    if mask is not None and mask.shape != sound_features.shape[:2]:
        raise MediaError(
            f"sound_attention_mask has the shape {list(mask.shape)}, sound_features have {list(sound_features.shape)}"
        )
    padded = _public(model, "extract_sound_feature")(sound_features, mask)
    frames = mask.sum(1) if mask is not None else torch.full((len(sound_features),), sound_features.shape[1])
    assert model.sound_encoder is not None, "extract_sound_feature refuses sounds without it"
    lengths = subsampled_lengths(model.sound_encoder, frames)
    return [clip[:length] for clip, length in zip(padded, lengths.tolist(), strict=True)]
