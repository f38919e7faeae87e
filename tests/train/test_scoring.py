"""A pack's scores are the ones that each rollout has alone, and name what was used."""

import dataclasses

import numpy as np
import pytest
import torch

from omni_rl.media.digests import tensor_digest
from omni_rl.rollout.types import Rollout
from omni_rl.train.scoring import score_pack

from .bigram import Bigram
from .conftest import MakeRollout


def _by_hand(policy: Bigram, rollout: Rollout) -> list[float]:
    """Text only: one token at a time, in float64."""
    ids = [*rollout.prompt.ids.tolist(), *rollout.ids.tolist()]
    table, head = policy.table.detach().double().numpy(), policy.head.detach().double().numpy()
    logprobs = []
    for position in range(len(rollout.prompt.ids), len(ids)):
        logits = table[ids[position - 1]] @ head / rollout.temperature
        logprobs.append(float(logits[ids[position]] - np.log(np.exp(logits).sum())))
    return logprobs


def test_logprobs_go_to_their_rollout_at_its_temperature(make_rollout: MakeRollout) -> None:
    policy = Bigram()
    rollouts = [make_rollout(0, answer=3), make_rollout(1, answer=0), make_rollout(2, answer=5, temperature=0.7)]
    scores = score_pack(policy, rollouts, version="v", logprob_chunk=2)
    for rollout, score in zip(rollouts, scores, strict=True):
        assert score.logprobs.dtype == np.float64
        assert score.logprobs.tolist() == pytest.approx(_by_hand(policy, rollout), abs=1e-5)
        assert score.version == "v"


def test_routing_covers_every_position_but_the_last(make_rollout: MakeRollout) -> None:
    rollouts = [make_rollout(0, prompt=5, answer=3), make_rollout(1, prompt=2, answer=4)]
    for rollout, score in zip(rollouts, score_pack(Bigram(), rollouts, version="v", logprob_chunk=8), strict=True):
        computed = np.concatenate([rollout.prompt.ids, rollout.ids])[:-1]
        assert score.experts is not None
        assert score.experts.dtype == np.int16
        assert score.experts[:, 0, 0].tolist() == (computed % 4).tolist()
        assert score.margins is not None
        assert score.margins[:, 0].tolist() == computed.tolist()


def test_digests_are_of_the_tensors_that_went_in_not_of_the_ones_promised(make_rollout: MakeRollout) -> None:
    rollout = make_rollout(0, media=[("image", (32, 32)), ("image", (64, 32))])
    item = rollout.prompt.items[1]
    swapped = {"pixel_values_flat": item.tensors["pixel_values_flat"] + 1}
    items = (rollout.prompt.items[0], dataclasses.replace(item, tensors=swapped))
    tampered = dataclasses.replace(rollout, prompt=dataclasses.replace(rollout.prompt, items=items))
    text = make_rollout(1)
    text_score, score = score_pack(Bigram(), [text, tampered], version="v", logprob_chunk=8)
    assert text_score.digests == ()
    assert score.digests[0] == item.digests | {
        "pixel_values_flat": rollout.prompt.items[0].digests["pixel_values_flat"]
    }
    assert score.digests[1] == {"pixel_values_flat": tensor_digest(swapped["pixel_values_flat"])}
    assert score.digests[1] != item.digests


def test_an_empty_pack_runs_and_scores_nothing() -> None:
    assert score_pack(Bigram(), [], version="v", logprob_chunk=8) == []


def test_scoring_leaves_no_graph(make_rollout: MakeRollout) -> None:
    policy = Bigram()
    score_pack(policy, [make_rollout(0)], version="v", logprob_chunk=8)
    assert policy.table.grad is None
    assert torch.is_grad_enabled()
