"""The demo's prompts are real media, of the kind asked for, and the same for the same seed."""

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from omni_rl.kinds import KINDS, Kind
from omni_rl.media.types import Prompt
from omni_rl.tasks.digits import load_digits
from omni_rl.tasks.samples import PHOTOGRAPHS, clip_sound, clip_video, demo_prompts, photograph


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_follow_from_kind_and_seed(kind: Kind) -> None:
    first, again, other = (demo_prompts(kind, 8, seed) for seed in (3, 3, 4))
    assert [prompt.kind for prompt in first] == [kind] * 8
    assert len({prompt.id for prompt in first}) == 8
    assert [pickle.dumps(prompt) for prompt in first] == [pickle.dumps(prompt) for prompt in again]
    assert [_content(prompt) for prompt in first] != [_content(prompt) for prompt in other]


def _content(prompt: Prompt) -> bytes:
    return pickle.dumps(replace(prompt, id=""))


def test_photographs_are_scikit_images_own() -> None:
    from skimage import data

    for name in PHOTOGRAPHS:
        ours = np.asarray(photograph(name)).astype(int)
        theirs = getattr(data, name)()
        if theirs.dtype == bool:
            theirs = theirs.astype(np.uint8) * 255
        if theirs.ndim == 3 and theirs.shape[2] == 4:
            alpha = theirs[..., 3:] / 255
            theirs = theirs[..., :3] * alpha + 255 * (1 - alpha)
        if theirs.ndim == 2:
            theirs = theirs[..., None]
        assert np.abs(ours - theirs).max() <= 1, name


def test_every_other_image_prompt_is_a_digit_with_its_answer() -> None:
    stored = load_digits("train")
    known = {
        (np.kron(np.round(ink * 255 / 16), np.ones((8, 8))).astype(np.uint8).tobytes(), str(label))
        for ink, label in zip(stored.images, stored.labels, strict=True)
    }
    prompts = demo_prompts("image", 8, 0)
    for number, prompt in enumerate(prompts):
        if number % 2 == 0:
            (picture,) = prompt.images
            assert (np.asarray(picture)[..., 0].tobytes(), prompt.answer) in known
        else:
            assert prompt.answer is None


def test_several_photographs_in_one_prompt_have_different_shapes() -> None:
    counts = set()
    for prompt in demo_prompts("image", 24, 1)[1::2]:
        shapes = [picture.width / picture.height for picture in prompt.images]
        assert len(set(shapes)) == len(shapes)
        assert prompt.text.count("<image>") == len(shapes)
        counts.add(len(shapes))
    assert counts == {1, 2, 3}


def test_sounds_are_windows_of_the_clip_of_different_lengths() -> None:
    whole = clip_sound().tobytes()
    lengths = set()
    for prompt in demo_prompts("audio", 8, 0):
        (sound,) = prompt.sounds
        assert sound.rate == 16_000
        assert 0.5 <= len(sound.samples) / sound.rate <= 2.0
        assert sound.samples.tobytes() in whole
        assert np.abs(sound.samples).max() > 0
        lengths.add(len(sound.samples))
    assert len(lengths) > 4


def test_videos_are_frames_of_the_clip_with_their_numbers() -> None:
    clip = clip_video()
    assert clip.total_frames == 132
    counts = set()
    for prompt in demo_prompts("video", 12, 0):
        (video,) = prompt.videos
        assert 4 <= len(video.indices) <= 8
        assert all(a < b for a, b in pairwise(video.indices))
        assert (video.frames == clip.frames[list(video.indices)]).all()
        counts.add(len(video.indices))
    assert len(counts) > 2


def test_mixed_prompts_hold_all_three_in_varying_order() -> None:
    orders = set()
    for prompt in demo_prompts("mixed", 16, 0):
        assert (len(prompt.images), len(prompt.sounds), len(prompt.videos)) == (1, 1, 1)
        marks = ("<image>", "<so_embedding>", "<video>")
        orders.add(tuple(sorted(marks, key=prompt.text.index)))
    assert len(orders) > 3
