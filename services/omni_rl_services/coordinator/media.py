"""What a media item is and how large it would be unpacked, read from its header alone: nothing is decoded here."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from omni_rl.errors import MediaError, TooLargeError, UnsupportedMediaTypeError
from omni_rl_services.coordinator.settings import Bounds

PNG = "image/png"
JPEG = "image/jpeg"
WAV = "audio/wav"
MP4 = "video/mp4"
TYPES = (PNG, JPEG, WAV, MP4)
# Start-of-frame markers; 0xC4, 0xC8 and 0xCC in their row are tables and an extension (ITU-T T.81, table B.1).
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


PIECES = 4096
"""The most segments, chunks or boxes of a header: real ones have some hundred. A file of nothing else would take
seconds."""


class Extent(NamedTuple):
    """The size of a media item: pixels of a picture or frame, frames of a video, samples (of each channel) of a
    sound."""

    pixels: int = 0
    frames: int = 0
    samples: int = 0


def kind_of(content: bytes) -> str:
    """Return the content type that the first bytes show. Raises `UnsupportedMediaTypeError`."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if content.startswith(b"\xff\xd8\xff"):
        return JPEG
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        return WAV
    if content[4:8] == b"ftyp":
        return MP4
    raise UnsupportedMediaTypeError(f"media is none of {', '.join(TYPES)}")


def check(content: bytes, content_type: str, bounds: Bounds) -> str:
    """Return the content's type, if it is what `content_type` says and within bounds.

    Raises:
        UnsupportedMediaTypeError: the content is of a type that is not taken, or not of the one that is said.
        MediaError: its header is broken.
        TooLargeError: unpacked it would have too many pixels, frames or samples.
    """
    kind = kind_of(content)
    if content_type.split(";")[0].strip().lower() != kind:
        raise UnsupportedMediaTypeError(f"the content type says {content_type!r}, the content is {kind}")
    extent = extent_of(content, kind)
    for name, found, most in (
        ("pixels", extent.pixels, bounds.pixels),
        ("frames", extent.frames, bounds.frames),
        ("samples", extent.samples, bounds.samples),
    ):
        if found > most:
            raise TooLargeError(f"{kind} of {found:,} {name}; at most {most:,} are taken")
    return kind


def extent_of(content: bytes, kind: str) -> Extent:
    """Return the size of a media item, from its header. Raises `MediaError` where that is broken."""
    try:
        match kind:
            case "image/png":
                width, height = struct.unpack_from(">II", content, 16)
                return Extent(pixels=width * height)
            case "image/jpeg":
                return _jpeg(content)
            case "audio/wav":
                return _wav(content)
            case _:
                return _mp4(content)
    except struct.error:
        raise MediaError(f"{kind} ends inside its header") from None


def _jpeg(content: bytes) -> Extent:
    at = 2
    for _ in range(PIECES):
        mark, code, length = struct.unpack_from(">BBH", content, at)
        if mark != 0xFF:
            raise MediaError(f"image/jpeg has no marker at byte {at}")
        if code in _SOF:
            height, width = struct.unpack_from(">HH", content, at + 5)
            return Extent(pixels=width * height)
        if code == 0xFF:  # padding before a marker
            at += 1
        else:
            at += 2 + length
    raise MediaError(f"image/jpeg has no frame within {PIECES:,} segments")


def _wav(content: bytes) -> Extent:
    at, block = 12, 0
    for _ in range(PIECES):
        name, length = struct.unpack_from("<4sI", content, at)
        if name == b"fmt ":
            (block,) = struct.unpack_from("<H", content, at + 8 + 12)
        elif name == b"data":
            if not block:
                raise MediaError("audio/wav has samples of no size")
            return Extent(samples=min(length, len(content) - at - 8) // block)
        at += 8 + length + (length & 1)
    raise MediaError(f"audio/wav has no samples within {PIECES:,} chunks")


def _mp4(content: bytes) -> Extent:
    """Return the size of the largest picture track (ISO/IEC 14496-12: moov, trak, mdia, minf, stbl, stsz and tkhd)."""
    boxes = _Boxes()
    moov = boxes.one(memoryview(content), b"moov")
    if moov is None:
        raise MediaError("video/mp4 has no moov box")
    pixels = frames = 0
    for name, track in boxes.of(moov):
        header, media = (boxes.one(track, b"tkhd"), boxes.one(track, b"mdia")) if name == b"trak" else (None, None)
        handler = None if media is None else boxes.one(media, b"hdlr")
        if header is None or media is None or handler is None or bytes(handler[8:12]) != b"vide":
            continue
        width, height = struct.unpack_from(">II", header, len(header) - 8)
        sizes = boxes.inside(media, b"minf", b"stbl", b"stsz")
        if sizes is None:
            raise MediaError("video/mp4 does not say how many frames it has")
        pixels = max(pixels, (width >> 16) * (height >> 16))
        frames += struct.unpack_from(">I", sizes, 8)[0]
    return Extent(pixels=pixels, frames=frames)


class _Boxes:
    """The boxes of one file, of which at most `PIECES` are read."""

    def __init__(self) -> None:
        self._left = PIECES

    def of(self, view: memoryview) -> Iterator[tuple[bytes, memoryview]]:
        """Yield name and body of each box in a box's body."""
        at = 0
        while at + 8 <= len(view):
            self._left -= 1
            if self._left < 0:
                raise MediaError(f"video/mp4 has more than {PIECES:,} boxes")
            length, name = struct.unpack_from(">I4s", view, at)
            start = 8
            if length == 1:
                (length,) = struct.unpack_from(">Q", view, at + 8)
                start = 16
            elif length == 0:
                length = len(view) - at
            if length < start:
                raise MediaError(f"video/mp4 has a box of {length} bytes")
            yield name, view[at + start : at + length]
            at += length

    def one(self, view: memoryview, wanted: bytes) -> memoryview | None:
        """Return the body of the first box of a name, or None."""
        return next((body for name, body in self.of(view) if name == wanted), None)

    def inside(self, box: memoryview | None, *path: bytes) -> memoryview | None:
        """Return the body of a box in a box, and so on along `path`, or None where one is missing."""
        for name in path:
            box = None if box is None else self.one(box, name)
        return box
