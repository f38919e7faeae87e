"""Every kind of picture arrives as the RGB that a viewer would show."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omni_rl.errors import MediaError
from omni_rl.media.images import load_image

RAMP = np.linspace(0, 255, 12).round().astype(np.uint8).reshape(3, 4)
NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(source: object) -> np.ndarray:
    image = load_image(source)  # type: ignore[arg-type]
    assert image.mode == "RGB"
    return np.asarray(image)


def as_grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2)


def test_grey_in_every_form() -> None:
    expected = as_grey(RAMP)
    assert (pixels(RAMP) == expected).all()
    assert (pixels(RAMP[:, :, None]) == expected).all()
    assert (pixels(encoded(Image.fromarray(RAMP))) == expected).all()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = RAMP.astype(np.uint16) * 257
    assert (pixels(deep) == as_grey(RAMP)).all()
    assert (pixels(encoded(Image.fromarray(deep))) == as_grey(RAMP)).all()
    assert (pixels(encoded(Image.fromarray(deep), "TIFF")) == as_grey(RAMP)).all()


def test_bool_and_float_arrays_use_the_full_range() -> None:
    stripes = RAMP > 100
    assert (pixels(stripes) == as_grey(np.where(stripes, 255, 0))).all()
    assert (pixels(encoded(Image.fromarray(stripes))) == as_grey(np.where(stripes, 255, 0))).all()
    assert (pixels(RAMP / 255.0) == as_grey(RAMP)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode: str) -> None:
    colour = Image.new(mode, (4, 3), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    assert (pixels(encoded(colour)) == 255).all()
    half = np.zeros((2, 2, 4), np.uint8)
    half[..., 3] = 51  # a fifth of black on white
    assert (pixels(half) == 204).all()


def test_palette_with_and_without_transparency() -> None:
    indexed = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    indexed.putpalette([10, 20, 30, 200, 100, 50])
    expected = np.array([[[10, 20, 30], [200, 100, 50]], [[200, 100, 50], [10, 20, 30]]])
    assert (pixels(encoded(indexed)) == expected).all()
    seen_through = pixels(encoded(indexed, transparency=1))
    assert (seen_through[0, 0] == [10, 20, 30]).all()
    assert (seen_through[0, 1] == 255).all()


def test_exif_orientation_is_applied_once() -> None:
    upright = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    turned = load_image(encoded(upright, exif=exif))
    assert turned.size == (1, 3)
    assert (np.asarray(turned)[:, 0] == np.asarray(upright)[0]).all()
    assert not turned.getexif()
    assert (np.asarray(load_image(turned)) == np.asarray(turned)).all()


def test_files_by_name(tmp_path: Path) -> None:
    path = tmp_path / "ramp.png"
    path.write_bytes(encoded(Image.fromarray(RAMP)))
    assert (pixels(path) == as_grey(RAMP)).all()
    assert (pixels(str(path)) == as_grey(RAMP)).all()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"not a picture", "not a readable image"),
        (b"", "not a readable image"),
        (encoded(Image.fromarray(NOISE))[:500], "damaged"),
        ("https://example.org/cat.png", "no such file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
        (np.zeros((4, 4, 2), np.uint8), "H, W"),
        (np.zeros(4, np.uint8), "H, W"),
        (np.full((2, 2), 1.5), "0 to 1"),
        (np.full((2, 2), np.nan), "finite"),
        (np.full((2, 2), -1), "0 to 65535"),
    ],
)
def test_what_cannot_be_read_is_refused(source: object, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        load_image(source)  # type: ignore[arg-type]


def test_a_small_file_that_claims_to_be_huge_is_refused_before_it_is_decoded() -> None:
    claim = bytearray(encoded(Image.new("1", (8, 8))))
    claim[16:24] = (9000).to_bytes(4, "big") * 2  # the header's width and height
    claim[29:33] = _crc(bytes(claim[12:29]))
    with pytest.raises(MediaError, match="9000 x 9000"):
        load_image(bytes(claim))


def _crc(chunk: bytes) -> bytes:
    return zlib.crc32(chunk).to_bytes(4, "big")
