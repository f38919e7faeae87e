"""Defines faults of a trainer that makes its own tensors of the media: another rate, order or filter.

A fault takes the job's rig and a seed.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from omni_rl.consistency.actions import Cause
from omni_rl.media.types import Prompt, Sound
from omni_rl.rollout.types import Rollout
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.fault import Fault

RATE = 15_900
"""The rate, in Hz, of a sound that is taken for one of 16,000."""
COARSE = 2
"""By how much pictures are scaled down, and up again by the nearest pixel."""


def rendered_apart(change: Callable[[Prompt], Prompt], rig: Any, seed: int) -> None:
    """Give the trainer prompts that were rendered from changed media."""

    def instead(original: Any) -> Callable[..., Any]:
        def score(rollouts: list[Rollout]) -> Any:
            mine = rig.policies.render([change(prompt) for prompt in rig.prompts])
            return original([replace(rollout, prompt=prompt) for rollout, prompt in zip(rollouts, mine, strict=True)])

        return score

    patches.replace(rig.policies, "score", instead)


def slower(sound: Sound) -> Sound:
    """Return a sound as long, with everything in it where it would be at another rate."""
    samples = np.atleast_2d(sound.samples)
    at = np.arange(samples.shape[1]) * RATE / 16_000
    found = np.stack([np.interp(at, np.arange(samples.shape[1]), channel) for channel in samples])
    return replace(sound, samples=found.astype(np.float32).reshape(sound.samples.shape))


def coarser(picture: Image.Image) -> Image.Image:
    """Scale a picture by the nearest pixel, and not by the processor's filter."""
    small = picture.resize(
        (max(1, picture.width // COARSE), max(1, picture.height // COARSE)), Image.Resampling.NEAREST
    )
    return small.resize(picture.size, Image.Resampling.NEAREST)


def sounds_slower(prompt: Prompt) -> Prompt:
    return replace(prompt, sounds=tuple(slower(sound) for sound in prompt.sounds))


def pictures_coarser(prompt: Prompt) -> Prompt:
    return replace(prompt, images=tuple(coarser(picture) for picture in prompt.images))


def _own_media(name: str, change: Callable[[Prompt], Prompt]) -> Fault:
    put = partial(rendered_apart, change)
    return Fault(name, (Cause.MEDIA_MISMATCH,), put, side="job", proven=True)


FAULTS = (
    _own_media("sound at 15.9 kHz", sounds_slower),
    _own_media("another resize filter", pictures_coarser),
)
