"""A prompt's media made plain and checked, without vLLM: so it can be done before anything crosses a process.

Shapes: F frames, H x W pixels, S samples.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from omni_rl.errors import MediaError, PromptError
from omni_rl.kinds import Modality
from omni_rl.media.images import load_image
from omni_rl.media.sounds import MODEL_RATE, to_mono_16k
from omni_rl.media.types import Prompt, Sound, Video

PLACEHOLDERS: dict[Modality, str] = {"image": "<image>", "audio": "<so_embedding>", "video": "<video>"}
MAX_FPS = 1000.0  # vLLM counts a frame's duration in whole milliseconds


def plain(prompt: Prompt) -> Prompt:
    """The prompt with upright RGB pictures, mono sounds at 16 kHz and contiguous frames. Idempotent.

    Raises `PromptError` if the text is no Unicode or its placeholders and media do not match, `MediaError` if an item
    is empty, unreadable or too long; both name the prompt and the item.
    """
    _check_text(prompt)
    _check_counts(prompt)
    images = []
    for index, image in enumerate(prompt.images):
        with named(prompt.id, "image", index):
            images.append(load_image(image))
    sounds = []
    for index, sound in enumerate(prompt.sounds):
        with named(prompt.id, "audio", index):
            sounds.append(Sound(to_mono_16k(sound), MODEL_RATE))
    videos = []
    for index, video in enumerate(prompt.videos):
        with named(prompt.id, "video", index):
            videos.append(replace(video, frames=_checked_frames(video)))
    return replace(prompt, images=tuple(images), sounds=tuple(sounds), videos=tuple(videos))


@contextmanager
def named(prompt_id: str, modality: Modality, index: int) -> Iterator[None]:
    """A `MediaError` out of this block says whose it is."""
    try:
        yield
    except MediaError as error:
        raise MediaError(f"prompt {prompt_id!r}, {modality} {index}: {error}") from error


def _check_text(prompt: Prompt) -> None:
    try:
        prompt.text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"prompt {prompt.id!r}: its text has half a surrogate pair at {error.start}, which is no character; decode "
            "the text as UTF-8"
        ) from error


def _check_counts(prompt: Prompt) -> None:
    for modality, items in prompt.media.items():
        placeholder, count = PLACEHOLDERS[modality], len(items)
        found = prompt.text.count(placeholder)
        if found != count:
            raise PromptError(
                f"prompt {prompt.id!r} has {found} {placeholder} in its text but {count} {modality} item(s); "
                "give one placeholder per item"
            )


def _checked_frames(video: Video) -> np.ndarray:
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
    return np.ascontiguousarray(frames)
