"""Scores packs of rollouts on one rank."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from omni_rl.media.digests import sequence_digest, tensor_digest
from omni_rl.models.packed import PackedScores, PackedSequences
from omni_rl.rollout.types import Rollout
from omni_rl.train.device import CPU
from omni_rl.train.packing import pack, temperatures
from omni_rl.train.plan import sequence_length
from omni_rl.train.types import Score
from omni_rl.train.value import ValueHead


class Policy(Protocol):
    """A model as the trainer needs it: one that scores packed sequences."""

    def score_packed(
        self, batch: PackedSequences, *, temperature: float | torch.Tensor, logprob_chunk: int, record_routing: bool
    ) -> PackedScores: ...


def score_pack(
    policy: Policy,
    rollouts: Sequence[Rollout],
    *,
    version: str,
    logprob_chunk: int,
    head: ValueHead | None = None,
    replay: bool = False,
    device: torch.device = CPU,
) -> list[Score]:
    """Score the answers of one pack on the policy's `device`, and return their scores, in order, on the host.

    For a pruned video the policy sees the tokens that the engine kept, if the engine sampled with the weights
    `version`; under other weights an engine would choose anew, and so does the policy. With `replay`, the policy uses
    the engine's experts, and the experts in the scores are the ones that its routers would have chosen instead.

    Without rollouts the policy still runs: under FSDP every rank must run the same units in the same order.
    """
    batch = pack([_pruned_as(rollout, version) for rollout in rollouts], replay=replay).to(device)
    # Not inference_mode: FSDP reuses the gathered parameters, and a later backward could not take them.
    with torch.no_grad():
        packed = policy.score_packed(
            batch, temperature=temperatures(rollouts).to(device), logprob_chunk=logprob_chunk, record_routing=True
        )
        values = None if head is None or packed.hidden is None else head(packed.hidden).double().cpu().numpy()
    logprobs = packed.logprobs.double().cpu().numpy()
    experts = None if packed.experts is None else packed.experts.to(torch.int16).cpu().numpy()
    margins = None if packed.margins is None else packed.margins.float().cpu().numpy()
    kept = iter([None if mask is None else mask.cpu().numpy() for mask in packed.kept or (None,) * len(batch.media)])
    digests = iter([{name: tensor_digest(t) for name, t in media.tensors.items()} for media in batch.media])
    # The digests below are of what reached the policy, not of what was sent to it.
    ids = batch.ids.cpu().numpy()
    places = iter([media.positions.cpu().numpy() for media in batch.media])
    scores: list[Score] = []
    scored = start = 0
    for rollout in rollouts:
        # The last token is only a target: the engine never routes it, so its choices are not comparable.
        routed = slice(start, start + sequence_length(rollout) - 1)
        scores.append(
            Score(
                logprobs=logprobs[scored : scored + len(rollout.ids)].astype(np.float64),
                experts=None if experts is None else experts[routed].copy(),
                margins=None if margins is None else margins[routed].copy(),
                digests=tuple(next(digests) for _ in rollout.prompt.items),
                version=version,
                kept=tuple(next(kept) for _ in rollout.prompt.items),
                values=None if values is None else values[scored : scored + len(rollout.ids)].copy(),
                sequence=sequence_digest(
                    ids[start : start + sequence_length(rollout)],
                    [next(places) - start for _ in rollout.prompt.items],
                ),
            )
        )
        scored += len(rollout.ids)
        start += sequence_length(rollout)
    return scores


def _pruned_as(rollout: Rollout, version: str) -> Rollout:
    """Return the rollout, with the engine's choice of video tokens only if the weights of `version` made it."""
    made_by = [span.version for span in rollout.version_spans[-1:]]
    return rollout if made_by == [version] else replace(rollout, kept=())
