"""Frames carry the numbers they have in the file."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

from omni_rl.errors import MediaError
from omni_rl.media.videos import read_frames
from omni_rl.tasks.samples import clip_path

FPS = 10
FRAMES = 40


@pytest.fixture(scope="module")
def counted() -> bytes:
    """A lossless video whose frame n is grey of value 5 n."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "bgr0"
        for number in range(FRAMES):
            picture = np.full((16, 32, 3), 5 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def test_frames_are_the_ones_their_numbers_say(counted: bytes) -> None:
    video = read_frames(counted, 5, start=1.0, end=3.0)
    assert video.indices == (10, 15, 20, 25, 30)
    assert [int(frame[0, 0, 0]) for frame in video.frames] == [5 * index for index in video.indices]
    assert (video.fps, video.total_frames) == (FPS, FRAMES)
    assert video.frames.shape == (5, 16, 32, 3)
    assert video.frames.dtype == np.uint8


def test_a_short_window_gives_fewer_frames_and_none_twice(counted: bytes) -> None:
    assert read_frames(counted, 8, start=1.0, end=1.25).indices == (10, 11, 12)
    assert read_frames(counted, 1).indices == (0,)
    assert read_frames(counted, 2).indices == (0, FRAMES - 1)
    assert len(read_frames(counted, 1000).indices) == FRAMES


def test_size_is_width_and_height(counted: bytes, tmp_path: Path) -> None:
    path = tmp_path / "counted.mkv"
    path.write_bytes(counted)
    video = read_frames(path, 3, size=(8, 4))
    assert video.frames.shape == (3, 4, 8, 3)
    assert [int(frame[2, 2, 1]) for frame in video.frames] == [5 * index for index in video.indices]


def _turned(quarters: int) -> bytes:
    """A video, white in its upper left, that a player turns clockwise by so many quarters."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        picture = np.zeros((32, 64, 3), np.uint8)
        picture[:16, :32] = 255
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    content, one = buffer.getvalue(), 1 << 16
    upright = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    cos, sin = ((one, 0), (0, one), (-one, 0), (0, -one))[quarters]
    at = content.index(upright, content.index(b"tkhd"))
    return content[:at] + struct.pack(">9i", cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30) + content[at + len(upright) :]


@pytest.mark.parametrize("size", [None, (16, 24)])
@pytest.mark.parametrize("quarters", range(4))
def test_what_was_filmed_sideways_stands_upright_as_in_vllms_own_loader(
    tmp_path: Path, quarters: int, size: tuple[int, int] | None
) -> None:
    path = tmp_path / "turned.mp4"
    path.write_bytes(_turned(quarters))
    frames = read_frames(path, 2, size=size).frames
    corners = [frames[0][rows, columns].mean() > 128 for rows, columns in _CORNERS]
    assert corners == [corner == quarters for corner in range(4)]
    if size is not None:
        assert frames.shape == (2, size[1], size[0], 3)
        return
    theirs, _ = VIDEO_LOADER_REGISTRY.load("opencv").load_bytes(path.read_bytes(), num_frames=2)
    assert frames.shape == theirs.shape
    assert np.abs(frames.astype(int) - theirs).mean() < 4  # two decoders' rounding of the colours


_CORNERS = (
    (slice(2, 6), slice(2, 6)),
    (slice(2, 6), slice(-6, -2)),
    (slice(-6, -2), slice(-6, -2)),
    (slice(-6, -2), slice(2, 6)),
)
"""Clockwise from the upper left."""


def test_the_clip() -> None:
    video = read_frames(clip_path(), 4, start=1, end=2, size=(64, 36))
    assert (video.fps, video.total_frames, video.indices) == (25.0, 132, (25, 33, 42, 50))
    assert video.frames.std() > 10


@pytest.mark.parametrize(
    ("count", "start", "end", "words"),
    [
        (0, 0.0, None, "at least one"),
        (3, 9.0, None, "no frame lies"),
        (3, 2.0, 1.0, "no frame lies"),
        (3, float("nan"), None, "give numbers"),
        (3, 0.0, float("inf"), "give numbers"),
    ],
)
def test_empty_choices_are_refused(counted: bytes, count: int, start: float, end: float | None, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        read_frames(counted, count, start, end)


def test_files_without_video_are_refused(counted: bytes) -> None:
    with pytest.raises(MediaError, match="cannot decode"):
        read_frames(b"ffconcat version 1.0\nfile '/etc/hostname'\n", 2)
    with pytest.raises(MediaError, match=r"cannot decode|ends after"):
        read_frames(counted[:200], 2)
    with pytest.raises(MediaError, match="no such file"):
        read_frames("rtsp://example.org/a", 2)
