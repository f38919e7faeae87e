"""Which frames of its source a recorded video has: a bundle does not say, but vLLM wrote their times into the prompt.

They matter to more than the ids: the engine writes the time stamps anew, from the frames' numbers, when it runs.
"""

import re
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer

from omni_rl.media.types import Prompt, Video
from omni_rl.models.families import family_of
from omni_rl.replay.reading import Bundle

STEPS = 100
"""Frames in a second. Time stamps have two digits after the point, so this rate writes the stamps of any other."""


def timed(bundle: Bundle, model: Path) -> Prompt:
    """Return the bundle's prompt with frame numbers that give the recorded time stamps. A video whose stamps cannot be
    read in the recorded ids, by the checkpoint's tokenizer, stays as it is."""
    if not bundle.prompt.videos or (stamp := family_of(model).frame_time) is None:
        return bundle.prompt
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    spans = (item for item in bundle.media if item.modality == "video")
    videos = [
        _numbered(video, tokenizer.decode(bundle.prompt_ids[item.offset : item.offset + item.length].tolist()), stamp)
        for video, item in zip(bundle.prompt.videos, spans, strict=True)
    ]
    return replace(bundle.prompt, videos=tuple(videos))


def _numbered(video: Video, text: str, stamp: re.Pattern[str]) -> Video:
    numbers = [int(seconds) * STEPS + int(rest) for seconds, rest in stamp.findall(text)]
    if len(numbers) != len(video.frames):
        return video
    return replace(video, fps=float(STEPS), indices=tuple(numbers), total_frames=max(numbers) + 1)
