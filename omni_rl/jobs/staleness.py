"""Scores answers that were sampled with earlier weights: each token with the weights that its span names, so that
staleness is never taken for a mismatch of the policies."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score

ScoreWith = Callable[[Sequence[Rollout], str], list[Score]]
"""A function that scores answers with the weights of a version."""


def score_by_span(rollouts: Sequence[Rollout], score: ScoreWith) -> list[Score]:
    """Return the score of each answer. Its logprobs are by the version of each token's span; all else is by the version
    of the last span, with which the engine ended up computing every position."""
    found: dict[str, dict[int, Score]] = {}
    for version in dict.fromkeys(span.version for rollout in rollouts for span in rollout.version_spans):
        places = [at for at, rollout in enumerate(rollouts) if version in _versions(rollout)]
        scores = score([rollouts[at] for at in places], version)
        found[version] = dict(zip(places, scores, strict=True))
    return [_joined(rollout, {v: found[v][at] for v in _versions(rollout)}) for at, rollout in enumerate(rollouts)]


def staleness(rollouts: Sequence[Rollout], served: Sequence[str]) -> float:
    """Return how many syncs old the weights were that sampled a token, as the mean over all tokens.

    `served` has the served versions in the order of their syncs, the current version last.
    """
    behind = {version: len(served) - 1 - place for place, version in enumerate(served)}
    spans = [span for rollout in rollouts for span in rollout.version_spans]
    tokens = sum(span.end - span.start for span in spans)
    return sum((span.end - span.start) * behind[span.version] for span in spans) / max(tokens, 1)


def _versions(rollout: Rollout) -> list[str]:
    return [span.version for span in rollout.version_spans]


def _joined(rollout: Rollout, scores: dict[str, Score]) -> Score:
    last = scores[rollout.version_spans[-1].version]
    parts = [scores[span.version].logprobs[span.start : span.end] for span in rollout.version_spans]
    return replace(last, logprobs=np.concatenate(parts))
