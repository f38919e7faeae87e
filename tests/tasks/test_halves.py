"""Windows of the clip lie in the half that is their answer."""

from omni_rl.tasks.halves import load_halves
from omni_rl.tasks.samples import clip_video


def test_windows_lie_in_their_half_and_the_splits_share_none() -> None:
    middle = len(clip_video().frames) // 2
    seen = []
    for split in (load_halves("train"), load_halves("held_out")):
        for index in (0, len(split) // 2, len(split) - 1):
            prompt = split.prompt(index)
            indices = prompt.videos[0].indices
            assert prompt.kind == "video"
            assert {number < middle for number in indices} == {prompt.answer == "first"}
        assert {split.prompt(index).answer for index in (0, len(split) - 1)} == {"first", "second"}
        seen.append(set(split.starts))
    assert not seen[0] & seen[1]
