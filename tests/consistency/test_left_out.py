"""A flip leaves out exactly what it touches, where it is a tie; and what is left out is judged too."""

import math
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare, compare_step
from omni_rl.consistency.left_out import NOTHING, TIES, Ties, kept
from omni_rl.consistency.limits import Judgement, Severity
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import first_flip
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.kinds import OVERALL

PROMPT, SAMPLED, LAYERS = 4, 6, 2
FLOAT32, BFLOAT16 = TIES["float32"], TIES["bfloat16"]


def judged(dtype: str, *records: SampleRecord) -> Judgement:
    yardstick = Yardstick.of(dtype)
    return yardstick.judge(yardstick.compare(StepColumns.of(records)))


def over(judgement: Judgement) -> set[str]:
    """The metrics that are over a limit."""
    return {breach.metric for breach in judgement.breaches}


def record(flip_at: tuple[int, int] | None, margin: float = 1e-7, error: float = 0.0) -> SampleRecord:
    """A record whose train logprobs are off by 1 wherever a flip at `flip_at` (position, layer) can reach."""
    positions = PROMPT + SAMPLED - 1
    experts = np.tile(np.array([0, 1], dtype=np.int16), (positions, LAYERS, 1))
    other = experts[:, :, ::-1].copy()  # the same experts in another order: no flip
    rollout = np.full(SAMPLED, -1.0)
    train = rollout + error
    margins = np.full((positions, LAYERS), 0.5, dtype=np.float32)
    if flip_at:
        position, layer = flip_at
        other[position, layer] = (0, 2)
        other[position + 1 :] = (3, 4)  # what follows flips too, as a consequence
        margins[position, layer] = margin
        predicting = PROMPT - 1 + np.arange(SAMPLED)
        train = np.where(predicting >= position, -2.0, train)
    return SampleRecord("s", "text", PROMPT, rollout, train, experts, other, margins)


@pytest.mark.parametrize(("position", "first"), [(0, 0), (3, 0), (4, 1), (8, 5)])
def test_exactly_the_touched_tokens_are_left_out(position: int, first: int) -> None:
    one = record((position, 1))
    flip = first_flip(one)
    assert flip is not None
    assert (flip.position, flip.layer) == (position, 1)
    assert flip.margin == pytest.approx(1e-7)
    assert kept(one, FLOAT32).tolist() == [True] * first + [False] * (SAMPLED - first)
    metrics = compare([record(None), one]).metrics
    assert (metrics.tokens, metrics.excluded_tokens, metrics.router_flips) == (SAMPLED + first, SAMPLED - first, 1)
    assert metrics.logprob_abs_diff_max == 0
    everything = compare([one], NOTHING).metrics
    assert (everything.tokens, everything.excluded_tokens) == (SAMPLED, 0)
    assert everything.logprob_abs_diff_max == 1


def test_only_flipped_positions_can_be_left_out() -> None:
    one = record(None)
    experts = one.train_experts
    assert experts is not None
    assert one.margins is not None
    experts[0, 0] = experts[PROMPT + 1, 1] = (6, 7)  # in the prompt, and where sampled token 2 is predicted
    one.margins[:] = 1e-3
    assert kept(one, BFLOAT16).tolist() == [True, True, False, True, True, True]
    metrics = compare([one], BFLOAT16).metrics
    assert (metrics.tokens, metrics.excluded_tokens, metrics.router_flips) == (SAMPLED - 1, 1, 1)


def test_the_order_of_experts_is_no_flip() -> None:
    one = record(None)
    assert first_flip(one) is None
    assert first_flip(replace(one, rollout_experts=one.train_experts, train_experts=one.rollout_experts)) is None


def test_by_position_counts_what_it_leaves_out() -> None:
    bins = compare_step(StepColumns.of([record((6, 0))])).by_position[OVERALL]
    assert sum(m.tokens + m.excluded_tokens for m in bins.values()) == SAMPLED
    assert sum(m.router_flips for m in bins.values()) == 1


def test_a_kind_of_which_ties_would_leave_nothing_is_judged_whole() -> None:
    """Unjudged is not agreement."""
    metrics = compare([record((0, 0))]).metrics
    assert (metrics.tokens, metrics.excluded_tokens) == (SAMPLED, 0)
    assert over(judged("float32", record((0, 0)))) >= {"logprob_abs_diff_mean"}


def test_each_limit_of_float32_bites() -> None:
    assert over(judged("float32", record(None, error=5e-6))) == set()
    assert over(judged("float32", record(None, error=8e-5))) == {"logprob_abs_diff_mean"}
    assert over(judged("float32", record(None, error=2e-4))) == {"logprob_abs_diff_mean", "logprob_abs_diff_max"}
    assert over(judged("float32", record((6, 0)))) == set()
    assert "flip_margin_max" in over(judged("float32", record((6, 0), margin=0.01)))


@pytest.mark.parametrize("margin", [0.01, math.nan])
def test_a_flip_that_is_no_tie_is_looked_at_although_the_logprobs_agree(margin: float) -> None:
    one = record((6, 0), margin=margin)
    found = judged("float32", replace(one, train_logprobs=one.rollout_logprobs))
    assert over(found) == {"flip_margin_max"}
    assert found.severity is (Severity.PAUSE if math.isnan(margin) else Severity.WARN)


def test_what_one_tie_leaves_out_is_spared_and_what_several_do_is_judged() -> None:
    clean, tie = [record(None)] * 20, record((6, 0))
    one = judged("float32", *clean, tie)
    assert one.severity is Severity.OK
    assert one.reason == "overall: excluded_fraction 0.02381 is over 0.001 for one router flip"
    assert judged("float32", *clean, tie, tie).severity is Severity.MASK
    assert over(judged("float32", *clean, tie, tie)) == {"excluded_fraction"}
    assert judged("float32", *clean[:5], *[tie] * 8).severity is Severity.PAUSE


def test_no_dtype_calls_what_is_no_number_agreement() -> None:
    for dtype in TIES:
        assert judged(dtype, record(None, error=math.nan)).severity is Severity.PAUSE


def test_bfloat16_uses_the_published_limit() -> None:
    assert over(judged("bfloat16", *[record(None, error=0.04)] * 9)) == set()
    assert "token_mult_prob_error" in over(judged("bfloat16", *[record(None, error=0.06)] * 9))


def test_what_follows_a_flip_that_is_no_tie_is_judged() -> None:
    """A fault flips the router too: if that left its tokens out, nothing would be left to see it by."""
    tie, fault = record((3, 0), margin=1e-7), record((3, 0), margin=1e-3)
    assert not kept(tie, FLOAT32).any()
    assert kept(fault, FLOAT32).all()
    assert compare([fault]).metrics.logprob_abs_diff_mean == 1.0


@pytest.mark.parametrize("ties", TIES.values(), ids=TIES)
def test_what_is_no_number_is_never_left_out(ties: Ties) -> None:
    one = record((0, 0))
    assert one.margins is not None
    one.margins[:] = 1e-7
    one.train_logprobs[4] = np.nan
    assert kept(one, ties).tolist() == [False] * 4 + [True, False]
    assert np.isnan(compare([one], ties).metrics.logprob_abs_diff_mean)


def flipped(tokens: int, flips: int, kind: str = "image", margin: float = 1e-3) -> SampleRecord:
    """A record of `tokens` whose first `flips` are predicted at flipped positions, and are off by 1."""
    experts = np.tile(np.array([0, 1], dtype=np.int16), (PROMPT + tokens - 1, LAYERS, 1))
    other = experts.copy()
    other[PROMPT - 1 : PROMPT - 1 + flips, 0] = (2, 3)
    rollout, off = np.full(tokens, -1.0), np.arange(tokens) < flips
    margins = np.full(other.shape[:2], margin, np.float32)
    return SampleRecord(f"{kind}-{tokens}-{flips}", kind, PROMPT, rollout, rollout - off, experts, other, margins)


@pytest.mark.parametrize(
    ("records", "excluded"),
    [
        ([flipped(32, 6), flipped(32, 7)], 13),
        ([flipped(16, 3), flipped(16, 4)], 3),
        ([flipped(16, 3), flipped(16, 5)], 0),
        ([flipped(16, 8), flipped(64, 0)], 0),
        ([flipped(64, 15), flipped(64, 0), flipped(64, 0)], 15),
        ([flipped(64, 16), flipped(64, 0), flipped(64, 0)], 0),
        ([flipped(8, 3), flipped(8, 3), flipped(8, 0)], 0),  # of the kind a quarter, of each answer too few to say
        ([flipped(8, 3), flipped(8, 3), flipped(9, 0)], 6),
        # A kind without a flip is no part of another one.
        ([flipped(8, 3), flipped(8, 3), flipped(8, 0), flipped(64, 0, "audio")], 0),
        ([flipped(64, 2, "text"), flipped(8, 3), flipped(8, 3), flipped(8, 0), flipped(64, 0, "audio")], 2),
        ([flipped(2, 1), flipped(2, 2)], 3),
        ([flipped(16, 8), flipped(16, 2, "text")], 2),
        ([flipped(64, 3, margin=0.1), flipped(64, 2)], 2),
        ([flipped(64, 3, margin=math.nan)], 0),
    ],
)
def test_flips_at_wide_margins_or_of_a_quarter_of_an_answer_or_a_kind_are_no_accidents(
    records: list[SampleRecord], excluded: int
) -> None:
    assert compare(records, BFLOAT16).metrics.excluded_tokens == excluded


def answers(apart: int, margin: float | None) -> list[SampleRecord]:
    """64 answers of 128 tokens, the first `apart` of them 1.5 nats off and routed otherwise at every token; `margin`
    None: no choices were recorded."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(64):
        rollout = -rng.exponential(1.0, 128)
        train = rollout + (rng.choice([-1.5, 1.5], 128) if number < apart else rng.normal(0, 0.02, 128))
        experts = np.tile(np.array([0, 1], np.int16), (PROMPT + 127, LAYERS, 1))
        other = experts + np.int16(2) if number < apart else experts
        choices = () if margin is None else (experts, other, np.full(experts.shape[:2], margin, np.float32))
        records.append(SampleRecord(f"s{number}", "text", PROMPT, rollout, train, *choices))
    return records


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("margin", [0.2, 1e-7])
def test_a_fault_is_not_excused_by_the_flips_that_it_causes(dtype: str, margin: float) -> None:
    """12 answers that some replica sampled with other weights: recorded choices must not calm what is said of them."""
    for apart in (12, 64):
        assert judged(dtype, *answers(apart, None)).severity is Severity.PAUSE
        assert judged(dtype, *answers(apart, margin)).severity is Severity.PAUSE


def test_choices_that_are_not_known_are_no_flips() -> None:
    for unknown in (-1, np.array([0, -1])):
        one = record((3, 0))
        assert one.train_experts is not None
        one.train_experts[3:, :] = unknown
        assert first_flip(one) is None
        assert compare([one]).metrics.logprob_abs_diff_mean == 1.0


def test_figures_are_given_with_and_without_what_flips_leave_out() -> None:
    columns = StepColumns.of([flipped(64, 3), flipped(64, 0, "text")])
    found = compare_step(columns, BFLOAT16)
    assert found.overall.metrics.logprob_abs_diff_mean == 0
    whole = found.figures["with_flips"]
    assert (whole["tokens"], whole["excluded_tokens"], whole["router_flips"]) == (128, 0, 1)
    assert whole["logprob_abs_diff_mean"] == 3 / 128
    assert compare_step(columns, NOTHING).overall.metrics == found.comparisons["with_flips"].metrics
    assert "with_flips" not in compare_step(StepColumns.of([flipped(64, 0)]), BFLOAT16).figures


@pytest.mark.parametrize(
    ("masked", "tokens", "excluded"),
    [
        ([], 16, 0),  # 4 flipped tokens are a quarter of 16
        ([0], 12, 3),  # 3 are too few to say
        ([15], 15, 0),
        ([0, 1, 2, 3], 12, 0),
        (list(range(4, 16)), 4, 0),
    ],
)
def test_only_tokens_that_count_are_left_out_or_said_to_be_too_many(
    masked: list[int], tokens: int, excluded: int
) -> None:
    columns = StepColumns.of([flipped(16, 4)])
    mask = ~np.isin(np.arange(16), masked)
    metrics = compare_step(replace(columns, loss_mask=mask), BFLOAT16).overall.metrics
    assert (metrics.tokens, metrics.excluded_tokens) == (tokens, excluded)
