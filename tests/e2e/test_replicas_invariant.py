"""Batch-invariant answers of two replicas; a file of its own, because a process has one Ray at a time."""

from pathlib import Path

import numpy as np
import pytest

from tests.e2e.test_replicas import alone, pair_of_two, prompts, sampling

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_batch_invariant_answers_are_those_of_one_replica_bit_for_bit(small_checkpoint: Path) -> None:
    with pair_of_two(small_checkpoint, "bfloat16", batch_invariant=True) as pair:
        given = prompts(pair, 0)
        one, both = alone(pair).sample(given, sampling(0)), pair.sample(given, sampling(0))
    for a, b in zip(one, both, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert a.logprobs.tolist() == b.logprobs.tolist()
        assert np.array_equal(a.experts, b.experts)  # type: ignore[arg-type]
