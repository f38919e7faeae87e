"""How a batch of media comes apart again, and how rows of a step find their request."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from omni_rl.media.digests import tensor_digest
from omni_rl.rollout.recorder import StepRecorder, split_items, split_off_padded


def runner(requests: list[str], rows: list[int]) -> Any:
    """What the recorder reads of vLLM's model runner: the order of the batch and where each request's rows start."""
    return SimpleNamespace(
        input_batch=SimpleNamespace(req_ids=requests),
        query_start_loc=SimpleNamespace(np=np.cumsum([0, *rows])),
        encoder_cache={},
    )


def step(recorder: StepRecorder, positions: list[int], first_layer: list[list[int]]) -> None:
    """One forward pass of two MoE layers; the second layer's choices are the first's plus 10, the other way round."""
    choices = torch.tensor(first_layer, dtype=torch.int32)
    recorder.chosen(0, choices)
    recorder.chosen(1, choices.flip(1) + 10)
    recorder.finish_step(torch.tensor(positions))


def test_rows_go_to_their_request_and_position() -> None:
    recorder = StepRecorder(runner(["a", "b"], [2, 1]), layers=2, experts_per_token=2)
    recorder.open("a", 4)
    recorder.open("b", 2)
    step(recorder, [0, 1, 0], [[3, 1], [2, 0], [5, 4]])
    recorder.runner = runner(["b", "a"], [1, 2])  # another order, as after another request came or went
    step(recorder, [1, 2, 3, 0], [[7, 6], [0, 1], [9, 8], [-5, -5]])  # the last row is padding
    a, b = recorder.close("a", 4), recorder.close("b", 2)
    assert a is not None
    assert b is not None
    assert a[:, 0].tolist() == [[1, 3], [0, 2], [0, 1], [8, 9]]
    assert b[:, 0].tolist() == [[4, 5], [6, 7]]
    np.testing.assert_array_equal(a[:, 1], a[:, 0] + 10)
    assert a.dtype == np.int16


def test_a_position_computed_again_keeps_the_last_choice() -> None:
    recorder = StepRecorder(runner(["a"], [2]), layers=2, experts_per_token=2)
    recorder.open("a", 3)
    step(recorder, [0, 1], [[1, 2], [1, 2]])
    recorder.runner = runner(["a"], [3])
    step(recorder, [0, 1, 2], [[3, 4], [3, 4], [3, 4]])
    a = recorder.close("a", 3)
    assert a is not None
    assert (a[:, 0] == [3, 4]).all()


def test_requests_that_nobody_opened_are_ignored() -> None:
    recorder = StepRecorder(runner(["stranger"], [1]), layers=2, experts_per_token=2)
    step(recorder, [0], [[0, 1]])
    assert recorder.close("stranger", 1) is None


def test_digests_follow_the_features_into_the_cache() -> None:
    machine = runner([], [])
    recorder = StepRecorder(machine, layers=0, experts_per_token=0)
    small, large = torch.zeros(3, 32, 32), torch.ones(3, 64, 32)
    features = (torch.zeros(1, 8), torch.zeros(2, 8))
    sizes = [(32, 32), (64, 32)]
    recorder.received({"pixel_values_flat": [small, large], "imgs_sizes": sizes}, features)
    machine.encoder_cache.update({"large": features[1], "small": features[0]})
    recorder.finish_step(torch.tensor([0]))
    assert recorder.digests("small")["pixel_values_flat"] == tensor_digest(small)
    assert recorder.digests("large")["pixel_values_flat"] == tensor_digest(large)
    assert recorder.digests("large")["imgs_sizes"] == tensor_digest(torch.tensor([64, 32]))


def test_what_was_kept_of_a_video_is_known_while_its_features_are_needed() -> None:
    machine = runner([], [])
    recorder = StepRecorder(machine, layers=0, experts_per_token=0)
    video, picture = torch.zeros(5, 8), torch.zeros(2, 8)
    kept = torch.tensor([[True, True], [False, True]])
    batch = {"pixel_values_flat_video": torch.zeros(4, 3, 32, 64), "video_num_patches": torch.tensor([4])}
    recorder.received(batch, (video,), [kept])
    recorder.received({"pixel_values_flat": [torch.zeros(3, 32, 64)]}, (picture,))
    machine.encoder_cache.update({"video": video, "picture": picture})
    recorder.finish_step(torch.tensor([0]))
    mask = recorder.kept("video")
    assert mask is not None
    assert mask.tolist() == kept.tolist()
    assert recorder.kept("picture") is None
    machine.encoder_cache.clear()
    recorder.forget_evicted(["video"])
    assert recorder.kept("video") is mask
    recorder.forget_evicted([])
    with pytest.raises(KeyError):
        recorder.kept("video")


def test_a_batch_of_sounds_or_videos_comes_apart_by_its_counts() -> None:
    clips = torch.arange(12.0).reshape(3, 4, 1)
    first, second = split_items({"input_audio_features": clips, "audio_num_clips": torch.tensor([1, 2])}, 2)
    assert torch.equal(first["input_audio_features"], clips[:1])
    assert torch.equal(second["input_audio_features"], clips[1:])
    assert int(second["audio_num_clips"]) == 2


def test_every_sound_and_every_video_is_encoded_by_itself() -> None:
    def features(*modalities: str) -> Any:
        return SimpleNamespace(mm_features=[SimpleNamespace(modality=modality) for modality in modalities])

    requests = {"a": features("image", "audio", "video"), "b": features("audio", "image")}
    parts = split_off_padded({"a": [0, 1, 2], "b": [0, 1]}, requests)
    assert parts == [{"a": [0], "b": [1]}, {"a": [1]}, {"a": [2]}, {"b": [0]}]
    assert split_off_padded({}, {}) == []
