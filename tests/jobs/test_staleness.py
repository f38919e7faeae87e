"""Stale answers are scored by the weights that sampled them."""

from collections.abc import Sequence

import numpy as np
import pytest

from omni_rl.jobs.staleness import score_by_span, staleness
from omni_rl.media.types import RenderedPrompt
from omni_rl.rollout.types import Rollout, VersionSpan
from omni_rl.train.types import Score


def rollout(name: str, *spans: tuple[str, int, int]) -> Rollout:
    tokens = spans[-1][2]
    return Rollout(
        prompt=RenderedPrompt(name, "text", np.array([1])),
        ids=np.arange(tokens),
        logprobs=np.zeros(tokens),
        temperature=1.0,
        version_spans=tuple(VersionSpan(*span) for span in spans),
        engine_digests=(),
        experts=None,
        finish_reason="stop",
    )


ROLLOUTS = [rollout("a", ("v1", 0, 2)), rollout("b", ("v0", 0, 1), ("v1", 1, 4)), rollout("c", ("v0", 0, 3))]


def test_each_token_is_scored_by_its_spans_version() -> None:
    asked: dict[str, list[str]] = {}

    def score(rollouts: Sequence[Rollout], version: str) -> list[Score]:
        asked[version] = [its.prompt.id for its in rollouts]
        return [
            Score(np.full(len(its.ids), float(version[1:])) + np.arange(len(its.ids)) / 10, None, None, (), version)
            for its in rollouts
        ]

    scores = score_by_span(ROLLOUTS, score)
    assert asked == {"v1": ["a", "b"], "v0": ["b", "c"]}
    assert [score.version for score in scores] == ["v1", "v1", "v0"]
    assert scores[1].logprobs.tolist() == pytest.approx([0.0, 1.1, 1.2, 1.3])
    assert scores[2].logprobs.tolist() == pytest.approx([0.0, 0.1, 0.2])


def test_staleness_counts_syncs_by_token() -> None:
    assert staleness(ROLLOUTS, ["v0", "v1"]) == pytest.approx(4 / 9)
    assert staleness(ROLLOUTS[:1], ["v0", "v1"]) == 0.0
    assert staleness(ROLLOUTS, ["v0", "v1", "v2", "v3"]) == pytest.approx(2 + 4 / 9)
