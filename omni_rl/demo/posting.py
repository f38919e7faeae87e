"""The demo's steps as any framework would post them: records, media and training figures, through the client."""

import io
import wave
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
from PIL.Image import Image

from omni_rl.api.runs import RunBody
from omni_rl.api.steps import Verdict
from omni_rl.client.blocking import Client
from omni_rl.config import DemoSettings
from omni_rl.demo.run import Played, Policies
from omni_rl.media.sounds import MODEL_RATE, to_mono_16k
from omni_rl.media.types import MediaItem, Prompt, Sound, Video
from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score

ATTEMPT = 1
FULL_SCALE = 32767
"""Of a 16-bit sample."""


class Posting:
    """Posts each step of a run and seals it."""

    def __init__(self, client: Client, run: str, settings: DemoSettings) -> None:
        self._client = client
        self._run = run
        client.create_run(RunBody(run=run, model=settings.model.name, dtype=settings.dtype))

    def keep(self, played: Played, policies: Policies) -> None:
        records = [
            _record(prompt, rollout, score, reward, self._media(prompt, rollout, score), policies)
            for prompt, rollout, score, reward in zip(
                played.prompts, played.rollouts, played.scores, played.rewards, strict=True
            )
        ]
        self.check(played.step, records, {"reward": float(np.mean(played.rewards))})

    def check(self, step: int, records: Sequence[dict[str, Any]], training: dict[str, float]) -> Verdict:
        """Records go in, a verdict comes out."""
        self._client.put_part(self._run, ATTEMPT, step, 0, records)
        return self._client.seal(self._run, ATTEMPT, step, parts=1, training=training).verdict

    def _media(self, prompt: Prompt, rollout: Rollout, score: Score) -> list[dict[str, Any]]:
        """An entry an item, in the order of `rollout.prompt.items`; its bytes go to the media store."""
        waiting: dict[str, Iterator[tuple[bytes, str]]] = {
            "image": (_png(picture) for picture in prompt.images),
            "audio": (_wav(sound) for sound in prompt.sounds),
            "video": (_mp4(video) for video in prompt.videos),
        }
        found = []
        for index, item in enumerate(rollout.prompt.items):
            kept = self._client.put_media(*next(waiting[item.modality]))
            tensors = _tensors(item, rollout.engine_digests[index], score.digests[index])
            entry = {"modality": item.modality, "offset": item.offset, "length": item.length}
            found.append({**entry, "content": kept.digest, "tensors": tensors})
        return found


def _record(
    prompt: Prompt, rollout: Rollout, score: Score, reward: float, media: Sequence[dict[str, Any]], policies: Policies
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "sample": prompt.id,
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
        "media": list(media) or None,
        "prompt_text": prompt.text,
        "token_texts": [policies.decode(rollout.ids[at : at + 1]) for at in range(len(rollout.ids))],
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
    """Its sampled frames, one after the other, at the pace they were sampled with."""
    span = (video.indices[-1] - video.indices[0]) / video.fps
    rate = max(1, round((len(video.frames) - 1) / span)) if span > 0 else 1
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = video.frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in video.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue(), "video/mp4"
