"""Video as a task: a few frames of the demo's clip, and the question which half of the clip they are from."""

from dataclasses import dataclass

import numpy as np

from omni_rl.media.types import Prompt, Video
from omni_rl.tasks.samples import clip_video
from omni_rl.tasks.settings import Split

QUESTION = "Is this from the first or the second half?"
FRAMES = 4
SPAN = 10
"""The number of frames of the clip between a prompt's first frame and its last."""


@dataclass(frozen=True)
class Halves:
    """Windows of the clip that begin at frames `starts`; none crosses the clip's middle."""

    starts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.starts)

    def prompt(self, index: int) -> Prompt:
        """Return the question about one window; the prompt's id names the frame at which the window begins."""
        clip, start = clip_video(), self.starts[index]
        chosen = np.linspace(start, start + SPAN, FRAMES).round().astype(int)
        frames = Video(clip.frames[chosen], clip.fps, tuple(int(number) for number in chosen), clip.total_frames)
        text = f"<|im_start|>user\n<video>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        answer = "first" if start < len(clip.frames) // 2 else "second"
        return Prompt(f"clip-{start}", text, videos=(frames,), answer=answer)


def load_halves(split: Split) -> Halves:
    """Return one of two splits, of which the held-out one has every fourth window. Raises MediaError where the clip is
    not installed."""
    total = len(clip_video().frames)
    middle = total // 2
    starts = [*range(middle - SPAN), *range(middle, total - SPAN)]
    return Halves(tuple(start for at, start in enumerate(starts) if (at % 4 == 3) == (split == "held_out")))
