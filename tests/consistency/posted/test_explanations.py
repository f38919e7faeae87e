"""Why a step is not ok, where no single check says it: what is suspected, and what is told of two proper policies."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.evidence import Check
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.posted.explain import Explanation
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.step import Array, PostedStep, Proofs, Spans
from omni_rl.consistency.posted.verdict import JudgedStep, judge_posted
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.yardstick import Yardstick

PROPER = (
    "no check of the records reproduces the difference, and both sides are proper policies (unit mean 1): they have "
    "other weights, other media, or other kernels"
)
NOTHING = "no check of the records reproduces the difference"


def posted(d: Array, seed: int = 0) -> tuple[StepColumns, PostedStep]:
    """Answers of these d [N, T]; the engine's logprobs are drawn."""
    rollout = -8.0 - np.random.default_rng(seed).exponential(1.0, d.shape)
    records = [
        SampleRecord(f"a{n}", "text", 3, own, own + by) for n, (own, by) in enumerate(zip(rollout, d, strict=True))
    ]
    columns = StepColumns.of(records)
    return columns, PostedStep.of(columns)


def judged(
    d: Array,
    dtype: str = "bfloat16",
    history: History | None = None,
    *,
    yardstick: Yardstick | None = None,
    **more: object,
) -> JudgedStep:
    columns, step = posted(d)
    step = replace(step, **more)  # type: ignore[arg-type]
    return judge_posted(columns, step, yardstick or Yardstick.of(dtype), history or History())


def explained(
    d: Array,
    dtype: str = "bfloat16",
    history: History | None = None,
    yardstick: Yardstick | None = None,
    **more: object,
) -> Explanation:
    found = judged(d, dtype, history, yardstick=yardstick, **more).explanation
    assert found is not None
    return found


def proper(answers: int, tokens: int, by: float, seed: int = 1) -> Array:
    """Differences by which exp(d) is 1 in the mean, in random order."""
    rng = np.random.default_rng(seed)
    signs = rng.permuted(np.tile([1.0, -1.0], (answers, tokens // 2)), axis=1)
    found: Array = np.log1p(by * signs)
    return found


def test_of_many_answers_that_are_off_two_proper_policies_are_told() -> None:
    waver = np.log1p(0.05 * np.where(np.arange(64) % 2, 1.0, -1.0))[:, None]
    found = explained(proper(64, 32, 0.5) + waver)
    assert (found.cause, found.sentence) == (Cause.UNKNOWN, PROPER)
    assert [finding.check for finding in found.findings][-2:] == [Check.GROWTH, Check.ROUNDING]


@pytest.mark.parametrize("by", [{"logprobs_of": "raw"}, {"filtered": True}])
def test_nothing_is_said_of_policies_whose_mean_says_nothing(by: dict[str, object]) -> None:
    assert explained(proper(64, 32, 0.5), **by).sentence == NOTHING  # type: ignore[arg-type]


@pytest.mark.parametrize(("waver", "said"), [(0.05, PROPER), (0.5, NOTHING)])
def test_a_mean_that_is_not_sure_does_not_speak_for_proper_policies(waver: float, said: str) -> None:
    """There are 8 answers: every second one's mean is above 1 and the others' are below."""
    d = proper(8, 32, 0.5) + np.log1p(waver * np.where(np.arange(8) % 2, 1.0, -1.0))[:, None]
    assert explained(d).sentence == said


@pytest.mark.parametrize(("t", "said"), [(2.9, PROPER), (-2.9, PROPER), (3.1, NOTHING), (-3.1, NOTHING)])
def test_a_mean_that_is_three_errors_off_does_not_speak_for_proper_policies(t: float, said: str) -> None:
    """Every second one of 64 answers is 0.05 above the others' mean, or below."""
    waver = 0.05 * np.where(np.arange(64) % 2, 1.0, -1.0) + t * 0.05 / math.sqrt(63)
    assert explained(proper(64, 32, 0.5) + np.log1p(waver)[:, None]).sentence == said


def test_a_mean_that_is_too_high_is_told() -> None:
    rng = np.random.default_rng(2)
    d = np.log1p(rng.permuted(np.tile([0.9, -0.5], (64, 16)), axis=1))
    found = explained(d)
    assert found.cause is Cause.UNKNOWN
    assert found.sentence.startswith("overall: the trainer gives the sampled tokens 20.00% more probability than")
    assert found.sentence.endswith(": rows or positions do not belong together, or the logprobs are not processed ones")


def test_a_mean_that_is_too_low_of_tokens_that_went_both_ways_is_told() -> None:
    """Tokens that are far likelier at the trainer speak against lost support."""
    rng = np.random.default_rng(3)
    d = np.log1p(rng.permuted(np.tile([*[-0.5] * 7, 2.0], (64, 4)), axis=1))
    found = explained(d, yardstick=replace(Yardstick.of("bfloat16"), noise=0.05))
    assert found.cause is Cause.UNKNOWN
    assert "% less probability than a policy's own samples have (" in found.sentence
    assert found.sentence.endswith(" answers): support was lost, or the numbers are not that policy's")


def stale(answers: int) -> Proofs:
    """The first answer was sampled by weights that no other had."""
    spans = Spans(np.arange(answers), np.zeros(answers, np.int64), np.full(answers, 32), ["1", *["2"] * (answers - 1)])
    return Proofs(sampled_by=spans, scored_by=["2"] * answers)


@pytest.mark.parametrize(("by", "cause"), [(0.02, Cause.STALE_WEIGHTS), (0.5, Cause.UNKNOWN)])
def test_what_the_records_state_is_the_cause_of_a_step_that_is_within_noise(by: float, cause: Cause) -> None:
    found = explained(proper(64, 32, by), proofs=stale(64))
    assert found.cause is cause
    (versions,) = (finding for finding in found.findings if finding.check is Check.VERSIONS)
    assert versions.result == ("explains" if cause is Cause.STALE_WEIGHTS else "suspicious")
    assert found.sentence == versions.sentence


def test_a_difference_that_grows_between_proper_policies_is_that_of_older_weights() -> None:
    sizes = tuple((size, 1e-4) for size in (0.02, 0.03, 0.04, 0.05))
    found = explained(proper(64, 32, 0.2), history=History(sizes=sizes))
    assert found.cause is Cause.STALE_WEIGHTS
    assert found.sentence.startswith("the mean abs d has grown with every update, from 0.02 to 0.2 in 4 steps, while")
    biased = explained(proper(64, 32, 0.2) + 0.1, history=History(sizes=sizes))
    assert biased.cause is not Cause.STALE_WEIGHTS
    (growth,) = (finding for finding in biased.findings if finding.check is Check.GROWTH)
    assert growth.result == "clear"


@pytest.mark.parametrize(
    ("sizes", "explains"),
    [
        ([0.01] * 3, True),
        ([0.01] * 2, False),
        ([0.0102, 0.01, 0.0051], True),
        ([0.01, 0.01, 0.0049], False),
        ([0.0199, 0.01, 0.01], True),
        ([0.0205, 0.01, 0.01], False),
    ],
)
def test_a_coarser_dtype_is_told_once_the_difference_was_the_same_at_several_steps(
    sizes: Sequence[float], explains: bool
) -> None:
    """The run is in float32, and 0.01 is what float16 is apart."""
    found = explained(proper(64, 32, 0.01), "float32", History(sizes=tuple((size, 1e-5) for size in sizes)))
    assert found.cause is (Cause.ROUNDING if explains else Cause.UNKNOWN)
    if explains:
        assert found.sentence == (
            "the two sides are as far apart as float16 is, at each of 4 steps: one side computes in it; state both "
            "sides' dtypes (dtype, train_dtype), or compute both in one"
        )


@pytest.mark.parametrize(("above", "explains"), [(19, True), (20, False), (13, True), (12, False)])
def test_rounding_is_as_often_above_zero_as_below(above: int, explains: bool) -> None:
    """32 tokens of an answer count; tokens that are equal on both sides do not."""
    rng, history = np.random.default_rng(4), History(sizes=((0.01, 1e-5),) * 3)
    up, down = 0.01 * (32 - above) / 16, 0.01 * above / 16
    each = [*[up] * above, *[-down] * (32 - above), *[0.0] * 8]
    d = np.log1p(rng.permuted(np.tile(each, (64, 1)), axis=1))
    assert (explained(d, "float32", history).cause is Cause.ROUNDING) is explains


@pytest.mark.parametrize(("by", "warn"), [(0.02, 0.015), (0.01, 0.005)])
def test_a_runs_own_limits_may_be_tighter_than_its_dtypes(by: float, warn: float) -> None:
    """The step is as far apart as bfloat16 is, or as float16, which is closer still."""
    limits = {"overall": {"logprob_abs_diff_mean": {"warn": warn, "mask": 0.5, "pause": 0.6}}}
    columns, step = posted(proper(64, 32, by))
    yardstick = Yardstick.of("bfloat16", limits)
    found = judge_posted(columns, step, yardstick, History())
    assert found.judgement.severity is Severity.WARN
    assert found.explanation is not None
    assert (found.explanation.cause, found.explanation.sentence) == (
        Cause.ROUNDING,
        "the two sides are as far apart as the run's dtypes are: its limits are tighter than these allow",
    )


def test_support_that_is_lost_in_one_kind_is_measured_there() -> None:
    lost = np.log1p(-0.2 * np.where(np.arange(32) % 4, 0.0, 1.0)) * np.ones((32, 1))
    columns, step = posted(np.concatenate([proper(32, 32, 0.01), lost]))
    kinds = ["text"] * 32 + ["image"] * 32
    both = replace(columns, kinds=kinds), replace(step, kinds=kinds)
    found = judge_posted(*both, Yardstick.of("bfloat16"), History()).explanation
    assert found is not None
    assert found.cause is Cause.SAMPLING_SUPPORT


def test_last_tokens_that_carry_a_bias_are_told() -> None:
    d = proper(64, 32, 0.01)
    d[:, -1] = -3.0
    found = explained(d)
    assert found.cause is not Cause.SAMPLING_SUPPORT
    assert found.sentence.startswith("the last tokens carry ")
    assert ": look at what each side takes for an answer's end" in found.sentence
    d[:, -2] = -3.0
    assert not explained(d).sentence.startswith("the last tokens carry "), "they carry half of it"


@pytest.mark.parametrize(("tokens", "told"), [(4, True), (3, False)])
def test_last_tokens_that_are_a_third_of_all_carry_what_they_carry(tokens: int, told: bool) -> None:
    """Each of 64 last tokens is a hundredth less likely at the trainer, or a little more or less than that."""
    d = np.zeros((64, tokens))
    d[:, -1] = np.log(0.99 + 0.001 * np.where(np.arange(64) % 2, 1.0, -1.0))
    assert explained(d).sentence.startswith("the last tokens carry 100% of it: ") is told


def test_a_step_is_clean_if_neither_its_figures_nor_its_look_show_anything() -> None:
    clean = judged(proper(64, 32, 0.02))
    assert (clean.judgement.severity, clean.explanation) == (Severity.OK, None)
    assert clean.history.clean_steps == 1
    assert clean.history.clean == pytest.approx(0.02, rel=0.01)
    assert (clean.history.looks, clean.history.tokens, len(clean.history.sizes)) == (1, 2048, 1)
    over = judged(proper(64, 32, 0.5))
    assert (over.judgement.severity, over.history.clean_steps) == (Severity.PAUSE, 0)
    stated = judged(proper(64, 32, 0.02), proofs=stale(64))
    assert (stated.judgement.breaches, stated.judgement.severity) == ((), Severity.WARN)
    assert (stated.history.clean_steps, stated.history.looks) == (0, 1)


def test_a_step_without_tokens_is_not_judged_and_not_explained() -> None:
    found = judged(np.empty((3, 0)))
    assert (found.judgement.severity, found.explanation) == (Severity.UNJUDGED, None)
    assert (found.history.looks, found.history.clean_steps) == (0, 0)


def test_figures_are_of_the_tokens_with_finite_logprobs_and_the_others_answers_are_the_worst() -> None:
    d = proper(8, 32, 0.02)
    d[5, 3], d[2, 7] = math.nan, -math.inf
    found = judged(d)
    assert found.judgement.severity is Severity.PAUSE
    assert found.comparison.overall.metrics.tokens == 8 * 32 - 2
    assert found.comparison.overall.metrics.logprob_abs_diff_mean == pytest.approx(0.02, rel=0.01)
    assert found.judgement.breaches == ()
    assert found.comparison.worst(2) == [2, 5]
    assert np.isfinite(found.comparison.sequence_error[[0, 1, 3]]).all()
    columns, step = posted(d)
    mask = np.ones(columns.tokens, np.bool_)
    mask[[2 * 32 + 7, 5 * 32 + 3, 0]] = False
    masked = judge_posted(
        replace(columns, loss_mask=mask),
        replace(step, counted=mask),
        Yardstick.of("bfloat16"),
        History(),
    )
    assert masked.judgement.severity is Severity.OK
    assert masked.comparison.overall.metrics.tokens == 8 * 32 - 3
    only = judged(np.full((2, 8), math.nan))
    assert math.isnan(only.comparison.overall.metrics.logprob_abs_diff_mean)
    assert only.comparison.overall.metrics.tokens == 16
    assert {breach.kind for breach in only.judgement.breaches} == {"overall", "text"}
