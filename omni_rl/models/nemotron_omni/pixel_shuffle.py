"""Pixel shuffle: four neighbouring patches become one token with four times the channels."""

import warnings

import torch

from omni_rl.errors import MediaError


def pixel_shuffle(x: torch.Tensor, scale_factor: float = 0.5, ps_version: str = "v2") -> torch.Tensor:
    """[N, W, H, C] to [N, W·s, H·s, C/s²]; the channels of a merged cell are ordered (dy, dx, c).

    `ps_version` "v1" leaves the two spatial axes transposed, as early checkpoints were trained, and warns.
    Raises `MediaError` (a ValueError) for a grid that does not divide.
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
