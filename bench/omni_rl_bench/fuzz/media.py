"""Makes pictures, sounds and clips by their headers, valid and broken: the coordinator reads no further."""

import functools
import random
import struct
import zlib
from collections.abc import Callable

from blake3 import blake3

from omni_rl_bench.fuzz.bytestrings import mutated

KINDS = ("image/png", "image/jpeg", "audio/wav", "video/mp4")


def make(kind: str, rng: random.Random) -> bytes:
    """Return a valid item. Raises `KeyError` for a content type that has no maker here: a new one needs one."""
    return _MAKERS[kind](rng)


def make_odd(kind: str, rng: random.Random) -> bytes:
    """Return an item with a length, a count or a name in its header that is not what it should be."""
    return mutated(make(kind, rng), rng)


@functools.cache
def shared() -> tuple[tuple[str, bytes], ...]:
    """Return content type and bytes of items that many requests name."""
    return tuple((kind, make(kind, random.Random(n))) for n, kind in enumerate(KINDS))  # noqa: S311 - no secrets


@functools.cache
def digests() -> tuple[str, ...]:
    return tuple(blake3(content).hexdigest() for _, content in shared())


def _png(rng: random.Random) -> bytes:
    width, height = rng.choice(((1, 1), (8, 4), (640, 480)))
    parts = [b"\x89PNG\r\n\x1a\n"]
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for name, body in ((b"IHDR", head), (b"tEXt", b"a\0b"), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")):
        parts.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(parts)


def _jpeg(rng: random.Random) -> bytes:
    def segment(code: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body

    tables = segment(0xDB, bytes(65)) * rng.randrange(1, 4) + segment(0xC4, bytes(20))
    frame = segment(rng.choice((0xC0, 0xC2)), struct.pack(">BHHB", 8, 48, 64, 3) + bytes(9))
    application = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0") + segment(0xE1, b"Exif\0\0" + bytes(30))
    return b"\xff\xd8" + application + tables + frame + segment(0xDA, bytes(10)) + b"\xff\xd9"


def _wav(rng: random.Random) -> bytes:
    channels = rng.choice((1, 2, 6))
    form = struct.pack("<HHIIHH", 1, channels, 16_000, 32_000 * channels, 2 * channels, 16)
    body = b"WAVE"
    for name, content in ((b"fmt ", form), (b"LIST", b"odd"), (b"data", bytes(2 * channels * 40))):
        body += name + struct.pack("<I", len(content)) + content + bytes(len(content) & 1)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _mp4(rng: random.Random) -> bytes:
    def box(name: bytes, *inside: bytes) -> bytes:
        body = b"".join(inside)
        if rng.random() < 0.2:
            return struct.pack(">I4sQ", 1, name, 16 + len(body)) + body
        return struct.pack(">I4s", 8 + len(body), name) + body

    def track(handler: bytes) -> bytes:
        sizes = box(b"stsz", struct.pack(">III", 0, 0, 12), bytes(48))
        media = box(b"mdia", box(b"hdlr", bytes(8) + handler + bytes(13)), box(b"minf", box(b"stbl", sizes)))
        return box(b"trak", box(b"tkhd", bytes(76) + struct.pack(">II", 64 << 16, 48 << 16)), media)

    movie = box(b"moov", box(b"mvhd", bytes(100)), track(b"vide"), track(b"soun"))
    return struct.pack(">I4s", 20, b"ftyp") + b"isom\0\0\2\0isom" + movie + box(b"mdat", bytes(64))


_MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "audio/wav": _wav,
    "video/mp4": _mp4,
}
