"""What every step is looked at for, at the edges: the severity that it asks for, and which parts are off."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

from omni_rl.consistency.evidence import Check, Finding
from omni_rl.consistency.limits import Severity, limits_for
from omni_rl.consistency.posted.history import History, two_sided
from omni_rl.consistency.posted.look import Look, look, noise_of_versions
from omni_rl.consistency.posted.outliers import log_fortune
from omni_rl.consistency.posted.step import Array, PostedStep, Proofs
from omni_rl.consistency.yardstick import Yardstick

BFLOAT16 = Yardstick.of("bfloat16")


def step(d: Array, kinds: Sequence[str] = (), rollout: Array | None = None) -> PostedStep:
    """Answers of these d [N, T], all of whose tokens count."""
    answers, tokens = d.shape
    own = -16.0 - np.arange(d.size) % 64 / 64 if rollout is None else rollout.ravel()
    return PostedStep(
        [f"a{n}" for n in range(answers)],
        kinds or ["text"] * answers,
        np.arange(answers + 1) * tokens,
        own,
        own + d.ravel(),
        np.ones(d.size, np.bool_),
        np.ones(answers),
    )


def proper(answers: int, tokens: int, by: float) -> Array:
    """Differences by which exp(d) is 1 in the mean of each answer."""
    found: Array = np.log(np.tile([1 + by, 1 - by], (answers, tokens // 2)))
    return found


def shifted(ratio: float, answers: int = 64, tokens: int = 32) -> Array:
    """Differences by which exp(d) is `ratio` in the mean, a little more in one answer and less in the next."""
    wavers = np.where(np.arange(answers) % 2, 1.01, 0.99)[:, None]
    found: Array = np.log1p((ratio - 1) * np.tile(wavers, (1, tokens)))
    return found


def seen(of: PostedStep, yardstick: Yardstick = BFLOAT16, history: History | None = None) -> Look:
    errors = np.exp(np.abs(of.d)).reshape(len(of), -1).mean(1)
    return look(of, yardstick, history or History(), errors)


def found(of: Look) -> Mapping[Check, tuple[Finding, Severity]]:
    return {finding.check: (finding, severity) for finding, severity in of.found}


def severities(of: Look) -> Mapping[Check, Severity]:
    return {check: severity for check, (_, severity) in found(of).items()}


def test_a_proper_step_shows_nothing() -> None:
    nothing = seen(step(proper(32, 16, 0.02)))
    assert (nothing.found, nothing.concerns, nothing.biased) == ((), (), ())
    assert (nothing.clean, nothing.has_unit_mean) == (True, True)


@pytest.mark.parametrize(("dtype", "bias"), [("float32", 3e-6), ("float16", 1e-3), ("bfloat16", 2e-3), ("fp8", 4e-3)])
def test_what_rounding_may_leave_in_a_mean_is_no_bias(dtype: str, bias: float) -> None:
    for by, biased in ((0.9, ()), (1.1, ("overall",))):
        for sign in (1, -1):
            assert seen(step(shifted(1 + sign * by * bias)), Yardstick.of(dtype)).biased[:1] == biased


@pytest.mark.parametrize(
    ("ratio", "severity"),
    [
        (0.91, Severity.WARN),
        (1.09, Severity.WARN),
        (0.89, Severity.MASK),
        (1.11, Severity.MASK),
        (0.51, Severity.MASK),
        (0.49, Severity.PAUSE),
        (1.51, Severity.PAUSE),
    ],
)
def test_a_bias_is_as_severe_as_it_is_large(ratio: float, severity: Severity) -> None:
    of = seen(step(shifted(ratio)))
    finding, its = found(of)[Check.UNIT_MEAN]
    assert its is severity
    assert finding.numbers["unit_mean"] == pytest.approx(ratio)
    assert finding.numbers["answers"] == 64
    side = "less" if ratio < 1 else "more"
    assert finding.sentence.startswith(
        f"overall: the trainer gives the sampled tokens {abs(ratio - 1):.2%} {side} probability than a policy's own "
    )
    assert finding.sentence.endswith(" standard errors over 64 answers)")
    assert not of.clean
    assert not of.has_unit_mean
    assert {concern.severity for concern in of.concerns} == set(severities(of).values())


def test_a_kind_that_is_biased_is_named_by_itself() -> None:
    d = np.concatenate([proper(400, 32, 0.02), shifted(0.97, 16)])
    of = seen(step(d, ["text"] * 400 + ["image"] * 16))
    assert "image" in of.biased
    assert "text" not in of.biased
    assert any(finding.sentence.startswith("image: the trainer gives") for finding, _ in of.found)


def test_a_place_that_is_biased_is_named_where_no_kind_is() -> None:
    d = proper(64, 32, 0.02)
    d[:, 0] = np.log(np.where(np.arange(64) % 2, 0.88, 0.92))
    d[:, 1:3] = math.log(1.05)
    of = seen(step(d))
    assert "overall" not in of.biased
    assert of.biased[0] == "the first tokens"
    assert severities(of)[Check.UNIT_MEAN] is Severity.WARN
    assert found(of)[Check.UNIT_MEAN][0].sentence.startswith("the first tokens: ")


@pytest.mark.parametrize("by", [{"logprobs_of": "raw"}, {"logprobs_of": "unknown"}, {"filtered": True}])
def test_of_raw_logprobs_and_chosen_answers_no_mean_is_expected(by: dict[str, object]) -> None:
    of = seen(replace(step(shifted(0.8)), **by))  # type: ignore[arg-type]
    assert (of.means, of.biased) == ({}, ())
    assert Check.UNIT_MEAN not in found(of)


def test_a_handful_of_answers_is_biased_by_bets() -> None:
    of = seen(step(shifted(0.8, answers=2, tokens=200)))
    assert of.biased == ("overall",)
    assert severities(of)[Check.UNIT_MEAN] is Severity.MASK


@pytest.mark.parametrize(("wrong", "severity"), [(1, Severity.MASK), (2, Severity.PAUSE)])
def test_values_that_are_no_logprobs_stop_a_run_if_they_are_more_than_one_in_a_thousand(
    wrong: int, severity: Severity
) -> None:
    of = step(proper(10, 100, 0.02))
    rollout = of.rollout.copy()
    rollout[:wrong] = 0.5
    assert severities(seen(replace(of, rollout=rollout)))[Check.IMPOSSIBLE] is severity


def test_values_that_are_no_numbers_stop_a_run() -> None:
    of = step(proper(10, 100, 0.02))
    train = of.train.copy()
    train[5] = math.nan
    assert severities(seen(replace(of, train=train)))[Check.VALUES] is Severity.PAUSE


@pytest.mark.parametrize(("wrong", "severity"), [(10, Severity.WARN), (11, Severity.MASK)])
def test_placeholders_are_masked_if_they_are_more_than_one_in_a_hundred(wrong: int, severity: Severity) -> None:
    of = step(proper(10, 100, 0.02))
    rollout = of.rollout.copy()
    rollout[: 90 * wrong : 90] = 0.0
    assert severities(seen(replace(of, rollout=rollout)))[Check.PLACEHOLDERS] is severity


@pytest.mark.parametrize(("kind", "far", "of_answer"), [("text", 0.1, 0.4), ("audio", 0.2, 0.4), ("robot", 0.1, 0.4)])
def test_a_place_is_far_beyond_the_widest_limit_from_which_a_kind_is_masked(
    kind: str, far: float, of_answer: float
) -> None:
    of = step(proper(16, 64, 0.01), [kind] * 16)
    assert (BFLOAT16.far(of.kinds), BFLOAT16.far_answer(of.kinds)) == (far, of_answer)
    for at, told in ((0.95 * far, False), (1.06 * far, True)):
        d = proper(16, 64, 0.01)
        d[:, 0] = np.where(np.arange(16) % 2, 1.0, -1.0) * at * np.where(np.arange(16) % 4 < 2, 0.99, 1.01)
        place = seen(replace(step(d, [kind] * 16), logprobs_of="raw"))
        assert (Check.POSITIONS in found(place)) is told
        if told:
            finding, severity = found(place)[Check.POSITIONS]
            assert severity is Severity.WARN
            assert finding.sentence.startswith(
                f"the first tokens of 16 answers have a mean abs d of {at:.2g}, while that"
            )
            assert finding.numbers["abs_diff_mean"] == pytest.approx(at)


def test_where_the_whole_step_is_far_no_place_is_told() -> None:
    d = np.where(np.arange(64) % 2, 0.2, -0.2) * np.where(np.arange(16) % 2, 0.99, 1.01)[:, None]
    assert Check.POSITIONS not in found(seen(replace(step(d), logprobs_of="raw")))


@pytest.mark.parametrize(("at", "told"), [(0.41, False), (0.43, True)])
def test_an_answer_is_told_beyond_the_widest_limit_that_stops_a_run(at: float, told: bool) -> None:
    """Its furthest token of twenty does not count."""
    d = proper(40, 20, 0.01)
    d[7] = np.where(np.arange(20) % 2, at, -at)
    of = seen(replace(step(d), logprobs_of="raw"))
    assert (Check.ANSWERS in found(of)) is told
    if told:
        assert found(of)[Check.ANSWERS][0].samples == ("a7",)
        assert severities(of)[Check.ANSWERS] is Severity.WARN


def test_a_runs_own_limits_say_what_is_far() -> None:
    limits = {"text": {"logprob_abs_diff_mean": {"warn": 0.2, "mask": 0.6, "pause": 0.7}}}
    yardstick, of = Yardstick.of("bfloat16", limits), step(proper(2, 4, 0.01))
    assert (yardstick.far(of.kinds), yardstick.far_answer(of.kinds)) == (0.6, 0.7)


@pytest.mark.parametrize(("lag", "noise"), [(None, 0.02), (0, 0.05), (2, 0.05)])
def test_within_a_lag_that_a_run_states_noise_is_that_of_the_dtype(lag: int | None, noise: float) -> None:
    clean = History(clean=0.01, clean_steps=9)
    assert noise_of_versions(Yardstick.of("bfloat16", lag=lag), clean) == noise


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "fp8"])
def test_noise_is_what_the_dtypes_limit_of_the_mean_lets_pass(dtype: str) -> None:
    assert Yardstick.of(dtype).noise == limits_for(dtype)["overall"]["logprob_abs_diff_mean"].warn


def test_two_dtypes_are_told_with_a_warning() -> None:
    of = replace(step(proper(32, 16, 0.02)), proofs=Proofs(dtypes=("float16", "bfloat16")))
    assert severities(seen(of)) == {Check.ROUNDING: Severity.WARN}
    assert seen(of).clean, "it is no fault of this step alone"
    same = replace(of, proofs=Proofs(dtypes=("bfloat16", "bfloat16")))
    assert severities(seen(same)) == {}


def test_a_bias_that_stays_over_steps_is_told() -> None:
    for excess, side in ((0.004, "more"), (-0.004, "less")):
        history = History(looks=9, excess=excess * 1e6, variance=100.0, tokens=1_000_000, scale=90.0, clean_steps=9)
        of = seen(step(proper(32, 16, 0.02)), history=history)
        finding, severity = found(of)[Check.BIAS]
        assert severity is Severity.WARN
        assert finding.sentence == (
            f"over 9 steps the trainer gives the sampled tokens 0.400% {side} probability than a policy's own samples "
            "have: too little for one step to show, and it stays"
        )
        assert finding.numbers == {"unit_mean": pytest.approx(1 + excess), "steps": 9.0}
        assert (of.clean, of.has_unit_mean) == (True, False)
    within = replace(history, excess=0.0019 * 1e6)
    assert seen(step(proper(32, 16, 0.02)), history=within).found == ()


@pytest.mark.parametrize(("noise", "told"), [(0.11, True), (0.13, False)])
def test_growth_is_told_where_it_is_more_than_half_of_noise(noise: float, told: bool) -> None:
    history = History(sizes=tuple((size, 1e-4) for size in (0.01, 0.02, 0.03, 0.04)))
    of = step(proper(32, 16, 0.06))
    assert of.size == pytest.approx(0.06, rel=0.01)
    grown = found(seen(of, replace(BFLOAT16, noise=noise), history))
    assert (Check.GROWTH in grown) is told
    if told:
        finding, severity = grown[Check.GROWTH]
        assert severity is Severity.WARN
        assert finding.sentence == "the mean abs d has grown with every update, from 0.01 to 0.06 in 4 steps"
        assert finding.numbers == {"smallest": 0.01, "abs_diff_mean": of.size, "steps": 4.0}


@pytest.mark.parametrize("looks", [0, 3])
@pytest.mark.parametrize(
    ("images", "tests"),
    [
        (
            0,
            8,
        ),  # the means of all, of the first tokens and of the next seven; these two's and the last tokens' sizes; 2
        (7, 9),  # the mean of the text; of so few images none is tested
        (8, 10),
    ],
)
def test_the_tests_of_a_step_share_one_rate_of_false_alarms(images: int, tests: int, looks: int) -> None:
    """Every second one of 64 answers has a mean that is 0.02 above that of all, and the others' are as far below."""
    history, kinds = History(looks=looks), ["image"] * images + ["text"] * (64 - images)
    at = brentq(lambda t: two_sided(t, 63) - history.share / tests, 1.0, 20.0)
    for by, told in ((0.998, False), (1.002, True)):
        excess = np.where(np.arange(64) % 2, 0.02, -0.02) + by * at * 0.02 / math.sqrt(63)
        of = seen(step(np.log1p(np.tile(excess[:, None], (1, 8))), kinds), history=history)
        assert of.means["overall"].t == pytest.approx(by * at)
        assert ("overall" in of.biased) is told


def test_all_answers_together_are_one_of_a_steps_tests() -> None:
    """One of 164 answers is off, which are too many tokens to bet on together. The means of all tokens and of six bins
    are tested, the sizes of these and of the last tokens, and what is always."""
    share, tests = History().share, 7 + 7 + 2
    needed = math.log(164 / (share / tests))
    at = brentq(lambda d: log_fortune(np.full(100, d), BFLOAT16.bias, 0.0) - needed, -2.0, -0.1)
    for by, told in ((0.99, False), (1.01, True)):
        d = np.zeros((164, 100))
        d[7] = by * at
        of = seen(step(d))
        assert of.biased == ()
        answers = [finding for finding, _ in of.found if "probability" in finding.sentence]
        assert bool(answers) is told
