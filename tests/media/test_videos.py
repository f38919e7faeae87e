"""Frames carry the numbers they have in the file."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from omni_rl.errors import MediaError
from omni_rl.media.samples import clip_path
from omni_rl.media.videos import read_frames

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


def test_the_clip() -> None:
    video = read_frames(clip_path(), 4, start=1, end=2, size=(64, 36))
    assert (video.fps, video.total_frames, video.indices) == (25.0, 132, (25, 33, 42, 50))
    assert video.frames.std() > 10


@pytest.mark.parametrize(
    ("count", "start", "end", "words"),
    [(0, 0.0, None, "at least one"), (3, 9.0, None, "no frame lies"), (3, 2.0, 1.0, "no frame lies")],
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
