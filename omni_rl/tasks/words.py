"""Defines spoken words as a task: a voice names where a loudspeaker stands. The recordings are those of Debian's
alsa-utils."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from omni_rl.errors import MediaError
from omni_rl.media.sounds import MODEL_RATE, read_sound, to_mono_16k
from omni_rl.media.types import Prompt, Sound
from omni_rl.tasks.settings import Split

FOLDER = Path("/usr/share/sounds/alsa")
# The recordings, and the answer that each expects.
WORDS = {
    "Front_Center": "front",
    "Front_Left": "front",
    "Front_Right": "front",
    "Rear_Center": "rear",
    "Rear_Left": "rear",
    "Rear_Right": "rear",
    "Side_Left": "side",
    "Side_Right": "side",
}
QUESTION = "Does the voice say front, rear or side?"
VERSIONS = 16
"""The number of versions of each recording, from louder to softer and each with other noise; every fourth is held
out."""
NOISE = 0.01
"""The noise's standard deviation, where full scale is 1."""
SEED = 20


@dataclass(frozen=True)
class Words:
    """The prompts of one split: these `versions` of every recording. They are ordered by version, then by recording."""

    versions: tuple[int, ...]

    def __len__(self) -> int:
        return len(WORDS) * len(self.versions)

    def prompt(self, index: int) -> Prompt:
        """Return the question about one sound; the prompt's id names the recording and the version."""
        name = list(WORDS)[index % len(WORDS)]
        version = self.versions[index // len(WORDS)]
        text = f"<|im_start|>user\n<so_embedding>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
        return Prompt(f"{name}-{version}", text, sounds=(_sound(name, version),), answer=WORDS[name])


def load_words(split: Split) -> Words:
    """Return one of two splits, which share no version of a recording.

    Raises:
        MediaError: the recordings are not installed.
    """
    missing = [name for name in WORDS if not _path(name).is_file()]
    if missing:
        raise MediaError(f"{FOLDER} lacks {', '.join(missing)}: apt-get install alsa-utils")
    return Words(tuple(version for version in range(VERSIONS) if (version % 4 == 3) == (split == "held_out")))


def _path(name: str) -> Path:
    return FOLDER / f"{name}.wav"


@cache
def _sound(name: str, version: int) -> Sound:
    samples = to_mono_16k(read_sound(_path(name)))
    rng = np.random.default_rng([SEED, list(WORDS).index(name), version])
    louder = np.float32(1.0 - 0.5 * version / VERSIONS)
    noise = rng.standard_normal(len(samples)).astype(np.float32) * np.float32(NOISE)
    return Sound(np.clip(samples * louder + noise, -1, 1), MODEL_RATE)
