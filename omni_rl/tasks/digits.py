"""Handwritten digits as a task: one image, one question, one digit as the answer. Their source is named in
`digits.csv.gz`.

N is the number of images in the shapes below.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from PIL import Image

from omni_rl.media.types import Prompt
from omni_rl.tasks.settings import Split

STORED = Path(__file__).with_name("digits.csv.gz")
QUESTION = "What digit is this?"
HELD_OUT_OF = 5  # one image in so many is held out, by its hash: whoever has the image knows its split
SCALE = 8  # 8 x 8 to 64 x 64: four tokens of 32 x 32 pixels


@dataclass(frozen=True)
class Digits:
    """One split. `images` is float64 [N, 8, 8], ink from 0 to 16; `labels` int64 [N]; `places` int64 [N], the images'
    numbers in the whole set, in ascending order."""

    images: NDArray[np.float64]
    labels: NDArray[np.int64]
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def prompt(self, index: int) -> Prompt:
        """Return the prompt of image `index` of this split; the prompt's id names the image's place in the whole
        set."""
        return digit_prompt(self.images[index], int(self.labels[index]), f"digit-{self.places[index]}")


@cache
def load_digits(split: Split) -> Digits:
    """Return one of the two fixed splits, which share no image."""
    stored = np.loadtxt(STORED, np.int64, delimiter=",")
    images, labels = stored[:, :-1].reshape(-1, 8, 8).astype(np.float64), stored[:, -1]
    places = np.flatnonzero([_held_out(image) == (split == "held_out") for image in images])
    return Digits(images[places], labels[places], places)


def _held_out(image: NDArray[np.float64]) -> bool:
    """Return whether an image, ink [8, 8] in whole numbers from 0 to 16, is held out."""
    return int.from_bytes(blake3(image.astype(np.uint8).tobytes()).digest(length=8), "little") % HELD_OUT_OF == 0


def digit_image(image: NDArray[np.floating]) -> Image.Image:
    """Return ink [8, 8] from 0 to 16 as an RGB picture of 64 x 64, each pixel a square of 8 x 8: white ink on black."""
    grey = np.round(np.asarray(image, np.float64) * (255 / 16)).astype(np.uint8)
    return Image.fromarray(np.kron(grey, np.ones((SCALE, SCALE), np.uint8))).convert("RGB")


def digit_prompt(image: NDArray[np.floating], answer: int, id: str) -> Prompt:  # noqa: A002
    """Return the question that the small checkpoint was trained on, about ink [8, 8] from 0 to 16."""
    text = f"<|im_start|>user\n<image>{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    return Prompt(id=id, text=text, images=(digit_image(image),), answer=str(answer))
