"""Answers that were sampled with earlier weights: each token is scored by those that its span names, so that being
stale is never taken for drift."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score

ScoreWith = Callable[[Sequence[Rollout], str], list[Score]]
"""Scores answers with the weights of a version."""


def score_by_span(rollouts: Sequence[Rollout], score: ScoreWith) -> list[Score]:
    """The score of each answer: logprobs by the version of each token's span; all else by the last one's, with which
    the engine ended up computing every position."""
    found: dict[str, dict[int, Score]] = {}
    for version in dict.fromkeys(span.version for rollout in rollouts for span in rollout.version_spans):
        places = [at for at, rollout in enumerate(rollouts) if version in _versions(rollout)]
        scores = score([rollouts[at] for at in places], version)
        found[version] = dict(zip(places, scores, strict=True))
    return [_joined(rollout, {v: found[v][at] for v in _versions(rollout)}) for at, rollout in enumerate(rollouts)]


def staleness(rollouts: Sequence[Rollout], served: Sequence[str]) -> float:
    """How many syncs ago the weights were served that sampled a token, the mean over all tokens.

    `served`: versions in the order of their syncs, those of the present last.
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
