"""Every sound arrives at 16 kHz, mono, as the same sound."""

import io
import wave

import numpy as np
import pytest

from omni_rl.errors import MediaError
from omni_rl.media.sounds import MODEL_RATE, read_sound, to_mono_16k
from omni_rl.media.types import Sound
from omni_rl.tasks.samples import clip_path


def tone(rate: int, seconds: float = 1.0, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def wav(samples: np.ndarray, rate: int) -> bytes:
    """16-bit PCM of [S] or [C, S]."""
    channels = np.atleast_2d(samples)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((channels.T * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000])
def test_resampling_keeps_the_tone_its_length_and_its_place(rate: int) -> None:
    heard = to_mono_16k(Sound(tone(rate), rate))
    assert heard.dtype == np.float32
    assert len(heard) == MODEL_RATE
    inner = slice(200, -200)  # the filter rings at the ends
    assert np.abs(heard - tone(MODEL_RATE))[inner].max() < 1e-4


def test_what_16_khz_cannot_hold_is_filtered_out_not_folded_back() -> None:
    heard = to_mono_16k(Sound(tone(48_000, hertz=11_000), 48_000))
    assert np.abs(heard[200:-200]).max() < 1e-3


def test_mono_at_16_khz_passes_bit_for_bit() -> None:
    samples = tone(MODEL_RATE)
    assert (to_mono_16k(Sound(samples, MODEL_RATE)) == samples).all()


def test_channels_are_averaged() -> None:
    left, right = tone(MODEL_RATE), tone(MODEL_RATE, hertz=700)
    heard = to_mono_16k(Sound(np.stack([left, right]), MODEL_RATE))
    assert np.allclose(heard, (left + right) / 2, atol=1e-7)


def test_a_file_keeps_its_rate_and_channels() -> None:
    stereo = np.stack([tone(44_100), tone(44_100, hertz=700)])
    sound = read_sound(wav(stereo, 44_100))
    assert sound.rate == 44_100
    assert sound.samples.dtype == np.float32
    assert sound.samples.shape == stereo.shape
    assert np.abs(sound.samples - stereo).max() < 2 / 32768


def test_the_clips_sound() -> None:
    sound = read_sound(clip_path())
    assert sound.rate == 48_000
    assert sound.samples.shape[0] == 6
    assert len(to_mono_16k(sound)) == round(sound.samples.shape[1] / 3)


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        (Sound(np.zeros(0, np.float32), 16_000), "empty"),
        (Sound(np.zeros((2, 0), np.float32), 16_000), "empty"),
        (Sound(np.zeros((1, 2, 3), np.float32), 16_000), "channels"),
        (Sound(np.array([0.0, np.nan], np.float32), 16_000), "finite"),
        (Sound(np.zeros(8, np.float32), 0), "rate"),
        (Sound(np.zeros(8, np.int16), 16_000), "floats"),
    ],
)
def test_bad_sounds_are_refused(sound: Sound, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        to_mono_16k(sound)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", "cannot decode"),
        (b"no sound at all", "cannot decode"),
        ("http://example.org/a.wav", "no such file"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n", "cannot decode"),
    ],
)
def test_unreadable_files_are_refused(source: bytes | str, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        read_sound(source)
