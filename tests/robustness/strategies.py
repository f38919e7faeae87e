"""Prompts as users write them, good, odd and bad, with media made from drawn seeds."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from omni_rl.media.types import Prompt, Sound, Video

from .conftest import clip, hiss, noise

WORDS = (
    *("hello ", "What is this? ", "\n", "日本語", "🦜", "e\u0301", "def f(x):", "\x00"),
    # What the tokenizer or the processor might take for something else.
    *("<img>", "</img>", "<so_start>", "<so_end>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>", "<image"),
    *("<SPECIAL_5>", "Frame 1 sampled at 0.00 seconds: ", "image>"),
)
BAD_WORDS = ("\ud800", "word " * 2_100)
MODES = ("RGB", "L", "1", "RGBA", "LA", "P", "CMYK", "I;16", "F")
RATES = (4_000, 8_000, 16_000, 22_050, 44_100, 48_000)
SEEDS = st.integers(0, 2**16)


@dataclass
class _Draft:
    text: list[str] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    sounds: list[Sound] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)


def _seldom(common: st.SearchStrategy[Any], rare: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    # Not at an end of the range: those are drawn far more often than one time in forty.
    return st.integers(0, 39).flatmap(lambda roll: rare if roll == 23 else common)


def _side() -> st.SearchStrategy[int]:
    return _seldom(st.integers(1, 150), st.sampled_from([0, 700, 9_000]))


@st.composite
def _images(draw: st.DrawFn) -> Image.Image:
    width, height, mode, seed = draw(_side()), draw(_side()), draw(st.sampled_from(MODES)), draw(SEEDS)
    picture = _in_mode(noise(seed, height, width, 4), mode) if width and height else Image.new("RGB", (width, height))
    if draw(st.booleans()):
        picture.getexif()[0x0112] = draw(st.integers(1, 8))
    return picture


def _in_mode(values: np.ndarray, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(values[..., 0].astype(np.float32) / 255)
    if mode == "CMYK":
        return Image.fromarray(values, "CMYK")
    return Image.fromarray(values).convert("RGB" if mode == "P" else "RGBA").convert(mode)


@st.composite
def _sounds(draw: st.DrawFn) -> Sound:
    rate, channels = draw(st.sampled_from(RATES)), draw(st.sampled_from([1, 1, 2, 6]))
    length = draw(_seldom(st.integers(1, 20_000), st.sampled_from([0, 700 * rate])))
    level = draw(_seldom(st.sampled_from([0.0, 1e-6, 1.0, 10.0]), st.sampled_from([np.inf, 1e30])))
    if length > 20_000:
        return Sound(np.broadcast_to(np.float32(0), (length,)), rate)
    sound = hiss(draw(SEEDS), length, channels, rate)
    with np.errstate(invalid="ignore"):
        return replace(sound, samples=sound.samples * np.float32(level))


@st.composite
def _videos(draw: st.DrawFn) -> Video:
    frames = draw(_seldom(st.integers(1, 5), st.just(0)))
    video = clip(draw(SEEDS), frames, draw(st.integers(1, 80)), draw(st.integers(1, 80)))
    step = draw(st.integers(1, 30))
    fps = draw(_seldom(st.floats(0.1, 120), st.sampled_from([0.0, -1.0, 5_000.0, float("nan")])))
    return replace(video, fps=fps, indices=tuple(range(0, frames * step, step)), total_frames=frames * step)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """Up to five pieces: words, any text, images, sounds and videos; seldom with a placeholder too many or too few."""
    draft = _Draft()
    for kind in draw(st.lists(st.sampled_from(["words", "image", "sound", "video", "text"]), min_size=1, max_size=5)):
        if kind == "words":
            draft.text.append(draw(_seldom(st.sampled_from(WORDS), st.sampled_from(BAD_WORDS))))
        elif kind == "text":
            draft.text.append(draw(st.text(max_size=12)))
        elif kind == "image":
            draft.text.append("<image>")
            draft.images.append(draw(_images()))
        elif kind == "sound":
            draft.text.append("<so_embedding>")
            draft.sounds.append(draw(_sounds()))
        else:
            draft.text.append("<video>")
            draft.videos.append(draw(_videos()))
    draft.text += draw(_seldom(st.just([]), st.sampled_from([["<image>"], ["<video>"], ["<so_embedding>"]])))
    draft.text.append(draw(_seldom(st.sampled_from(["?", ".", " now", "\n"]), st.just(""))))
    return Prompt("case", "".join(draft.text), tuple(draft.images), tuple(draft.sounds), tuple(draft.videos))
