"""The words are heard where they are installed; elsewhere the error says how to install them."""

import wave
from pathlib import Path

import numpy as np
import pytest

from omni_rl.errors import MediaError
from omni_rl.tasks import words


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tones in the places of the voices."""
    for number, name in enumerate(words.WORDS):
        tone = 20000 * np.sin(np.arange(4800) * (0.01 + 0.01 * number))
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(48000)
            file.writeframes(tone.astype("<i2").tobytes())
    monkeypatch.setattr(words, "FOLDER", tmp_path)
    words._sound.cache_clear()
    return tmp_path


def test_the_splits_share_no_sound_and_hold_every_word(recordings: Path) -> None:
    train, held_out = words.load_words("train"), words.load_words("held_out")
    prompts = [split.prompt(index) for split in (train, held_out) for index in range(len(split))]
    assert len({prompt.sounds[0].samples.tobytes() for prompt in prompts}) == len(prompts) == 128
    assert {prompt.answer for prompt in prompts[: len(train)]} == {"front", "rear", "side"}
    assert {prompt.answer for prompt in prompts[len(train) :]} == {"front", "rear", "side"}
    assert {prompt.kind for prompt in prompts} == {"audio"}


def test_the_same_prompt_sounds_the_same(recordings: Path) -> None:
    first = words.load_words("train").prompt(5)
    words._sound.cache_clear()
    again = words.load_words("train").prompt(5)
    assert first.id == again.id
    assert np.array_equal(first.sounds[0].samples, again.sounds[0].samples)


def test_a_machine_without_them_is_told_the_package(recordings: Path) -> None:
    (recordings / "Side_Left.wav").unlink()
    with pytest.raises(MediaError, match="lacks Side_Left: apt-get install alsa-utils"):
        words.load_words("train")
