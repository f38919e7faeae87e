"""Video as a task: a few frames of the clip that the demo has, and the question from which half of it they are."""

from dataclasses import dataclass

import numpy as np

from omni_rl.media.samples import clip_video
from omni_rl.media.types import Prompt, Video
from omni_rl.tasks.settings import Split

QUESTION = "Is this from the first or the second half?"
FRAMES = 4
SPAN = 10
"""Frames of the clip from a prompt's first to its last."""


@dataclass(frozen=True)
class Halves:
    """Windows of the clip that begin at frames `starts`; none crosses its middle."""

    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.starts)

    def prompt(self, index: int) -> Prompt:
        """A question about one window; its id names the frame at which that begins."""
        clip, start = clip_video(), self.starts[index]
        chosen = np.linspace(start, start + SPAN, FRAMES).round().astype(int)
        frames = Video(clip.frames[chosen], clip.fps, tuple(int(number) for number in chosen), clip.total_frames)
        text = f"<|im_start|>user\n<video>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        answer = "first" if start < len(clip.frames) // 2 else "second"
        return Prompt(f"clip-{start}", text, videos=(frames,), answer=answer)


def load_halves(split: Split) -> Halves:
    """One of two splits, every fourth window is held out. Raises MediaError where the clip is not installed."""
    total = len(clip_video().frames)
    middle = total // 2
    starts = [*range(middle - SPAN), *range(middle, total - SPAN)]
    return Halves(tuple(start for at, start in enumerate(starts) if (at % 4 == 3) == (split == "held_out")))
