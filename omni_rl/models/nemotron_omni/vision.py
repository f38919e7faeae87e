"""Builds the vision tower, RADIO, and what turns images and videos into its inputs and outputs.

Shapes: n images of H x W pixels and p = (H / patch)·(W / patch) patches; F frames; T frames a tubelet; D tower width.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import RadioConfig, RadioModel
from transformers.models.radio.modeling_radio import RadioLayer

from omni_rl.errors import ConfigError, MediaError
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.radio_sizes import RADIO_SIZES
from omni_rl.models.nemotron_omni.recomputing import Recomputable

_CHANNELS = 3


def radio_config(config: NemotronOmniConfig) -> RadioConfig:
    """Return transformers' configuration of the tower that a released `vision_config` describes."""
    section = config.vision_config
    name = section.args["model"]
    if name not in RADIO_SIZES:
        raise ConfigError(f"vision_config.args.model is {name!r}; known RADIO sizes: {', '.join(sorted(RADIO_SIZES))}")
    hidden, layers, heads, width = RADIO_SIZES[name]
    if hidden != config.vit_hidden_size:
        raise ConfigError(f"vit_hidden_size is {config.vit_hidden_size}, but {name} has {hidden}; make them equal")
    teachers = section.args.get("teachers") or []
    class_tokens = len({teacher["name"] for teacher in teachers}) if section.args.get("cls_token_per_teacher") else 1
    multiple = section.args.get("register_multiple")
    largest = round(section.args.get("cpe_max_size", 2048) / config.patch_size) * config.patch_size
    if _preferred_size(config) == largest:
        raise ConfigError(
            f"vision_config.preferred_resolution equals cpe_max_size ({largest}); a tower without cropped position "
            "embedding is not supported"
        )
    temporal = config.video_temporal_patch_size
    return RadioConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        mlp_ratio=width / hidden,
        patch_size=config.patch_size,
        max_img_size=largest,
        num_cls_tokens=class_tokens,
        num_registers=multiple - class_tokens % multiple if multiple else 0,
        video_temporal_patch_size=temporal if temporal is not None and temporal > 1 else None,
        summary_idxs=[index for index, teacher in enumerate(teachers) if teacher.get("use_summary", True)] or [0],
        norm_mean=config.norm_mean,
        norm_std=config.norm_std,
        attn_implementation="sdpa",
    )


def _preferred_size(config: NemotronOmniConfig) -> int:
    preferred = config.vision_config.to_dict().get("preferred_resolution")
    return int(preferred[0]) if preferred else 224


class VisionLayer(Recomputable, RadioLayer):  # type: ignore[misc]
    """RADIO's layer, which may be recomputed in backward though it is in eval."""


class FusedAttention(nn.Module):
    """RADIO's attention with query, key and value in one linear, as released checkpoints store it.

    Packed images (`cu_seqlens` int32 [n + 1]) attend each to itself.
    """

    def __init__(self, config: RadioConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        batch, tokens, hidden = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, tokens, 3, self.heads, hidden // self.heads)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(2))
        lengths = [tokens] if cu_seqlens is None else cu_seqlens.diff().tolist()
        parts = zip(*(torch.split(states, lengths, dim=2) for states in (query, key, value)), strict=True)
        mixed = torch.cat([F.scaled_dot_product_attention(q, k, v) for q, k, v in parts], dim=2)
        return self.proj(mixed.transpose(1, 2).flatten(2)), None


def build_tower(config: NemotronOmniConfig) -> RadioModel:
    """Return RADIO with its input conditioner off: the tiler has normalised already, and normalising twice is a silent
    fault.

    Layer scale, which released checkpoints do not have, is left out.
    """
    settings = radio_config(config)
    tower = RadioModel(settings)
    tower.make_preprocessor_external()
    for layer in tower.encoder.layer:
        layer.attention = FusedAttention(settings)
        layer.__class__ = VisionLayer
        layer.layer_scale1 = nn.Identity()
        layer.layer_scale2 = nn.Identity()
    return tower


def image_features(tower: RadioModel, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return patch features [p, D] of each image [3, H, W]; all images go through the tower in one packed call.

    Raises `MediaError` for a side that is no multiple of the patch.
    """
    if not images:
        raise MediaError("there is no image; leave images out")
    patch = tower.patch_size
    grids = [_grid(image, patch, f"image {number}") for number, image in enumerate(images)]
    patches = torch.cat([_patches(image, patch) for image in images])
    features = tower(patches, image_grid_hw=torch.tensor(grids, device=patches.device)).features
    return list(torch.split(features, [rows * columns for rows, columns in grids]))


def tile_features(tower: RadioModel, tiles: torch.Tensor) -> torch.Tensor:
    """Return [n, p, D] of tiles [n, 3, H, W]; the position embedding fits the tiles' own size."""
    _require_batch(tiles, "tiles")
    _grid(tiles[0], tower.patch_size, "tile 0")
    features: torch.Tensor = tower(tiles).features
    return features


def video_features(tower: RadioModel, frames: torch.Tensor) -> torch.Tensor:
    """Return [ceil(F / T), p, D] of frames [F, 3, H, W]; the last frame is repeated up to a multiple of T."""
    temporal = tower.config.video_temporal_patch_size
    _require_batch(frames, "video frames")
    _grid(frames[0], tower.patch_size, "video frame 0")
    if temporal is None:
        return tile_features(tower, frames)
    missing = -len(frames) % temporal
    padded = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    # Frames stacked in the channels give patches in the order (frame, channel, y, x), as the embedder was trained.
    tubelets = padded.reshape(len(padded) // temporal, -1, *frames.shape[2:])
    features: torch.Tensor = tower(tubelets).features
    return features


def _require_batch(pixels: torch.Tensor, name: str) -> None:
    if pixels.ndim != 4 or not len(pixels):
        raise MediaError(
            f"{name} have the shape {list(pixels.shape)}; give [n, {_CHANNELS}, height, width], at least one, and one "
            "video at a time"
        )


def _grid(image: torch.Tensor, patch: int, name: str) -> tuple[int, int]:
    if image.ndim != 3 or len(image) != _CHANNELS:
        raise MediaError(f"{name} has the shape {list(image.shape)}; give [{_CHANNELS}, height, width]")
    height, width = image.shape[-2:]
    if height % patch or width % patch or not height or not width:
        raise MediaError(f"{name} is {height} x {width} pixels; both must be multiples of the patch size {patch}")
    return height // patch, width // patch


def _patches(image: torch.Tensor, patch: int) -> torch.Tensor:
    channels, height, width = image.shape
    cut = image.reshape(channels, height // patch, patch, width // patch, patch)
    return cut.permute(1, 3, 0, 2, 4).reshape(-1, channels * patch * patch)
