"""Runs the towers over the media of a packed batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from omni_rl.errors import MediaError
from omni_rl.models.nemotron_omni import sound, vision
from omni_rl.models.nemotron_omni.parts import NemotronOmniParts
from omni_rl.models.nemotron_omni.pixel_shuffle import pixel_shuffle
from omni_rl.models.packed import PackedMedia


def media_features(model: NemotronOmniParts, media: Sequence[PackedMedia]) -> list[torch.Tensor]:
    """Return the projected features [N, llm_hidden] of each item, in order. Images share one packed pass through the
    tower."""
    found: dict[int, torch.Tensor] = {}
    images = [index for index, item in enumerate(media) if item.modality == "image"]
    if images:
        pixels = [_tensor(media[index], "pixel_values_flat") for index in images]
        found.update(zip(images, image_embeddings(model, pixels), strict=True))
    for index, item in enumerate(media):
        if item.modality == "video":
            found[index] = video_embeddings(model, _tensor(item, "pixel_values_flat_video")).flatten(0, 1)
        elif item.modality == "audio":
            mel, mask = _tensor(item, "input_audio_features"), _tensor(item, "feature_attention_mask")
            found[index] = torch.cat(sound_embeddings(model, mel, mask.bool()))
    return [found[index] for index in range(len(media))]


def image_embeddings(model: NemotronOmniParts, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return [N, llm_hidden] of each image [3, H, W]: tower, pixel shuffle on its own grid, projector."""
    weight = model.vision_model.embeddings.patch_projection.weight
    prepared = [image.to(weight) for image in images]
    patches = vision.image_features(model.vision_model, prepared)
    sizes = [(image.shape[-2], image.shape[-1]) for image in prepared]
    merged = model._pixel_shuffle_dynamic_res(torch.cat(patches).unsqueeze(0), sizes).squeeze(0)
    ratio = round(1 / model.downsample_ratio)
    return list(torch.split(model.vision_projector(merged), [len(rows) // ratio**2 for rows in patches]))


def tile_embeddings(model: NemotronOmniParts, tiles: torch.Tensor) -> torch.Tensor:
    """Return [n, N, llm_hidden] of tiles [n, 3, H, W] of one size."""
    weight = model.vision_model.embeddings.patch_projection.weight
    with evaluating(model.vision_model):
        patches = vision.tile_features(model.vision_model, tiles.to(weight))
    embeddings: torch.Tensor = model.vision_projector(_shuffle(model, patches, tiles.shape[-2:]))
    return embeddings


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Keep `module` in eval for the block; its mode comes back even if the block raises."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def video_embeddings(model: NemotronOmniParts, frames: torch.Tensor) -> torch.Tensor:
    """Return [ceil(F / T), N, llm_hidden] of one video [F, 3, H, W]."""
    weight = model.vision_model.embeddings.patch_projection.weight
    patches = vision.video_features(model.vision_model, frames.to(weight))
    embeddings: torch.Tensor = model.vision_projector(_shuffle(model, patches, frames.shape[-2:]))
    return embeddings


def sound_embeddings(model: NemotronOmniParts, mel: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Return [N, llm_hidden] of each clip of [clips, frames, mel bins] with their mask, trimmed to the clip's valid
    length."""
    projected, lengths = padded_sound_embeddings(model, mel, mask)
    return [clip[:length] for clip, length in zip(projected, lengths.tolist(), strict=True)]


def padded_sound_embeddings(
    model: NemotronOmniParts, mel: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ([clips, N, llm_hidden], valid lengths int64 [clips]) of [clips, frames, mel bins]."""
    if model.sound_encoder is None or model.sound_projection is None:
        raise MediaError("this checkpoint has no sound tower (its config has no sound_config); leave sounds out")
    weight = model.sound_encoder.subsampling.linear.weight
    bins = model.sound_encoder.config.num_mel_bins
    if mel.ndim != 3 or not mel.numel() or mel.shape[-1] != bins:
        raise MediaError(f"sounds have the shape {list(mel.shape)}; give [clips, frames, {bins} mel bins], none empty")
    if mask is not None and not mask.any(1).all():
        raise MediaError(f"clip {int(mask.any(1).int().argmin())} is padding alone; leave it out")
    present = None if mask is None else mask.to(weight.device)
    features, lengths = sound.sound_features(model.sound_encoder, mel.to(weight), present)
    return model.sound_projection(features), lengths


def _shuffle(model: NemotronOmniParts, patches: torch.Tensor, pixels: torch.Size) -> torch.Tensor:
    height, width = (side // model.patch_size for side in pixels)
    grid = patches.reshape(len(patches), height, width, -1)
    return pixel_shuffle(grid, model.downsample_ratio, model.ps_version).flatten(1, 2)


def _tensor(item: PackedMedia, name: str) -> torch.Tensor:
    if name not in item.tensors:
        raise MediaError(
            f"sample {item.sample}: {item.modality} lacks its tensor {name}; it has {sorted(item.tensors)}"
        )
    return item.tensors[name]
