"""Reads frames out of a video file, with the frame numbers and the rate from which vLLM computes their timestamps.

Shapes: F frames, H x W pixels.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omni_rl.errors import MediaError
from omni_rl.media._container import open_container
from omni_rl.media.types import Video

MAX_FPS = 1000.0  # vLLM counts a frame's duration in whole milliseconds
MAX_PIXELS = 2**29
"""The most pixels of all frames of a video that is read whole: 1.5 GB once decoded."""


def read_frames(
    source: str | Path | bytes,
    count: int,
    start: float = 0.0,
    end: float | None = None,
    size: tuple[int, int] | None = None,
) -> Video:
    """Decode `count` frames, evenly spread over the seconds from `start` to `end` (None: to the end of the video).

    `start` and `end` are in seconds. There are fewer frames if the window holds fewer. Frames are uint8 [F, H, W, 3],
    turned upright as a player shows them, then scaled to `size` (width, height); None keeps the video's own. `indices`
    are the frames' true numbers, counted from the first frame of the file; `fps` is the stream's mean rate. Raises
    `MediaError` for a file without video, an empty window, and whatever cannot be decoded.
    """
    if count < 1:
        raise MediaError(f"a video needs at least one frame, not {count}")
    with open_container(source) as container:
        if not container.streams.video:
            raise MediaError("the file has no video")
        stream = container.streams.video[0]
        if stream.average_rate is None:
            raise MediaError("the video does not say its frame rate")
        fps = float(stream.average_rate)
        # Counted by packets: what the header claims is missing or wrong in many files.
        total = sum(1 for packet in container.demux(stream) if packet.size)
        wanted = _spread(count, start, end, fps, total)
        container.seek(0)
        pictures = {}
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                pictures[number] = _upright(frame, size)
            if number == wanted[-1]:
                break
    if len(pictures) != len(wanted):
        raise MediaError(f"the video ends after {len(pictures)} of the {len(wanted)} frames asked for")
    return Video(np.stack([pictures[number] for number in wanted]), fps, tuple(wanted), total)


def read_all_frames(source: str | Path | bytes) -> Video:
    """Decode every frame of a video. Raises `MediaError` for one that cannot be decoded, or has too many pixels."""
    first = read_frames(source, 1)  # tells the size of all before all are decoded
    height, width = first.frames.shape[1:3]
    if first.total_frames * height * width > MAX_PIXELS:
        raise MediaError(f"{first.total_frames} frames of {width} x {height} pixels are more than are decoded here")
    return read_frames(source, first.total_frames)


def plain_video(video: Video) -> Video:
    """Return the video with contiguous frames. Raises `MediaError` for frames, frame numbers or a rate that are
    invalid."""
    frames = video.frames
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise MediaError(f"frames are uint8 [F, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    if frames.size == 0:
        raise MediaError("the video has no frames or no pixels")
    if len(video.indices) != len(frames):
        raise MediaError(f"{len(frames)} frames but {len(video.indices)} frame numbers")
    if not 0 < video.fps <= MAX_FPS:
        raise MediaError(f"the frame rate is {video.fps} fps; it must be above 0 and at most {MAX_FPS:g}")
    if min(video.indices) < 0 or max(video.indices) >= video.total_frames:
        raise MediaError(f"frame numbers {video.indices} do not lie within the video's {video.total_frames} frames")
    return replace(video, frames=np.ascontiguousarray(frames))


def for_vllm(video: Video) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return a video's frames, uint8 [F, H, W, 3], and the metadata from which vLLM computes their timestamps."""
    metadata = {
        "fps": video.fps,
        "frames_indices": list(video.indices),
        "total_num_frames": video.total_frames,
        "duration": video.total_frames / video.fps,
    }
    return video.frames, metadata


def _upright(frame: Any, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return a decoded frame as uint8 [H, W, 3], turned by quarters as its display matrix says.

    Telephones store what they film sideways, with such a matrix; vLLM's own loader (OpenCV) turns it too, and both
    leave out what else a matrix may hold.
    """
    quarters = round(frame.rotation / 90)  # counter-clockwise
    lying = quarters % 2 == 1
    width, height = size if size is not None else (None, None)
    stored = frame.reformat(
        width=height if lying else width, height=width if lying else height, format="rgb24"
    ).to_ndarray()
    return np.rot90(stored, quarters)


def _spread(count: int, start: float, end: float | None, fps: float, total: int) -> list[int]:
    """Return frame numbers, evenly spread and without repeats, whose times lie in [start, end]."""
    if not np.isfinite([start, 0 if end is None else end]).all():
        raise MediaError(f"frames between {start} s and {end} s were asked for; give numbers")
    first = max(0, int(np.ceil(start * fps - 1e-6)))
    last = total - 1 if end is None else min(total - 1, int(np.floor(end * fps + 1e-6)))
    if last < first:
        shown = "its end" if end is None else f"{end:g} s"
        raise MediaError(f"no frame lies between {start:g} s and {shown}; the video has {total} frames at {fps:g} fps")
    spread = np.linspace(first, last, min(count, last - first + 1))
    return [int(number) for number in spread.round()]
