"""Shuffles pixels: four neighbouring patches become one token with four times the channels."""

import warnings
from collections.abc import Sequence

import torch

from omni_rl.errors import MediaError


def pixel_shuffle(x: torch.Tensor, scale_factor: float = 0.5, ps_version: str = "v2") -> torch.Tensor:
    """Return [N, W·s, H·s, C/s²] of [N, W, H, C]; the channels of a merged cell are ordered (dy, dx, c).

    `ps_version` "v1" leaves the two spatial axes transposed, as early checkpoints were trained, and warns. Raises
    `MediaError` (a ValueError) for a grid that does not divide.
    """
    images, width, height, channels = x.shape
    ratio = round(1 / scale_factor)
    if width % ratio or height % ratio:
        raise MediaError(
            f"a patch grid of {width} x {height} cannot be merged in {ratio} x {ratio} cells; "
            f"resize the image to a multiple of {ratio} patches"
        )
    cells = x.reshape(images, width // ratio, ratio, height // ratio, ratio, channels)
    if ps_version == "v1":
        warnings.warn("ps_version 'v1' leaves the image transposed after pixel shuffle", stacklevel=2)
        cells = cells.permute(0, 3, 1, 2, 4, 5)
    else:
        cells = cells.permute(0, 1, 3, 2, 4, 5)
    return cells.reshape(*cells.shape[:3], channels * ratio * ratio)


def pixel_shuffle_dynamic(
    x: torch.Tensor, sizes: Sequence[tuple[int, int]], patch_size: int, scale_factor: float, ps_version: str
) -> torch.Tensor:
    """Return [1, p·s², C/s²] of patches [1, p, C] of images of `sizes` (h, w) pixels, back to back, each on its own
    grid."""
    grids = [(int(height) // patch_size, int(width) // patch_size) for height, width in sizes]
    parts = torch.split(x, [rows * columns for rows, columns in grids], dim=-2)
    merged = [
        pixel_shuffle(part.reshape(len(part), rows, columns, -1), scale_factor, ps_version).flatten(1, 2)
        for part, (rows, columns) in zip(parts, grids, strict=True)
    ]
    return torch.cat(merged, dim=-2)
