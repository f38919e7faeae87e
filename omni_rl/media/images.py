"""Turns any picture into 8-bit RGB, as vLLM would show it to the model, and loses nothing on the way without an error.

As vLLM does, it turns a picture by its EXIF orientation and puts transparency on white. Deep greys, which Pillow's own
conversion clips to white, are scaled.
"""

import io
import os
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from omni_rl.errors import MediaError

# What Pillow decodes by itself in this process; EPS, WMF and the stub formats would start other programs.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
MAX_PIXELS = 64_000_000  # 192 MB as RGB: a file of a few kilobytes can claim to be far larger
WHITE = (255, 255, 255)


def load_image(source: str | Path | bytes | NDArray[np.generic] | Image.Image) -> Image.Image:
    """Return a local file, encoded bytes, an array or a Pillow image as RGB, without metadata.

    Arrays are [H, W] or [H, W, 1] grey, [H, W, 3] RGB or [H, W, 4] RGBA: bool, uint8, uint16 (full range) or floats
    between 0 and 1. Of an animation, the first frame is read. Raises `MediaError` for anything that cannot be read.
    """
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, np.ndarray):
        image = _from_array(source)
    else:
        image = _decode(source)
    if image.width * image.height > MAX_PIXELS:
        raise MediaError(f"the image has {image.width} x {image.height} pixels; scale it to at most {MAX_PIXELS:,}")
    if image.width == 0 or image.height == 0:
        raise MediaError("the image has no pixels")
    try:
        # A copy of the bare pixels: no orientation is left to be applied twice.
        return Image.fromarray(np.array(_to_rgb(_upright(image))))
    except MediaError:
        raise
    except (OSError, SyntaxError, EOFError, ValueError, struct.error) as error:
        raise MediaError(f"the image is damaged, or of a kind that has no colours: {error}") from error


def _decode(source: str | Path | bytes) -> Image.Image:
    """Open an image without decoding its pixels."""
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise MediaError(f"no such file: {source} (images are local files or bytes; addresses are never fetched)")
    try:
        return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise MediaError(f"not a readable image ({', '.join(FORMATS)}): {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (KeyError, TypeError, ValueError, SyntaxError, struct.error):
        return image  # damaged metadata says nothing about the pixels


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":  # a colour named as transparent is left as it is, as vLLM leaves it
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_array(np.asarray(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layers = image.convert("RGBA")
        flat = Image.new("RGB", layers.size, WHITE)
        flat.paste(layers, mask=layers.getchannel("A"))
        return flat
    return image.convert("RGB")


def _from_array(array: NDArray[np.generic]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise MediaError(f"an image array is [H, W] or [H, W, 1, 3 or 4], not {list(array.shape)}")
    if array.size == 0:
        raise MediaError("the image has no pixels")
    return Image.fromarray(_to_uint8(array))


def _to_uint8(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array, dtype=np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    wide = array.astype(np.float64)
    if not np.isfinite(wide).all():
        raise MediaError("the image holds values that are not finite")
    top = 1.0 if np.issubdtype(array.dtype, np.floating) else 65535.0
    if wide.min() < 0 or wide.max() > top:
        raise MediaError(
            f"the image's {array.dtype} values reach from {wide.min():g} to {wide.max():g}; "
            f"this type may hold 0 to {top:g}"
        )
    return np.round(wide * (255 / top)).astype(np.uint8)
