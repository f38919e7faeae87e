"""Lists every kind of media: how a prompt's text marks an item, and how the item is checked, handed to vLLM and read
again from the file that it was kept as."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omni_rl.kinds import Kind, Modality
from omni_rl.media.images import load_image
from omni_rl.media.sounds import plain_sound, read_sound
from omni_rl.media.types import Prompt
from omni_rl.media.videos import for_vllm, plain_video, read_all_frames


@dataclass(frozen=True)
class Format:
    """One kind of media. A prompt has its items in `field`, and a `placeholder` in its text for each.

    `plain` checks an item and makes it what the model sees or hears; a plain one passes unchanged. The model takes it
    in as an item of `modality`; `given` makes of a plain one what vLLM takes. `read` reads an item from a file's bytes.
    """

    field: str
    placeholder: str
    modality: Modality
    plain: Callable[[Any], Any]
    given: Callable[[Any], Any]
    read: Callable[[bytes], Any]


FORMATS: Mapping[Kind, Format] = {
    "image": Format("images", "<image>", "image", load_image, lambda image: image, load_image),
    "audio": Format(
        "sounds", "<so_embedding>", "audio", plain_sound, lambda sound: (sound.samples, sound.rate), read_sound
    ),
    "video": Format("videos", "<video>", "video", plain_video, for_vllm, read_all_frames),
}
"""The formats by kind: that of a prompt that has no other media."""
_KINDS = {known.placeholder: kind for kind, known in FORMATS.items()}
_PLACEHOLDER = re.compile("|".join(map(re.escape, _KINDS)))


def marked(text: str) -> list[Kind]:
    """Return the kinds of the items that a text has placeholders for, in their order."""
    return [_KINDS[placeholder] for placeholder in _PLACEHOLDER.findall(text)]


def in_order(prompt: Prompt) -> Iterator[tuple[Kind, int, Any]]:
    """Yield a prompt's items in the order of their placeholders, which is that of the rendered items: the kind of each,
    its number among those of its kind, and the item. A text needs as many placeholders as there are items."""
    waiting = {kind: enumerate(items) for kind, items in prompt.media.items()}
    for kind in marked(prompt.text):
        number, item = next(waiting[kind])
        yield kind, number, item


def fits(prompt: Prompt, modalities: Collection[Modality]) -> bool:
    """Return whether a prompt has no media but of these modalities."""
    return all(FORMATS[kind].modality in modalities for kind, items in prompt.media.items() if items)


def model_text(prompt: Prompt) -> str:
    """Return a prompt's text with the placeholders that the model knows."""
    return _PLACEHOLDER.sub(lambda found: FORMATS[FORMATS[_KINDS[found[0]]].modality].placeholder, prompt.text)
