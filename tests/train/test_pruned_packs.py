"""Pruned videos on their way into a pack: where they lie, and whose choice of tokens counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from omni_rl.media.pruning import Pruning
from omni_rl.models.packed import PackedScores, PackedSequences
from omni_rl.rollout.types import Rollout
from omni_rl.train.packing import pack
from omni_rl.train.scoring import score_pack

from .conftest import MakeRollout

KEPT = np.array([[True, True], [False, True]])


@pytest.fixture
def pruned(make_rollout: MakeRollout) -> Rollout:
    """A video of two tubelets of two tokens, of which three stay, between a picture and the end of the prompt."""
    rollout = make_rollout(1, media=[("image", (64, 32)), ("video", (4, 64, 32))])
    image, video = rollout.prompt.items
    video = replace(video, positions=video.positions[:3], pruning=Pruning(0.3, np.array([0, 1])))
    return replace(rollout, prompt=replace(rollout.prompt, items=(image, video)), kept=(None, KEPT))


class Listener:
    """Takes the place of a policy: keeps the batch, and would itself keep the first tokens of a video."""

    def score_packed(
        self, batch: PackedSequences, *, temperature: float | torch.Tensor, logprob_chunk: int, record_routing: bool
    ) -> PackedScores:
        self.batch = batch
        own = torch.tensor([[True, True], [True, False]])
        kept = tuple(None if item.pruning is None else own for item in batch.media)
        return PackedScores(torch.zeros(int(batch.score_mask.sum())), None, None, kept)


def test_a_pruned_videos_span_moves_with_its_sequence(make_rollout: MakeRollout, pruned: Rollout) -> None:
    before = make_rollout(0)
    shift = len(before.prompt.ids) + len(before.ids)
    image, video = pack([before, pruned]).media
    item = pruned.prompt.items[1]
    assert image.pruning is None
    assert video.pruning is not None
    assert video.pruning.rate == 0.3
    assert video.pruning.span == (item.offset + shift, item.offset + item.length + shift)
    assert video.positions.tolist() == (item.positions + shift).tolist()
    assert video.pruning.text_before.tolist() == [0, 1]
    assert video.pruning.kept is not None
    assert video.pruning.kept.tolist() == KEPT.tolist()


def test_the_engines_choice_counts_under_its_own_weights_only(make_rollout: MakeRollout, pruned: Rollout) -> None:
    listener = Listener()
    sampled_with = pruned.version_spans[-1].version
    rollouts = [make_rollout(0, media=[("image", (32, 32))]), pruned]
    for version, followed in ((sampled_with, KEPT.tolist()), ("run/1/1/def", None)):
        first, second = score_pack(listener, rollouts, version=version, logprob_chunk=8)
        pruning = listener.batch.media[2].pruning
        assert pruning is not None
        assert (None if pruning.kept is None else pruning.kept.tolist()) == followed
        assert first.kept == (None,)
        assert second.kept[0] is None
        assert second.kept[1] is not None
        assert second.kept[1].tolist() == [[True, True], [True, False]]
