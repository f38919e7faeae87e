"""Turns a step's samples into records of the published schema, and their media into files that a browser shows."""

import io
import wave
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from omni_rl.kinds import Modality
from omni_rl.media.formats import FORMATS, in_order
from omni_rl.media.prompts import plain
from omni_rl.media.sounds import MODEL_RATE, to_mono_16k
from omni_rl.media.types import MediaItem, Prompt, Sound, Video
from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score

FULL_SCALE = 32767
"""The largest value of a 16-bit sound sample."""

Keep = Callable[[bytes, str], str | None]
"""A function that puts bytes of a content type into the media store and returns their digest, or None where the store
does not take them."""
Decode = Callable[[NDArray[np.int64]], str]
"""A function that returns the text of token ids, int64 [T]."""


def media_entries(rollout: Rollout, score: Score, contents: Sequence[str | None]) -> list[dict[str, Any]]:
    """Return the `media` of a sample's record: an entry for each item, in the order of `rollout.prompt.items`.
    `contents` are the digests that `keep_media` returned."""
    entries = []
    for index, (item, content) in enumerate(zip(rollout.prompt.items, contents, strict=True)):
        tensors = _tensors(item, rollout.engine_digests[index], score.digests[index])
        entry = {"modality": item.modality, "offset": item.offset, "length": item.length}
        entries.append({**entry, "content": content, "tensors": tensors})
    return entries


def keep_media(prompt: Prompt, keep: Keep) -> list[str | None]:
    """Put a prompt's media into the store as PNG, WAV and MP4 files; return what `keep` returns of each, in the order
    of the placeholders."""
    files: dict[Modality, Callable[[Any], tuple[bytes, str]]] = {"image": _png, "audio": _wav, "video": _mp4}
    return [keep(*files[FORMATS[kind].modality](item)) for kind, _, item in in_order(plain(prompt))]


def record_of(
    prompt: Prompt,
    rollout: Rollout,
    score: Score,
    reward: float | None,
    media: Sequence[Mapping[str, Any]],
    decode: Decode,
) -> dict[str, Any]:
    """Return the record of one sample (`omni_rl.ledger.schema`), named by the id of its rendered prompt. `reward` is
    None where there is none; `media` is what `media_entries` returns."""
    record: dict[str, Any] = {
        "sample": rollout.prompt.id,
        "kind": prompt.kind,
        "prompt_tokens": len(rollout.prompt.ids),
        "prompt_ids": rollout.prompt.ids,
        "ids": rollout.ids,
        "rollout_logprobs": rollout.logprobs,
        "train_logprobs": score.logprobs,
        "temperature": rollout.temperature,
        "reward": reward,
        "version_spans": [vars(span) for span in rollout.version_spans],
        "train_version": score.version,
        "rollout_prompt_digest": rollout.sequence or None,
        "train_prompt_digest": score.sequence or None,
        "media": list(media) or None,
        "prompt_text": prompt.text,
        "token_texts": [decode(rollout.ids[at : at + 1]) for at in range(len(rollout.ids))],
    }
    if rollout.experts is not None and score.experts is not None and score.margins is not None:
        _, layers, chosen = rollout.experts.shape
        record |= {
            "moe_layers": layers,
            "experts_per_token": chosen,
            "rollout_experts": rollout.experts.reshape(-1),
            "train_experts": score.experts.reshape(-1),
            "margins": score.margins.reshape(-1),
        }
    return record


def _tensors(item: MediaItem, engine: dict[str, str], train: dict[str, str]) -> list[dict[str, Any]]:
    names = sorted(item.digests.keys() | engine.keys() | train.keys())
    return [
        {"name": name, "rendered": item.digests.get(name), "engine": engine.get(name), "train": train.get(name)}
        for name in names
    ]


def _png(picture: Image) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue(), "image/png"


def _wav(sound: Sound) -> tuple[bytes, str]:
    samples = np.clip(to_mono_16k(sound), -1, 1) * FULL_SCALE
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(MODEL_RATE)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue(), "audio/wav"


def _mp4(video: Video) -> tuple[bytes, str]:
    """Encode a video's sampled frames at the mean rate they were sampled at, in whole frames a second; return the
    file's bytes and its content type. Where a height or a width is odd, which the codec does not take, the last row or
    column stands twice."""
    span = (video.indices[-1] - video.indices[0]) / video.fps
    rate = max(1, round((len(video.frames) - 1) / span)) if span > 0 else 1
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        height, width = video.frames.shape[1:3]
        even = np.pad(video.frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        stream.height, stream.width = even.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue(), "video/mp4"
