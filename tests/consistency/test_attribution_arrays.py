"""Faults of the logprobs themselves, made on softmax policies: each is told from the others and from noise."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.arrays import support, temperature, token_shift
from omni_rl.consistency.attribution.evidence import SampleEvidence
from omni_rl.consistency.attribution.search import Attribution, Experiments, attribute
from omni_rl.consistency.bands import NOISE
from tests.consistency.policies import Answer, answers, cut, noisy

DTYPES = ("float32", "bfloat16")
SEEDS = range(5)


def rescoring(given: Sequence[Answer]) -> Callable[[float], list[np.ndarray]]:
    return lambda at: [answer.logprobs(at) for answer in given]


def search(given: Sequence[Answer], samples: Sequence[SampleEvidence], dtype: str) -> Attribution:
    return attribute(samples, Experiments(rescore=rescoring(given)), NOISE[dtype], seconds=60)


def raw_logprobs(seed: int, dtype: str) -> tuple[list[Answer], list[SampleEvidence]]:
    given = answers(seed, temperature=0.6)
    return given, [a.evidence(noisy(a.logprobs(1.0), dtype, seed)) for a in given]


def another_temperature(seed: int, dtype: str) -> tuple[list[Answer], list[SampleEvidence]]:
    given = answers(seed)
    return given, [a.evidence(noisy(a.logprobs(0.7), dtype, seed)) for a in given]


def shifted(seed: int, dtype: str) -> tuple[list[Answer], list[SampleEvidence]]:
    given = answers(seed)
    return given, [a.evidence(np.roll(noisy(a.logprobs(), dtype, seed), 1)) for a in given]


def top_p(seed: int, dtype: str) -> tuple[list[Answer], list[SampleEvidence]]:
    whole = answers(seed, sharpness=1.0)
    kept = [cut(answer, 0.7) for answer in whole]
    asked = [Answer(a.name, a.kind, a.logits, k.ids) for a, k in zip(whole, kept, strict=True)]
    return asked, [a.evidence(noisy(k.logprobs(), dtype, seed), a.logprobs()) for a, k in zip(asked, kept, strict=True)]


Fault = Callable[[int, str], tuple[list[Answer], list[SampleEvidence]]]
FAULTS: dict[Cause, tuple[Fault, ...]] = {
    Cause.LOGPROB_POSTPROCESSING: (raw_logprobs, another_temperature),
    Cause.TOKEN_SHIFT: (shifted,),
    Cause.SAMPLING_SUPPORT: (top_p,),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cause", "fault"), [(cause, fault) for cause, each in FAULTS.items() for fault in each])
def test_a_fault_is_named_whatever_the_seed(cause: Cause, fault: Fault, dtype: str) -> None:
    found = [search(given, samples, dtype).cause for given, samples in (fault(seed, dtype) for seed in SEEDS)]
    assert found == [cause] * len(SEEDS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_stale_weights_look_like_none_of_these(dtype: str) -> None:
    """Logits moved by an update: nearly every difference has its own sign, and no hypothesis explains it."""
    for seed in SEEDS:
        given = answers(seed)
        rng = np.random.default_rng(seed)
        stale = [Answer(a.name, a.kind, a.logits + 0.3 * rng.standard_normal(a.logits.shape), a.ids) for a in given]
        samples = [a.evidence(s.logprobs()) for a, s in zip(given, stale, strict=True)]
        assert search(given, samples, dtype).cause is Cause.UNKNOWN


def test_noise_alone_is_none_of_these() -> None:
    for dtype in DTYPES:
        given = answers(1)
        samples = [a.evidence(noisy(a.logprobs(), dtype, 2)) for a in given]
        assert search(given, samples, dtype).cause is Cause.UNKNOWN


def test_the_temperature_that_fits_is_told() -> None:
    given = answers(3)
    finding = temperature([a.evidence(a.logprobs(0.7)) for a in given], rescoring(given), NOISE["float32"])
    assert finding.numbers["fits"] == pytest.approx(0.7, rel=0.02)
    assert "0.7" in finding.sentence


def test_the_direction_of_a_shift_is_told() -> None:
    given = answers(3)
    assert "before" in token_shift([a.evidence(np.roll(a.logprobs(), 1)) for a in given]).sentence
    assert "after" in token_shift([a.evidence(np.roll(a.logprobs(), -1)) for a in given]).sentence


def test_values_that_are_no_numbers_explain_nothing() -> None:
    given = answers(3)
    samples = [a.evidence(np.full(32, np.nan)) for a in given]
    assert {token_shift(samples).result, support(samples, NOISE["float32"]).result} == {"clear"}
    assert temperature(samples, rescoring(given), NOISE["float32"]).result == "clear"


def test_a_difference_that_only_leans_to_one_side_is_no_cut_support() -> None:
    """Media that one side lacks make the sampled tokens less likely there, but not every one of them."""
    rng = np.random.default_rng(0)
    given = answers(5)
    samples = [a.evidence(a.logprobs() + 0.09 + 0.16 * rng.standard_normal(len(a.ids))) for a in given]
    assert support(samples, NOISE["bfloat16"]).result == "clear"
