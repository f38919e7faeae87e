"""Turns any sound into what the model hears: 16 kHz, one channel, float32.

Shapes: C channels, S samples.
"""

from itertools import chain
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from omni_rl.errors import MediaError
from omni_rl.media._container import open_container
from omni_rl.media.types import Sound

MODEL_RATE = 16_000
MAX_RATE = 2**31  # FFmpeg's
MAX_SECONDS = 600  # the longest sound that vLLM sizes its buffers for


def read_sound(source: str | Path | bytes) -> Sound:
    """Decode the first sound stream of a local file or of bytes, at its own rate, with all channels ([C, S]).

    Raises `MediaError` if there is no sound, or if it cannot be decoded or lasts too long.
    """
    with open_container(source) as container:
        if not container.streams.audio:
            raise MediaError("the file has no sound")
        stream = container.streams.audio[0]
        # Planar float keeps rate and channels; only the number format changes.
        planar = av.AudioResampler(format="fltp", layout=stream.layout.name, rate=stream.rate)
        rate = int(stream.rate)
        chunks: list[NDArray[np.float32]] = []
        decoded = 0
        for frame in chain(container.decode(stream), [None]):
            parts = [part.to_ndarray() for part in planar.resample(frame)]
            chunks += parts
            decoded += sum(part.shape[1] for part in parts)
            _check_length(decoded, rate)  # while decoding: what a header claims may be wrong
    if not chunks:
        raise MediaError("the sound is empty")
    return Sound(np.concatenate(chunks, axis=1), rate)


def to_mono_16k(sound: Sound) -> NDArray[np.float32]:
    """Return the mean of all channels, resampled to 16 kHz: float32 [round(S · 16000 / rate)], at least one sample.

    A mono sound at 16 kHz passes unchanged. Raises `MediaError` for a sound that is empty or too long, a rate that is
    no positive whole number of Hz, and values that are not finite.
    """
    samples = np.asarray(sound.samples)
    if samples.ndim not in (1, 2):
        raise MediaError(f"a sound is [samples] or [channels, samples], not {list(samples.shape)}")
    if not np.issubdtype(samples.dtype, np.floating):
        raise MediaError(f"sound samples are floats between -1 and 1, not {samples.dtype}")
    if samples.size == 0:
        raise MediaError("the sound is empty")
    if not 1 <= sound.rate < MAX_RATE or int(sound.rate) != sound.rate:
        raise MediaError(f"a sound's rate is a whole number of Hz from 1 to below {MAX_RATE}, not {sound.rate}")
    _check_length(samples.shape[-1], int(sound.rate))
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        mono = samples if samples.ndim == 1 else samples.mean(axis=0, dtype=np.float64)
        mono = mono.astype(np.float32, copy=False)
    if not np.isfinite(mono).all():
        raise MediaError("the sound holds values that are not finite as float32")
    return np.ascontiguousarray(mono if sound.rate == MODEL_RATE else _resample(mono, int(sound.rate)))


def plain_sound(sound: Sound) -> Sound:
    """Return a sound as the model hears it. Raises what `to_mono_16k` raises."""
    return Sound(to_mono_16k(sound), MODEL_RATE)


def _check_length(samples: int, rate: int) -> None:
    if samples > MAX_SECONDS * rate:
        raise MediaError(f"the sound lasts {samples / rate:.1f} s; at most {MAX_SECONDS} s are supported")


def _resample(mono: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    length = max(1, round(len(mono) * MODEL_RATE / rate))
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(mono)[None], format="flt", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=MODEL_RATE)
    parts = [part.to_ndarray()[0] for part in (*resampler.resample(frame), *resampler.resample(None))]
    out = np.zeros(length, np.float32)  # the resampler's own length is a few samples off at the very end
    heard = np.concatenate(parts)[:length] if parts else out
    out[: len(heard)] = heard
    return out
