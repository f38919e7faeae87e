"""Sizes of media read from headers that are made byte by byte, at their limits and one past them."""

import struct
from collections.abc import Callable

import pytest
from omni_rl_services.coordinator.media import JPEG, MP4, PNG, WAV, check, extent_of, kind_of
from omni_rl_services.coordinator.settings import Bounds

from omni_rl.errors import MediaError, TooLargeError, UnsupportedMediaTypeError


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)


def segment(code: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, code, 2 + len(body)) + body


def jpeg(width: int, height: int, *before: bytes, code: int = 0xC0) -> bytes:
    frame = segment(code, struct.pack(">BHHB", 8, height, width, 3))
    return b"\xff\xd8" + b"".join(before) + frame


def chunk(name: bytes, body: bytes, length: int | None = None) -> bytes:
    said = len(body) if length is None else length
    return struct.pack("<4sI", name, said) + body + bytes(said & 1 if length is None else 0)


def wav(samples: int, *before: bytes, block: int = 4, length: int | None = None) -> bytes:
    form = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 2, 16_000, 64_000, block, 16))
    data = chunk(b"data", bytes(samples * block), length)
    return b"RIFF" + bytes(4) + b"WAVE" + b"".join(before) + form + data


def box(name: bytes, *inside: bytes, long: bool = False, length: int | None = None) -> bytes:
    body = b"".join(inside)
    if long:
        return struct.pack(">I4sQ", 1, name, 16 + len(body) if length is None else length) + body
    return struct.pack(">I4s", 8 + len(body) if length is None else length, name) + body


def track(width: int, height: int, frames: int, kind: bytes = b"vide", long: bool = False) -> bytes:
    head = box(b"tkhd", bytes(12), struct.pack(">II", width << 16, height << 16))
    sizes = box(b"stsz", struct.pack(">III", 0, 0, frames), long=long)
    table = box(b"minf", box(b"stbl", box(b"stts"), sizes))
    return box(b"trak", head, box(b"mdia", box(b"hdlr", bytes(8), kind), table))


def mp4(*inside: bytes, long: bool = False) -> bytes:
    return box(b"ftyp", b"isom") + box(b"moov", *inside, long=long)


@pytest.mark.parametrize(
    ("content", "kind", "extent"),
    [
        (png(31, 17), PNG, (527, 0, 0)),
        (jpeg(31, 17), JPEG, (527, 0, 0)),
        (jpeg(31, 17, code=0xC2), JPEG, (527, 0, 0)),
        (jpeg(31, 17, code=0xCF), JPEG, (527, 0, 0)),
        # Tables and an extension stand in the row of frames, and are none.
        (jpeg(31, 17, *(segment(code, bytes(9)) for code in (0xBF, 0xC4, 0xC8, 0xCC, 0xD0))), JPEG, (527, 0, 0)),
        (jpeg(31, 17, b"\xff", segment(0xE0, b"JFIF\0"), b"\xff\xff"), JPEG, (527, 0, 0)),
        (wav(123), WAV, (0, 0, 123)),
        (wav(123, block=1), WAV, (0, 0, 123)),
        (wav(5, chunk(b"LIST", b"odd"), chunk(b"JUNK", b"even")), WAV, (0, 0, 5)),
        # What a header claims beyond the file's end is not there.
        (wav(5, length=2**31), WAV, (0, 0, 5)),
        (wav(5, length=8), WAV, (0, 0, 2)),
        (mp4(track(31, 17, 5)), MP4, (527, 5, 0)),
        (mp4(track(31, 17, 5), long=True), MP4, (527, 5, 0)),
        (mp4(track(31, 17, 5, long=True)), MP4, (527, 5, 0)),
        (mp4(box(b"free", length=8), track(31, 17, 5)), MP4, (527, 5, 0)),
        # Of several pictures the largest, and the frames of all; a sound's track has none.
        (mp4(track(31, 17, 5), track(100, 10, 7), track(1, 1, 2)), MP4, (1000, 14, 0)),
        (mp4(track(50, 50, 9, b"soun"), track(3, 2, 1), box(b"udta")), MP4, (6, 1, 0)),
        (mp4(), MP4, (0, 0, 0)),
        # A box of length 0 goes to the end.
        (box(b"ftyp", b"isom") + box(b"moov", track(31, 17, 5), length=0), MP4, (527, 5, 0)),
    ],
)
def test_extents_of_headers_that_are_whole(content: bytes, kind: str, extent: tuple[int, int, int]) -> None:
    assert kind_of(content) == kind
    assert tuple(extent_of(content, kind)) == extent


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (png(1, 1)[:23], PNG, "ends inside its header"),
        (jpeg(1, 1)[:10], JPEG, "ends inside its header"),
        (b"\xff\xd8\xff\xe0\x00\x02\x00\xc0\x00\x02", JPEG, "no marker at byte 6"),
        (b"\xff\xd8" + segment(0xE0, b"abc") + b"xxxxxx", JPEG, "no marker at byte 9"),
        (wav(1, block=0), WAV, "samples of no size"),
        (b"RIFF" + bytes(4) + b"WAVE" + chunk(b"data", bytes(8)), WAV, "samples of no size"),
        (wav(0)[:-1], WAV, "ends inside its header"),
        (box(b"ftyp"), MP4, "no moov box"),
        (mp4(box(b"trak", box(b"tkhd", bytes(8)), box(b"mdia", box(b"hdlr", bytes(8), b"vide")))), MP4, "how many"),
        (mp4(box(b"trak", length=7)), MP4, "a box of 7 bytes"),
        (mp4(box(b"trak", bytes(8), long=True, length=15)), MP4, "a box of 15 bytes"),
    ],
)
def test_a_header_that_is_broken_says_where(content: bytes, kind: str, says: str) -> None:
    with pytest.raises(MediaError, match=says):
        extent_of(content, kind)


@pytest.mark.parametrize(
    "missing",
    [
        box(b"trak", box(b"mdia", box(b"hdlr", bytes(8), b"vide"))),
        box(b"trak", box(b"tkhd", bytes(8))),
        box(b"trak", box(b"tkhd", bytes(8)), box(b"mdia")),
        box(b"free", box(b"tkhd", bytes(8)), box(b"mdia", box(b"hdlr", bytes(8), b"vide"))),
    ],
)
def test_what_is_no_whole_track_of_pictures_is_passed_over(missing: bytes) -> None:
    assert tuple(extent_of(mp4(missing, track(31, 17, 5)), MP4)) == (527, 5, 0)


@pytest.mark.parametrize(
    ("made", "kind", "around"),
    [
        (lambda count: jpeg(31, 17, *[segment(0xE0)] * count), JPEG, 1),
        (lambda count: wav(5, *[chunk(b"JUNK", b"")] * count), WAV, 2),
        (lambda count: box(b"ftyp") + box(b"free") * count + box(b"moov"), MP4, 2),
    ],
)
def test_a_header_may_have_4096_pieces_and_not_one_more(made: Callable[[int], bytes], kind: str, around: int) -> None:
    """`around` are those that the header has anyway."""
    extent_of(made(4096 - around), kind)
    with pytest.raises(MediaError, match="4,096"):
        extent_of(made(4097 - around), kind)


BOUNDS = Bounds(pixels=600, frames=5, samples=100)


@pytest.mark.parametrize(
    ("content", "kind", "over"),
    [
        (png(30, 20), PNG, png(601, 1)),
        (jpeg(30, 20), JPEG, jpeg(601, 1)),
        (wav(100), WAV, wav(101)),
        (mp4(track(30, 20, 5)), MP4, mp4(track(30, 20, 6))),
        (mp4(track(30, 20, 2), track(30, 20, 3)), MP4, mp4(track(30, 20, 2), track(30, 20, 4))),
        (mp4(track(1, 600, 1)), MP4, mp4(track(1, 601, 1))),
    ],
)
def test_what_is_as_large_as_it_may_be_is_taken_and_what_is_larger_refused(
    content: bytes, kind: str, over: bytes
) -> None:
    assert check(content, kind, BOUNDS) == kind
    with pytest.raises(TooLargeError, match="at most"):
        check(over, kind, BOUNDS)


@pytest.mark.parametrize("said", ["image/png", "IMAGE/PNG", " image/png ", "image/png; charset=binary", "image/png;"])
def test_a_content_type_is_read_without_its_parameters_and_case(said: str) -> None:
    assert check(png(1, 1), said, BOUNDS) == PNG


@pytest.mark.parametrize("said", ["", "image/jpeg", "x; image/png", "image/png2"])
def test_a_content_type_that_is_not_the_contents_is_refused(said: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="the content is image/png"):
        check(png(1, 1), said, BOUNDS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a",
        b"\xff\xd8",
        b"\xff\xd8\x00",
        b"RIFF" + bytes(4) + b"AVI ",
        b"XIFF" + bytes(4) + b"WAVE",
        b"ftyp" + bytes(8),
        bytes(5) + b"ftyp",
        b"RIFFWAVE",
    ],
)
def test_content_of_no_known_kind_is_refused(content: bytes) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="media is none of image/png, image/jpeg, audio/wav, video/mp4"):
        kind_of(content)
