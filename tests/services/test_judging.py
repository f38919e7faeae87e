"""A step of several ranks judged by itself: what is stored of it, its weights, and the verdict's words."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from omni_rl_services.coordinator.judging import (
    Judged,
    judge_step,
    proven,
    sample_weights,
    weigh,
    weights_stream,
)
from omni_rl_services.coordinator.verdicts import severity_of, verdict_of

from omni_rl.api.runs import RunBody
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.corrections import Correction
from omni_rl.consistency.evidence import Check, Finding
from omni_rl.consistency.limits import Breach, Judgement, Severity
from omni_rl.consistency.policy import Drift
from omni_rl.consistency.posted.explain import Explanation
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.records import SampleRecord
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import StepKey

OK, WARN, MASK, PAUSE = Severity.OK, Severity.WARN, Severity.MASK, Severity.PAUSE
BODY = RunBody(run="math", model="m", dtype="bfloat16")


def row(name: str, shift: float, tokens: int = 4, **more: Any) -> dict[str, Any]:
    rollout = [-2.5 - 0.25 * n for n in range(tokens)]
    train = [value + shift for value in rollout]
    return {"sample": name, "rollout_logprobs": rollout, "train_logprobs": train, **more}


def judged(parts: dict[int, list[dict[str, Any]]], worst: int = 16) -> Judged:
    records = {rank: StepRecords.of(rows) for rank, rows in parts.items()}
    return judge_step(records, BODY.judged_by(), History(), worst)


def spans(*versions: str) -> dict[str, Any]:
    return {"version_spans": [{"version": one, "start": n, "end": n + 1} for n, one in enumerate(versions)]}


PARTS = {
    0: [row("a", 0.01, **spans("v2")), row("b", 0.5)],
    3: [row("c", 0.0, **spans("v1", "v2"))],
    7: [row("d", 0.02), row("e", 1.0, kind="image"), row("f", -0.2, **spans("v3"))],
}


@pytest.mark.parametrize("worst", [0, 1, 3, 6, 16])
def test_the_samples_that_are_furthest_apart_are_stored_with_their_rank_and_record(worst: int) -> None:
    found = judged(PARTS, worst)
    names = ["e", "b", "f", "d", "a", "c"][:worst]
    ranks = [7, 0, 7, 7, 0, 3][:worst]
    assert [found.columns.samples[number] for number in found.worst] == names
    assert found.kept.ranks == tuple(ranks)
    assert [one["sample"] for one in found.kept.records.to_json()["records"]] == names
    errors = [math.exp(far) for far in (1.0, 0.5, 0.2, 0.02, 0.01, 0.0)][:worst]
    assert [one.seq_mult_prob_error_mean for one in found.kept.figures] == pytest.approx(errors)


def test_every_sample_is_of_the_rank_that_posted_it_and_versions_are_named_once() -> None:
    found = judged(PARTS)
    assert "".join(found.columns.samples) == "abcdef"
    assert found.ranks.tolist() == [0, 0, 3, 7, 7, 7]
    assert found.versions == ("v1", "v2", "v3")
    assert judged({0: [row("a", 0.0)]}).versions == ()
    assert found.flips is None


def experts(first_flips: list[int | None], layers: int = 3) -> list[dict[str, Any]]:
    """Samples of one token whose choices part in a layer, or in none."""
    rows = []
    for number, flip in enumerate(first_flips):
        engine = [[0, 1] for _ in range(layers)]
        trainer = [[0, 2] if flip is not None and layer >= flip else [0, 1] for layer in range(layers)]
        choices = {"moe_layers": layers, "experts_per_token": 2, "margins": [0.5] * layers, "prompt_tokens": 1}
        flat = {"rollout_experts": np.ravel(engine).tolist(), "train_experts": np.ravel(trainer).tolist()}
        rows.append(row(f"s{number}", 0.0, 1, **choices, **flat))
    return rows


def test_first_flips_are_counted_by_their_layer() -> None:
    assert judged({0: experts([0, 2, None]), 1: experts([2, 2])}).flips == (1, 0, 3)
    assert judged({0: experts([None, None])}).flips == (0, 0, 0)


def columns(*shifts: list[float], mask: list[bool] | None = None) -> StepColumns:
    records = []
    for number, shift in enumerate(shifts):
        rollout = np.full(len(shift), -1.0)
        records.append(SampleRecord(f"s{number}", "text", 1, rollout, rollout + np.array(shift)))
    found = StepColumns.of(records)
    return found if mask is None else replace(found, loss_mask=np.array(mask))


def test_weights_have_their_share_that_was_clipped_and_kishs_sample_size() -> None:
    found = weigh(columns([0.0, math.log(4.0)], [math.log(0.5), math.log(1.5)]), Correction("tis"))
    np.testing.assert_allclose(found.values, [1.0, 2.0, 0.5, 1.5], rtol=1e-6)
    assert found.values.dtype == np.float32
    assert found.method == "tis"
    assert found.clipped_fraction == 0.25
    # (1 + 2 + 0.5 + 1.5)² / (4 · (1 + 4 + 0.25 + 2.25))
    assert found.effective_sample_size == pytest.approx(25 / 30)


def test_tokens_that_do_not_count_weigh_nothing_and_are_in_no_share() -> None:
    found = weigh(columns([0.0, math.log(4.0)], [5.0, 0.0], mask=[True, True, False, True]), Correction("tis"))
    np.testing.assert_allclose(found.values, [1.0, 2.0, 0.0, 1.0], rtol=1e-6)
    assert found.clipped_fraction == pytest.approx(1 / 3)
    assert found.effective_sample_size == pytest.approx(16 / 18)
    nothing = weigh(columns([0.0], mask=[False]), Correction("tis"))
    assert (nothing.clipped_fraction, nothing.effective_sample_size) == (0.0, 0.0)


def test_where_every_weight_is_zero_there_is_no_sample() -> None:
    found = weigh(columns([-9.0, 9.0]), Correction("icepop"))
    assert found.values.tolist() == [0.0, 0.0]
    assert (found.clipped_fraction, found.effective_sample_size) == (1.0, 0.0)
    with np.errstate(all="raise"):
        broken = weigh(columns([math.inf, 1e4, math.nan]), Correction("tis"))
    assert broken.values.tolist() == [2.0, 2.0, 0.0]


def test_weights_are_given_sample_by_sample_with_their_rank() -> None:
    of = columns([0.0, math.log(4.0)], [math.log(0.5)], [])
    found = weigh(of, Correction("tis"))
    given = sample_weights(of, np.array([0, 3, 3]), found)
    assert [(one.rank, one.sample, one.weights) for one in given] == [
        (0, "s0", pytest.approx([1.0, 2.0])),
        (3, "s1", pytest.approx([0.5])),
        (3, "s2", []),
    ]
    stream = weights_stream(of, np.array([0, 3, 3]), found, '{"a": 1}')
    table = pa.ipc.open_stream(stream).read_all()
    assert table.schema.metadata[b"omni_rl.verdict"] == b'{"a": 1}'
    assert table.column("rank").to_pylist() == [0, 3, 3]
    assert table.column("sample").to_pylist() == ["s0", "s1", "s2"]
    assert table.column("weights").to_pylist() == [pytest.approx([1.0, 2.0]), pytest.approx([0.5]), []]
    assert table.schema.field("weights").type == pa.list_(pa.float32())
    plain = pa.ipc.open_stream(weights_stream(of, np.array([0, 3, 3]), None, "{}")).read_all()
    assert plain.column("weights").to_pylist() == [None] * 3
    assert plain.schema.field("weights").type == pa.list_(pa.float32())


FAULT = Finding(Check.WEIGHTS, "explains", "update 2 changed nothing", Cause.STALE_WEIGHTS)


@pytest.mark.parametrize(
    ("cause", "fault", "replaced"),
    [
        (Cause.UNKNOWN, FAULT, True),
        (Cause.STALE_WEIGHTS, FAULT, True),
        (Cause.ROUNDING, FAULT, True),
        (Cause.KERNEL, FAULT, True),
        (Cause.ROUTER, FAULT, True),
        (Cause.TOKEN_SHIFT, FAULT, False),
        (Cause.SAMPLING_SUPPORT, FAULT, False),
        (Cause.UNKNOWN, None, False),
        (Cause.UNKNOWN, replace(FAULT, cause=None), False),
        (None, FAULT, False),
    ],
)
def test_a_fault_of_an_update_explains_what_the_records_leave_open(
    cause: Cause | None, fault: Finding | None, replaced: bool
) -> None:
    step = judged({0: [row("a", 0.0)]})
    own = Finding(Check.GROWTH, "suspicious", "it grows")
    before = None if cause is None else Explanation(cause, "so", (own,))
    after = proven(replace(step, explanation=before), fault).explanation
    if replaced:
        assert after == Explanation(Cause.STALE_WEIGHTS, "update 2 changed nothing", (FAULT, own))
    else:
        assert after is before


KEY = StepKey("math", 2, 9)


def said(own: Severity, drift: Drift, *, live: bool = True, settle: int = 3, value: float = 0.5) -> Any:
    step = judged(PARTS)
    breaches = (Breach("text", "gen_kl_error", value, 0.1, own),) if own > OK else ()
    step = replace(step, judgement=Judgement(own, own, breaches, ()), explanation=None)
    assert severity_of(step, drift, live=live).label == verdict_of(KEY, step, drift, None, settle, live=live).severity
    return verdict_of(KEY, step, drift, None, settle, live=live)


@pytest.mark.parametrize(
    ("own", "drift", "severity", "reason"),
    [
        (OK, Drift(), "ok", "every figure is within its limits"),
        (PAUSE, Drift(PAUSE), "pause", "text: gen_kl_error 0.5 is over 0.1 (pause)"),
        (OK, Drift(WARN, (WARN, OK)), "warn", "still at warn: calm step 1 of 3; of this step: every figure"),
        (OK, Drift(PAUSE, (PAUSE, OK, OK)), "pause", "still paused: calm step 2 of 3; of this step: every figure"),
        (OK, Drift(MASK, (OK, OK)), "mask", "still masked: calm step 2 of 3; of this step: every figure"),
        (WARN, Drift(MASK, (MASK, WARN)), "mask", "still masked: calm step 1 of 3; of this step: text: gen_kl"),
        (OK, Drift(MASK, (OK, PAUSE, OK)), "mask", "still masked: calm step 1 of 3; of this step: every"),
        (OK, Drift(PAUSE, (), "halted"), "pause", "still paused: the gate is halted; of this step: every figure"),
        (MASK, Drift(PAUSE, (), "paused"), "pause", "still paused: the gate is paused; of this step: text: gen_kl"),
        (Severity.UNJUDGED, Drift(PAUSE), "unjudged", "nothing was judged: no token counts, or too few to say"),
    ],
)
def test_a_verdict_says_where_its_severity_comes_from(own: Severity, drift: Drift, severity: str, reason: str) -> None:
    verdict = said(own, drift)
    assert verdict.severity == severity
    assert verdict.reason.startswith(reason)


def test_a_step_of_an_earlier_attempt_has_its_own_severity() -> None:
    verdict = said(WARN, Drift(PAUSE), live=False)
    assert verdict.severity == "warn"
    assert verdict.reason.endswith("(warn); a newer attempt of the run is under way, which this does not move")


def test_a_verdict_has_what_was_judged_and_null_for_what_is_no_number() -> None:
    verdict = said(PAUSE, Drift(PAUSE, gate="paused", pursuit="attributing"), value=math.nan)
    assert (verdict.run, verdict.attempt, verdict.step) == ("math", 2, 9)
    assert (verdict.samples, verdict.tokens, verdict.weights, verdict.cause) == (6, 24, None, None)
    (breach,) = verdict.breaches
    assert (breach.kind, breach.metric, breach.value, breach.limit) == ("text", "gen_kl_error", None, 0.1)
    assert breach.severity == "pause"
    assert [(one.rank, one.sample, one.kind) for one in verdict.worst[:2]] == [(7, "e", "image"), (0, "b", "text")]
    assert verdict.worst[0].error == pytest.approx(math.e)
    assert (verdict.sentence, verdict.evidence) == ("", [])
    assert verdict.drift.model_dump() == {
        "severity": "pause",
        "gate": "paused",
        "pursuit": "attributing",
        "cause": None,
    }


def test_a_verdict_has_its_cause_and_how_its_tokens_are_weighed() -> None:
    step = replace(judged(PARTS), explanation=Explanation(Cause.KERNEL, "it is so", (FAULT,)))
    weights: Any = SimpleNamespace(method="tis", clipped_fraction=0.25, effective_sample_size=0.5)
    verdict = verdict_of(KEY, step, Drift(PAUSE), weights, 3, live=True)
    assert (verdict.cause, verdict.sentence) == ("kernel", "it is so")
    assert [one["check"] for one in verdict.evidence] == ["weights"]
    assert verdict.weights is not None
    assert verdict.weights.model_dump() == {
        "method": "tis",
        "clipped_fraction": 0.25,
        "effective_sample_size": 0.5,
    }
