"""The search for a cause: what is asked of which samples, what is told where nothing explains, and cases with masks."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.case import Case, found_in
from omni_rl.consistency.attribution.legs import Legs
from omni_rl.consistency.attribution.packing import Packing
from omni_rl.consistency.attribution.search import Attribution, Experiments, attribute
from omni_rl.consistency.bands import Bands
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.evidence import Audit, Check, Finding, TrainerAudit, WrongTensor
from omni_rl.consistency.localisation import ModuleDifference
from omni_rl.consistency.posted.step import PostedStep
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.yardstick import Yardstick

BANDS = Bands("bfloat16", mean=1 / 16, token=0.5, relative=0.05)
WRONG = Audit("r0", "run/1/3/ab", 8, (WrongTensor("lm_head", 8, stale=False),))


def record(d: Sequence[float], name: str = "a", kind: str = "text") -> SampleRecord:
    rollout = np.full(len(d), -16.0) - np.arange(len(d)) / 8
    return SampleRecord(name, kind, 5, rollout, rollout + np.array(d))


def search(records: Sequence[SampleRecord], known: Sequence[Finding] = (), **experiments: object) -> Attribution:
    return attribute(Case(records, known), Experiments(**experiments), BANDS, seconds=60)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("of", "worst"),
    [
        ({"a": [0.5] * 4, "b": [-0.75] * 4, "c": [0.25] * 4}, "b"),
        ({"a": [0.5] * 4, "b": [0.75] * 4, "c": [math.nan, 0.0, 0.0, 0.0]}, "c"),
        ({"a": [], "b": [0.25]}, "b"),
    ],
)
def test_modules_are_compared_on_the_sample_that_is_furthest(of: dict[str, list[float]], worst: str) -> None:
    asked = list[str]()

    def localise(sample: str) -> tuple[str, list[ModuleDifference]]:
        asked.append(sample)
        return "another", [ModuleDifference("layers.3", 0.5, 2, 0.05)]

    found = search([record(d, name) for name, d in of.items()], localise=localise)
    assert asked == [worst]
    assert found.cause is Cause.KERNEL
    assert found.sentence.startswith("sample another: layers.3 is the first module")


def test_without_samples_no_module_is_compared() -> None:
    def never(sample: str) -> tuple[str, list[ModuleDifference]]:
        raise AssertionError(sample)

    found = search([], localise=never)
    assert (found.cause, found.sentence) == (Cause.UNKNOWN, "no check reproduces the difference")


def test_samples_within_noise_leave_nothing_to_explain() -> None:
    for size, said in ((1 / 16, True), (1 / 15, False)):
        sentence = search([record([size, -size] * 4)]).sentence
        assert ("which is noise: there is nothing to explain" in sentence) is said
    assert search([record([1 / 16] * 4)]).sentence == (
        "the samples are 0.062 apart, which is noise: there is nothing to explain"
    )


def test_suspicions_are_told_before_what_was_not_done() -> None:
    def late(sample: str) -> tuple[str, list[ModuleDifference]]:
        raise TimeoutError

    parted = [record([0.5, -0.5] * 4)]
    legs = Legs(parted, [], [])
    found = search(parted, legs=lambda: legs, localise=late)
    assert found.cause is Cause.UNKNOWN
    assert found.sentence.startswith(
        "the trainer is 0.5 away from the engine's prefill, which agrees with itself; not done"
    )
    assert "; not done: localisation (abandoned after " in found.sentence
    assert set(found.seconds) == {Check.TRAIN_AGAINST_PREFILL, Check.LOCALISATION}
    assert all(0 <= seconds < 60 for seconds in found.seconds.values())


def test_an_error_that_is_no_experiments_own_is_not_swallowed() -> None:
    def broken() -> list[Audit]:
        raise KeyError("a fault of ours")

    with pytest.raises(KeyError, match="a fault of ours"):
        search([record([0.5] * 4)], audit=broken)


def said(check: Check, result: str = "explains") -> Finding:
    return Finding(check, result, f"by {check}", Cause.LOGPROB_POSTPROCESSING)  # type: ignore[arg-type]


@pytest.mark.parametrize("check", [Check.PENALTY, Check.TEMPERATURE, Check.SUPPORT, Check.GROWTH, Check.ROUNDING])
def test_after_a_pattern_of_the_records_every_experiment_is_made(check: Check) -> None:
    parted = [record([0.5, -0.5] * 4)]
    packed = Packing(parted, [])
    alone = search(parted, [said(check), said(Check.GROWTH)])
    assert (alone.sentence, alone.findings[0].result) == (f"by {check}", "explains")
    assert {finding.check for finding in alone.findings} > {Check.WEIGHTS, Check.ROUTER, Check.LOCALISATION}
    asked = search(parted, [said(check), said(Check.GROWTH)], packing=lambda: packed)
    assert asked.cause is Cause.TRAIN_PACKING
    assert asked.findings[0].result == "suspicious"


def test_after_values_that_are_no_numbers_only_weights_are_read() -> None:
    parted, known = [record([math.nan, 0.5])], [said(Check.VALUES), said(Check.TEMPERATURE)]
    found = search(parted, known, trainer=lambda: TrainerAudit("v1", "v1"), audit=lambda: [replace(WRONG, wrong=())])
    assert found.sentence == "by values"
    assert [finding.check for finding in found.findings[2:]] == [Check.WEIGHTS, Check.TRAINER_WEIGHTS]
    stray = search(parted, known, trainer=lambda: TrainerAudit("v1", "v2"))
    assert stray.cause is Cause.CORRUPT_WEIGHTS
    assert search(parted, known, audit=lambda: [WRONG]).cause is Cause.CORRUPT_WEIGHTS


def test_what_the_records_suspect_does_not_end_the_search() -> None:
    known = [said(Check.MEDIA, "suspicious"), said(Check.PROMPT), said(Check.VERSIONS)]
    found = search([record([0.5] * 4)], known, audit=lambda: [WRONG])
    assert (found.sentence, found.findings) == ("by prompt", tuple(known[:2]))


@pytest.mark.parametrize(("decoded", "temperature"), [(True, 1.0), (False, 1.0), (True, None)])
def test_what_the_engine_reported_is_checked_where_its_own_logits_are_at_hand(
    decoded: bool, temperature: float | None
) -> None:
    parted = [record([0.5, -0.5] * 4)]
    legs = Legs([], [], [], decoded={"a": parted[0].train_logprobs} if decoded else {})
    found = attribute(Case(parted, temperature=temperature), Experiments(legs=lambda: legs), BANDS, seconds=60)
    (reported,) = (finding for finding in found.findings if finding.check is Check.ENGINE_REPORTED)
    assert reported.result == ("explains" if decoded and temperature else "not_done")
    assert found.cause is (Cause.LOGPROB_POSTPROCESSING if decoded and temperature else Cause.UNKNOWN)


@pytest.mark.parametrize("side", ["trainer", "engine"])
def test_other_temperatures_are_tried_where_the_trainer_can_score_again(side: str) -> None:
    """The trainer's logits give at temperature 0.5 what a side posted; 1 was asked for."""
    own = -np.linspace(0.5, 4.0, 40)
    posted = SampleRecord("a", "text", 5, *((own, 2 * own) if side == "trainer" else (2 * own, own)))
    asked = list[float]()

    def rescore(at: float, names: Sequence[str] | None) -> dict[str, np.ndarray]:
        asked.append(at)
        return {"a": own / at}

    legs = Legs([], [], [], decoded={"a": own})
    experiments = Experiments(rescore=rescore, legs=lambda: legs)
    assert attribute(Case([posted], temperature=None), experiments, BANDS, seconds=60).cause is Cause.UNKNOWN
    asked.clear()
    found = attribute(Case([posted]), experiments, BANDS, seconds=60)
    assert found.cause is Cause.LOGPROB_POSTPROCESSING
    assert f"the {side} posted other logprobs than its own logits give at temperature 1" in found.sentence
    assert "they are those at temperature 0.5" in found.sentence
    assert len(asked) < 20
    assert found.findings[-1].numbers["fits"] == pytest.approx(0.5, rel=0.02)


def test_a_trainer_that_posts_raw_logprobs_is_told_the_temperature_that_was_asked_for() -> None:
    own = -np.linspace(0.5, 4.0, 40)
    posted = SampleRecord("a", "text", 5, own / 0.75, own)
    experiments = Experiments(rescore=lambda at, names: {"a": own / at})
    found = attribute(Case([posted], temperature=0.75), experiments, BANDS, seconds=60)
    assert "the trainer posted other logprobs than its own logits give at temperature 0.75: " in found.sentence
    assert "those at temperature 1, the raw ones" in found.sentence
    assert found.findings[-1].numbers["asked"] == 0.75


def test_a_case_has_only_the_tokens_that_count() -> None:
    experts = np.tile(np.array([0, 1], np.int16), (8, 1, 1))
    margins = np.zeros((8, 1), np.float32)
    records = [
        replace(record([0.5, 0.25, 0.125, 0.0], name), rollout_experts=experts, train_experts=experts, margins=margins)
        for name in "abc"
    ]
    step = PostedStep.of(StepColumns.of(records))
    counted = np.array([True, False, True, True, *[True] * 4, *[True] * 4])
    known = [said(Check.MEDIA)]
    case = Case.of(replace(step, counted=counted), records[:2][::-1], known)
    whole, cut = case.records
    assert (whole.sample, cut.sample, list(case.known)) == ("b", "a", known)
    assert whole is records[1]
    assert (cut.train_logprobs - cut.rollout_logprobs).tolist() == [0.5, 0.125, 0.0]
    assert (cut.rollout_experts, cut.train_experts, cut.margins) == (None, None, None)
    assert list(case.counted) == ["a"]
    assert case.temperature == 1.0
    values = {name: np.array([1.0, 2.0, 3.0, 4.0]) for name in "ab"}
    assert {name: of.tolist() for name, of in case.cut(values).items()} == {
        "a": [1.0, 3.0, 4.0],
        "b": [1.0, 2.0, 3.0, 4.0],
    }
    first = {name: of[:2] for name, of in values.items()}
    assert {name: of.tolist() for name, of in case.cut(first).items()} == {"a": [1.0], "b": [1.0, 2.0]}
    rescored = case.cutting(lambda at, names: {name: of * at for name, of in values.items()})(2.0, None)
    assert rescored["a"].tolist() == [2.0, 6.0, 8.0]


def test_a_case_without_samples_was_sampled_at_no_temperature() -> None:
    assert Case.of(PostedStep.of(StepColumns.of([])), [], ()).temperature is None


def test_nothing_is_found_in_a_step_that_is_ok() -> None:
    columns = StepColumns.of([record([0.01, -0.01] * 8, name) for name in "ab"])
    assert found_in(columns, PostedStep.of(columns), Yardstick.of("bfloat16")) == ()
