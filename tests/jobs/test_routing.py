"""Flip rates by layer."""

from dataclasses import replace

import numpy as np

from omni_rl.jobs.routing import flip_rates
from omni_rl.train.types import Score

from .test_staleness import rollout


def test_flips_are_shares_of_positions_by_layer_whatever_the_order_of_experts() -> None:
    engine = np.array([[[0, 1], [2, 3]], [[0, 1], [2, 3]], [[0, 1], [2, 3]], [[0, 1], [2, 3]]], np.int16)
    trainer = engine.copy()
    trainer[:, 0] = [1, 0]
    trainer[2, 1] = [2, 0]
    answer = replace(rollout("a", ("v", 0, 4)), experts=engine)
    score = Score(np.zeros(4), trainer, None, (), "v")
    assert flip_rates("free", [answer], [score]) == {"flips_0_free": 0.0, "flips_1_free": 0.25}
    assert flip_rates("free", [replace(answer, experts=None)], [score]) == {}
