"""Entropies and likeliest ids, where they are posted, tell causes that two logprobs a token leave open."""

from typing import Any

import numpy as np
import pytest

from omni_rl.consistency.limits import Severity
from tests.cases.judged import Judge, Judged
from tests.cases.world import Array, Row, World, records

K = 8


def log_softmax(logits: Array) -> Array:
    z = logits - logits.max(-1, keepdims=True)
    found: Array = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return found


def entropy(logits: Array) -> Array:
    logs = log_softmax(logits)
    found: Array = -(np.exp(logs) * np.where(np.isfinite(logs), logs, 0.0)).sum(-1)
    return found


def top(engine: Array) -> dict[str, Any]:
    """The engine's `K` likeliest ids, flat for each answer."""
    ids = np.argsort(-engine, -1, kind="stable")[..., :K]
    logs = np.take_along_axis(log_softmax(engine), ids, -1)
    return {
        "rollout_top_ids": list(ids.reshape(len(ids), -1)),
        "rollout_top_logprobs": list(logs.reshape(len(ids), -1)),
    }


def entropies(engine: Array, train: Array) -> dict[str, Any]:
    return {"rollout_entropy": list(entropy(engine)), "train_entropy": list(entropy(train))}


def judged(rows: list[Row]) -> Judged:
    return Judge().rows(rows)


def test_a_clean_step_with_all_columns_is_ok() -> None:
    w = World(3, 16, 64, 128)
    engine = w.engine(w.logits)
    ids = w.sample(engine)
    more = entropies(engine, w.logits) | top(engine)
    found = judged(records(w.logprobs(engine, ids), w.logprobs(w.logits, ids), ids, **more))
    assert (found.severity, found.cause) == (Severity.OK, None)


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_few_guided_tokens_are_known_by_ids_that_could_not_be_sampled(seed: int) -> None:
    """In so small a step nothing else tells them from a trainer that lost its way."""
    w = World(seed, 8, 64, 200)
    free = w.rng.random((8, 64, 1)) >= 0.02
    allowed = w.rng.random(w.shape) < 0.02
    allowed[..., :2] = True
    engine = np.where(free | allowed, w.engine(w.logits), -np.inf)
    ids = w.sample(engine)
    rollout, train = w.logprobs(engine, ids), w.logprobs(w.logits, ids)
    assert judged(records(rollout, train, ids)).cause == "unknown"
    found = judged(records(rollout, train, ids, **top(engine)))
    assert found.cause == "sampling_support"
    assert "ends in ids that could not be sampled" in found.sentence


def test_the_most_likely_ids_logprob_is_seen_in_the_engines_own_list() -> None:
    """The step has fewer tokens than a pattern needs."""
    w = World(7, 8, 32, 200)
    engine = w.engine(w.logits)
    ids = w.sample(engine)
    rollout, train = w.logprobs(engine, engine.argmax(-1)), w.logprobs(w.logits, ids)
    assert judged(records(rollout, train, ids)).cause != "logprob_postprocessing"
    found = judged(records(rollout, train, ids, **top(engine)))
    assert found.cause == "logprob_postprocessing"
    assert "another id's (the most likely one's) than the posted one's" in found.sentence


def test_logprobs_of_other_ids_are_told_by_equal_entropies() -> None:
    w = World(9, 16, 64, 200)
    engine = w.engine(w.logits)
    ids = w.sample(engine)
    other = w.rng.permuted(ids, axis=0)  # ids of other answers, at the same places
    rollout, train = w.logprobs(engine, ids), w.logprobs(w.logits, other)
    assert judged(records(rollout, train, ids)).cause in ("unknown", "sampling_support")
    found = judged(records(rollout, train, ids, **entropies(engine, w.logits)))
    assert found.cause == "logprob_postprocessing"
    assert "their logprobs are those of different ids" in found.sentence


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_a_temperature_shows_in_few_tokens_by_entropies_that_move_one_way(temperature: float) -> None:
    w = World(11, 8, 24, 200)
    engine = w.engine(w.logits) / temperature
    ids = w.sample(engine)
    rollout, train = w.logprobs(engine, ids), w.logprobs(w.logits, ids)
    assert judged(records(rollout, train, ids)).cause == "unknown"
    found = judged(records(rollout, train, ids, **entropies(engine, w.logits)))
    assert (found.cause, "at a temperature of" in found.sentence) == ("logprob_postprocessing", True)


@pytest.mark.parametrize("temperature", [0.6, 0.8, 1.2])
def test_a_temperature_is_one_with_entropies_too(temperature: float) -> None:
    w = World(13, 24, 96, 200)
    engine = w.engine(w.logits) / temperature
    ids = w.sample(engine)
    more = entropies(engine, w.logits) | top(engine)
    found = judged(records(w.logprobs(engine, ids), w.logprobs(w.logits, ids), ids, **more))
    assert (found.cause, "at a temperature of" in found.sentence) == ("logprob_postprocessing", True)


@pytest.mark.parametrize("cut", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.05}])
def test_a_cut_is_one_with_entropies_too(cut: dict[str, Any]) -> None:
    w = World(14, 24, 96, 200)
    engine = np.where(np.isfinite(w.cut(**cut)), w.engine(w.logits), -np.inf)
    ids = w.sample(engine)
    rollout, train = w.logprobs(engine, ids), w.logprobs(w.logits, ids)
    for more in (entropies(engine, w.logits), top(engine), entropies(engine, w.logits) | top(engine)):
        assert judged(records(rollout, train, ids, **more)).cause == "sampling_support"
