"""What a side posted against what its own logits give, made on softmax policies: each fault is told from the others."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.reported import Rescore, Side, Values, reported
from omni_rl.consistency.bands import NOISE
from omni_rl.consistency.evidence import Finding
from omni_rl.consistency.records import SampleRecord
from tests.consistency.policies import Answer, answers, cut, log_softmax, noisy

DTYPES = ("float32", "bfloat16")
SEEDS = range(5)
Fault = Callable[[list[Answer]], list[np.ndarray]]


def rescoring(given: Sequence[Answer]) -> Rescore:
    return lambda at, names: {
        answer.name: answer.logprobs(at) for answer in given if names is None or answer.name in names
    }


def own(given: Sequence[Answer], dtype: str) -> Values:
    return {answer.name: noisy(answer.logprobs(), dtype, 1) for answer in given}


def asked_of(given: Sequence[Answer], posted: Sequence[np.ndarray], dtype: str, side: Side = "engine") -> Finding:
    records = []
    for answer, values in zip(given, posted, strict=True):
        said, other = noisy(values, dtype, 2), noisy(answer.logprobs(), dtype, 3)
        engine, trainer = (said, other) if side == "engine" else (other, said)
        records.append(SampleRecord(answer.name, answer.kind, 5, engine, trainer))
    return reported(records, own(given, dtype), side, given[0].temperature, rescoring(given), NOISE[dtype])


def raw(given: list[Answer]) -> list[np.ndarray]:
    return [answer.logprobs(1.0) for answer in given]


def hotter(given: list[Answer]) -> list[np.ndarray]:
    return [answer.logprobs(0.7 * answer.temperature) for answer in given]


def penalised(given: list[Answer]) -> list[np.ndarray]:
    """A presence penalty: ids that stand before are less likely, and the first token is as it was."""
    found = []
    for answer in given:
        logits = answer.logits.copy()
        for at in range(1, len(answer.ids)):
            logits[at, answer.ids[:at]] -= 1.5
        table = log_softmax(logits / answer.temperature)
        found.append(np.take_along_axis(table, answer.ids[:, None], 1)[:, 0])
    return found


def another_answers(given: list[Answer]) -> list[np.ndarray]:
    """Of answers that are not in the step."""
    return [answer.logprobs() for answer in answers(99, count=len(given), temperature=given[0].temperature)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_penalty_is_an_engines_and_other_weights_are_a_trainers(dtype: str) -> None:
    for seed in SEEDS:
        given = answers(seed, temperature=0.6)
        engine = asked_of(given, penalised(given), dtype)
        assert (engine.cause, "changed after the logits" in engine.sentence) == (Cause.LOGPROB_POSTPROCESSING, True)
        assert asked_of(given, penalised(given), dtype, "trainer").cause is Cause.STALE_WEIGHTS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["engine", "trainer"])
@pytest.mark.parametrize(
    ("fault", "cause", "says"),
    [
        (raw, Cause.LOGPROB_POSTPROCESSING, "at temperature 1, the raw ones"),
        (hotter, Cause.LOGPROB_POSTPROCESSING, "those at temperature 0.4"),
        (another_answers, Cause.SAMPLE_PAIRING, "no function of them"),
    ],
)
def test_what_was_posted_is_called_by_its_name(fault: Fault, cause: Cause, says: str, side: Side, dtype: str) -> None:
    for seed in SEEDS:
        given = answers(seed, temperature=0.6)
        found = asked_of(given, fault(given), dtype, side)
        assert (found.result, found.cause) == ("explains", cause), found
        assert says in found.sentence
        assert f"the {side} posted other logprobs than its own logits give at temperature 0.6" in found.sentence


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cut_support_is_no_penalty(dtype: str) -> None:
    for seed in SEEDS:
        whole = answers(seed, sharpness=1.0)
        kept = [cut(answer, 0.7) for answer in whole]
        given = [Answer(a.name, a.kind, a.logits, k.ids) for a, k in zip(whole, kept, strict=True)]
        assert asked_of(given, [answer.logprobs() for answer in kept], dtype).cause is Cause.SAMPLING_SUPPORT


def test_a_rounding_on_the_way_is_found_in_float32() -> None:
    given = answers(3)
    half = [answer.logprobs().astype(np.float16).astype(np.float64) for answer in given]
    found = asked_of(given, half, "float32")
    assert found.cause is Cause.ROUNDING
    assert "rounded to float16 on their way" in found.sentence


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_sides_that_post_what_they_compute_are_clear(dtype: str) -> None:
    """Noise needs no explanation; where the sides compute different things, what they posted is not why."""
    given = answers(1)
    assert asked_of(given, [answer.logprobs() for answer in given], dtype).result == "clear"
    records = [
        SampleRecord(a.name, a.kind, 5, own(given, dtype)[a.name], b.logprobs())
        for a, b in zip(given, answers(8), strict=True)
    ]
    found = reported(records, own(given, dtype), "engine", 1.0, rescoring(given), NOISE[dtype])
    assert found.result == "clear"


def test_a_difference_that_stays_when_what_was_posted_is_replaced_is_not_explained() -> None:
    given = answers(2)
    records = [
        SampleRecord(a.name, a.kind, 5, a.logprobs(0.7), b.logprobs()) for a, b in zip(given, answers(8), strict=True)
    ]
    found = reported(records, own(given, "float32"), "engine", 1.0, rescoring(given), NOISE["float32"])
    assert found.result == "clear"


def test_values_that_are_no_numbers_explain_nothing() -> None:
    given = answers(3)
    assert asked_of(given, [np.full(32, np.nan) for _ in given], "float32").result == "clear"


def test_the_first_tokens_alone_may_be_known() -> None:
    given = answers(4)
    records = [SampleRecord(a.name, a.kind, 5, a.logprobs(0.7), a.logprobs()) for a in given]
    first = {name: values[:12] for name, values in own(given, "float32").items()}
    found = reported(records, first, "engine", 1.0, rescoring(given), NOISE["float32"])
    assert "those at temperature 0.7" in found.sentence


def test_weights_that_are_far_off_are_not_taken_for_another_answer() -> None:
    """Their logprobs correlate with nothing any more, and are lower: the answers were not sampled from them."""
    for seed in SEEDS:
        given = answers(seed, tokens=64, sharpness=3.0)
        rng = np.random.default_rng(seed)
        lost = [replace(answer, logits=3.0 * rng.standard_normal(answer.logits.shape)) for answer in given]
        found = asked_of(given, [answer.logprobs() for answer in lost], "bfloat16", "trainer")
        assert found.cause is Cause.STALE_WEIGHTS, found


@pytest.mark.parametrize("side", ["engine", "trainer"])
def test_what_a_few_answers_round_beside_it_does_not_hide_what_was_posted(side: Side) -> None:
    """bfloat16 has answers of one kind 0.06 apart; a temperature that one side ignores makes ten times as much."""
    given = answers(3, temperature=0.6)
    rng = np.random.default_rng(3)
    records = []
    for answer in given:
        said, other = answer.logprobs(1.0), answer.logprobs() + rng.laplace(0, 0.06, len(answer.ids))
        engine, trainer = (said, other) if side == "engine" else (other, said)
        records.append(SampleRecord(answer.name, answer.kind, 5, engine, trainer))
    found = reported(records, own(given, "bfloat16"), side, 0.6, rescoring(given), NOISE["bfloat16"])
    assert found.numbers["left"] > NOISE["bfloat16"].mean
    assert found.cause is Cause.LOGPROB_POSTPROCESSING


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("side", ["engine", "trainer"])
def test_a_few_tokens_of_many_are_told_that_move_no_mean(dtype: str, side: Side) -> None:
    """The last logprob of some answers is that of another one: in bfloat16 the step's mean is within noise."""

    def last_of_another(given: list[Answer]) -> list[np.ndarray]:
        own = [answer.logprobs() for answer in given]
        return [values if n % 3 else np.append(values[:-1], own[n - 1][-1]) for n, values in enumerate(own)]

    for seed in SEEDS:
        given = answers(seed, count=16, tokens=48)
        found = asked_of(given, last_of_another(given), dtype, side)
        # Six tokens do not say whether they are another answer's, or were changed: a side posted something else.
        of_engine = Cause.LOGPROB_POSTPROCESSING if side == "engine" else Cause.STALE_WEIGHTS
        assert found.result == "explains"
        assert found.cause in (Cause.SAMPLE_PAIRING, of_engine)
        assert asked_of(given, [answer.logprobs() for answer in given], dtype, side).result == "clear"
