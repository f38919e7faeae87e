"""Makes prompts with a plain picture, sound or video and an answer that follows from it alone, so that the small
checkpoint has to learn to use its vision and sound towers."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from omni_rl.checkpoints.choices import StableDraws
from omni_rl.checkpoints.corpus import question_text
from omni_rl.media.types import Prompt, Sound, Video

_COLOURS = {
    "red": (220, 30, 30), "green": (40, 180, 60), "blue": (40, 60, 220), "yellow": (230, 220, 40),
    "white": (240, 240, 240), "grey": (120, 120, 120),
}  # fmt: skip
_PITCHES = {"a low drum": (120.0, 250.0), "a clear bell": (400.0, 700.0), "a high whistle": (2000.0, 4000.0)}  # Hz
_NOISE = "waves of wind"
_ABOUT_PICTURE = ("What is in this picture?", "Describe the picture.", "Which colours do you see?")
_ABOUT_SOUND = ("What do you hear?", "Describe the sound.", "Is the sound low or high?")
_ABOUT_VIDEO = ("What happens in the video?", "Describe the clip.", "How does the video end?")
_PICTURE_ANSWERS = ("There is a {0} square in the picture.", "A {0} square.", "I see something {0}.")
_SOUND_ANSWERS = ("I hear {0}.", "It is {0}, nothing else.", "Only {0}.")
_VIDEO_ANSWERS = ("The picture is {0}. Then it turns {1}.", "First {0}, then {1}.", "It changes from {0} to {1}.")
_RATE = 16000  # samples a second
_SECONDS = (0.5, 1.5)  # shortest and longest sound
_PULSE = (
    0.3  # seconds: the engine removes each mel band's mean over time, so a steady tone could not be told from noise
)
_FRAMES, _FPS = 4, 4.0
_SIDES = (48, 64, 80, 96)  # pixels


def sentences() -> list[str]:
    """Return every question and answer there is, for the tokenizer."""
    pictures = [answer.format(colour) for answer in _PICTURE_ANSWERS for colour in _COLOURS]
    sounds = [answer.format(name) for answer in _SOUND_ANSWERS for name in (*_PITCHES, _NOISE)]
    pairs = [(first, second) for first in _COLOURS for second in _COLOURS]
    videos = [answer.format(*pair) for answer in _VIDEO_ANSWERS for pair in pairs]
    return [*_ABOUT_PICTURE, *_ABOUT_SOUND, *_ABOUT_VIDEO, *pictures, *sounds, *videos]


def scenes(seed: int) -> Iterator[Prompt]:
    """Yield prompts without end: a picture, a sound and a video in turn, each with an answer. The same seed gives the
    same prompts."""
    choices, noise = StableDraws(seed), np.random.default_rng(seed)
    number = 0
    while True:
        yield _picture(choices, f"picture-{number}")
        yield _sound(choices, noise, f"sound-{number}")
        yield _video(choices, f"video-{number}")
        number += 1


def _picture(choices: StableDraws, name: str) -> Prompt:
    colour = choices.pick(list(_COLOURS))
    width, height = choices.pick(_SIDES), choices.pick(_SIDES)
    image = Image.new("RGB", (width, height))
    image.paste(_COLOURS[colour], (width // 8, height // 8, width * 7 // 8, height * 7 // 8))
    text = question_text("<image>" + choices.pick(_ABOUT_PICTURE))
    return Prompt(name, text, images=(image,), answer=choices.pick(_PICTURE_ANSWERS).format(colour))


def _sound(choices: StableDraws, noise: np.random.Generator, name: str) -> Prompt:
    heard = choices.pick((*_PITCHES, _NOISE))
    time = np.arange(int(choices.between(*_SECONDS) * _RATE)) / _RATE
    hiss = noise.standard_normal(len(time))
    tone = hiss if heard == _NOISE else np.sin(2 * np.pi * choices.between(*_PITCHES[heard]) * time)
    samples = 0.2 * tone * (time % _PULSE < _PULSE / 2) + 0.002 * hiss
    text = question_text("<so_embedding>" + choices.pick(_ABOUT_SOUND))
    sound = Sound(samples.astype(np.float32), _RATE)
    return Prompt(name, text, sounds=(sound,), answer=choices.pick(_SOUND_ANSWERS).format(heard))


def _video(choices: StableDraws, name: str) -> Prompt:
    first, second = choices.pick(list(_COLOURS)), choices.pick(list(_COLOURS))
    frames = np.empty((_FRAMES, choices.pick(_SIDES), choices.pick(_SIDES), 3), np.uint8)
    frames[: _FRAMES // 2], frames[_FRAMES // 2 :] = _COLOURS[first], _COLOURS[second]
    text = question_text("<video>" + choices.pick(_ABOUT_VIDEO))
    video = Video(frames, _FPS, tuple(range(_FRAMES)), _FRAMES)
    return Prompt(name, text, videos=(video,), answer=choices.pick(_VIDEO_ANSWERS).format(first, second))
