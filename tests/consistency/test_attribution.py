"""The search for the cause: proofs first, legs, float32, router, first module; and what happens when time is over."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.case import Case, found_in
from omni_rl.consistency.attribution.legs import Legs, Reference
from omni_rl.consistency.attribution.packing import Packing
from omni_rl.consistency.attribution.search import Attribution, Experiments, attribute
from omni_rl.consistency.bands import NOISE, noise_of
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.evidence import Audit, Check, Finding, Result, TrainerAudit, WrongTensor
from omni_rl.consistency.localisation import ModuleDifference
from omni_rl.consistency.posted.step import PostedStep
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.errors import EngineDeadError
from tests.cases.world import World
from tests.consistency.policies import answers, noisy

FLOAT32 = NOISE["float32"]


def parted(kinds: Sequence[str] = ("text", "image"), by: float = 0.3) -> list[SampleRecord]:
    """Samples of which those of `kinds` part, by differences of both signs."""
    rng = np.random.default_rng(7)
    found = []
    for answer in answers(7):
        moved = by * rng.standard_normal(len(answer.ids)) if answer.kind in kinds else 0.0
        found.append(answer.record(noisy(answer.logprobs(), "float32", 1) + moved))
    return found


def leg(samples: Sequence[SampleRecord], *, apart: bool) -> list[SampleRecord]:
    """The samples' own difference, or noise."""
    if apart:
        return list(samples)
    return [replace(s, rollout_logprobs=noisy(s.train_logprobs, "float32", 3)) for s in samples]


def legs(samples: Sequence[SampleRecord], *apart: str) -> Legs:
    """Of the step's own answers; the engine reported what its logits give."""
    names = ("train_vs_prefill", "prefill_vs_decode", "batch_vs_alone", "cold")
    decoded = {sample.sample: sample.rollout_logprobs for sample in samples}
    train, decode, batch, cold = (leg(samples, apart=name in apart) for name in names)
    return Legs(train, decode, batch, cold, decoded)


def search(samples: Sequence[SampleRecord], seconds: float = 60, **experiments: object) -> Attribution:
    return attribute(Case(samples), Experiments(**experiments), FLOAT32, seconds=seconds)  # type: ignore[arg-type]


def said(check: Check, cause: Cause, result: Result = "explains") -> Finding:
    return Finding(check, result, f"the records show {cause}", cause)


def test_what_the_seal_found_is_taken_and_nothing_is_asked() -> None:
    def never() -> list[Audit]:
        raise AssertionError("the records prove it")

    clear = Finding(Check.TEMPERATURE, "clear", "no other temperature fits")
    known = said(Check.MEDIA, Cause.MEDIA_MISMATCH)
    found = attribute(Case(parted(), [clear, known]), Experiments(audit=never), FLOAT32, seconds=60)
    assert (found.cause, found.sentence, found.findings) == (Cause.MEDIA_MISMATCH, known.sentence, (clear, known))


def test_a_pattern_of_the_records_is_the_cause_where_no_experiment_knows_better() -> None:
    samples = parted()
    case = Case(samples, [said(Check.TEMPERATURE, Cause.LOGPROB_POSTPROCESSING)])
    alone = attribute(case, Experiments(), FLOAT32, seconds=60)
    assert alone.cause is Cause.LOGPROB_POSTPROCESSING
    wrong = [Audit("rollout-0", "run/1/3/abc", 8, (WrongTensor("lm_head.weight", 8, stale=False),))]
    asked = attribute(case, Experiments(audit=lambda: wrong), FLOAT32, seconds=60)
    assert asked.cause is Cause.CORRUPT_WEIGHTS
    assert [finding.result for finding in asked.findings] == ["suspicious", "explains"]


def test_values_that_are_no_numbers_end_the_search_once_the_bytes_are_read() -> None:
    first, second = said(Check.VALUES, Cause.NONFINITE_LOGPROBS), said(Check.GROWTH, Cause.STALE_WEIGHTS)
    case = Case(parted(), [first, second])
    equal, wrong = (
        [Audit("rollout-0", "run/1/3/abc", 8, tensors)]
        for tensors in ((), (WrongTensor("lm_head.weight", 8, stale=False),))
    )

    def never() -> Packing:
        raise AssertionError("the records prove it")

    proven = attribute(case, Experiments(audit=lambda: equal, packing=never), FLOAT32, seconds=60)
    assert proven.cause is Cause.NONFINITE_LOGPROBS
    other = attribute(case, Experiments(audit=lambda: wrong, packing=never), FLOAT32, seconds=60)
    assert other.cause is Cause.CORRUPT_WEIGHTS


@pytest.mark.parametrize(
    ("stale", "cause", "says"),
    [
        ((True, True), Cause.STALE_WEIGHTS, "still holds the version before"),
        ((True, False), Cause.CORRUPT_WEIGHTS, "nobody sent"),
    ],
)
def test_the_tensors_that_a_replica_holds_wrong_are_named(stale: tuple[bool, ...], cause: Cause, says: str) -> None:
    wrong = tuple(WrongTensor(f"layers.{n}.mixer.D", 8, old) for n, old in enumerate(stale))
    audits = [Audit("rollout-0", "run/1/3/abc", 1000), Audit("rollout-1", "run/1/3/abc", 1000, wrong)]
    found = search(parted(), audit=lambda: audits)
    assert found.cause is cause
    assert says in found.sentence
    assert "rollout-1" in found.sentence
    assert found.findings[-1].tensors == ("layers.0.mixer.D", "layers.1.mixer.D")


@pytest.mark.parametrize(
    ("apart", "cause"),
    [
        (("prefill_vs_decode",), Cause.DECODE_PREFILL),
        (("batch_vs_alone", "cold"), Cause.STALE_CACHE),
        (("batch_vs_alone",), Cause.BATCH_VARIANCE),
    ],
)
def test_a_leg_that_is_apart_names_the_cause(apart: tuple[str, ...], cause: Cause) -> None:
    samples = parted()
    assert search(samples, legs=lambda: legs(samples, *apart)).cause is cause


def test_a_leg_apart_in_one_kind_is_not_drowned_by_the_others() -> None:
    samples = parted(("image",))
    found = search(samples, legs=lambda: legs(samples, "batch_vs_alone", "cold"))
    assert found.cause is Cause.STALE_CACHE
    assert found.findings[-1].modalities == ("image",)


def test_both_sides_within_rounding_of_float32_is_rounding() -> None:
    samples = parted(by=0.09)
    found = attribute(
        Case(samples),
        Experiments(legs=lambda: legs(samples, "train_vs_prefill"), reference=lambda: Reference(0.03, 0.04, "image")),
        NOISE["bfloat16"],
        seconds=60,
    )
    assert found.cause is Cause.ROUNDING


def test_the_side_that_computes_something_else_and_its_first_module_are_named() -> None:
    samples = parted()
    modules = [
        ModuleDifference("embeddings", 1e-7, 0, 1e-4),
        ModuleDifference("layers.1", 0.2, 17, 1e-4),
        ModuleDifference("layers.2", 0.9, 17, 1e-4),
    ]
    found = search(
        samples,
        legs=lambda: legs(samples, "train_vs_prefill"),
        reference=lambda: Reference(1e-7, 0.3, "text"),
        localise=lambda sample: (sample, modules),
    )
    assert found.cause is Cause.KERNEL
    assert "layers.1 is the first module" in found.sentence
    assert any("the engine computes something else" in finding.sentence for finding in found.findings)
    wire = found.findings[-1].as_dict()
    assert wire["modules"] == {"embeddings": [1e-7, 1e-4], "layers.1": [0.2, 1e-4], "layers.2": [0.9, 1e-4]}


@pytest.mark.parametrize(
    ("before", "module", "cause"),
    [
        ((), "vision.patches", Cause.MEDIA_MISMATCH),
        (("vision.patches", "vision_projector"), "embeddings", Cause.MEDIA_MISMATCH),
        ((), "embeddings", Cause.PROMPT_MISMATCH),
        (("vision.patches",), "vision_projector", Cause.KERNEL),
    ],
)
def test_what_parts_before_the_first_layer_is_an_input(before: tuple[str, ...], module: str, cause: Cause) -> None:
    modules = [*(ModuleDifference(name, 0.0, 0, 1e-4) for name in before), ModuleDifference(module, 0.5, 0, 1e-4)]
    assert search(parted(), localise=lambda sample: (sample, modules)).cause is cause


def flipping(margin: float, left: float) -> SampleRecord:
    """A sequence with a flip at its 20th token in MoE layer 1, from which on it parts; `left` before that."""
    (answer,) = answers(11, count=1)
    positions = 5 + len(answer.ids) - 1
    experts = np.tile(np.array([0, 1], np.int16), (positions, 2, 1))
    other = experts.copy()
    other[5 + 19, 1] = (0, 2)
    margins = np.full((positions, 2), 0.1, np.float32)
    margins[5 + 19, 1] = margin
    rollout = answer.logprobs() + left
    rollout[20:] += 0.2 * np.random.default_rng(0).standard_normal(len(rollout) - 20)
    sample = answer.record(rollout)
    return replace(sample, rollout_experts=experts, train_experts=other, margins=margins)


def test_a_tie_of_the_router_explains_what_follows_it() -> None:
    found = search([flipping(margin=1e-7, left=0.0)])
    assert found.cause is Cause.ROUTER
    assert "MoE layer 1" in found.sentence


@pytest.mark.parametrize(("margin", "left", "says"), [(0.05, 0.0, "no ties"), (1e-7, 1e-3, "more than noise")])
def test_a_flip_that_is_no_tie_or_leaves_something_explains_nothing(margin: float, left: float, says: str) -> None:
    found = search([flipping(margin, left)])
    assert found.cause is Cause.UNKNOWN
    assert says in found.sentence


def test_when_the_time_is_over_the_cause_is_unknown_and_what_was_not_done_is_told() -> None:
    never = threading.Event()
    samples = parted()

    def slow() -> Legs:
        never.wait()
        return legs(samples, "prefill_vs_decode")

    found = search(samples, seconds=0.05, legs=slow, localise=lambda sample: (sample, []))
    never.set()
    assert found.cause is Cause.UNKNOWN
    assert "train_vs_prefill (abandoned" in found.sentence
    assert "localisation (no time was left for it)" in found.sentence


def test_an_experiment_that_fails_is_told_and_the_search_goes_on() -> None:
    def dead() -> list[Audit]:
        raise EngineDeadError("the engine cannot be used")

    samples = parted()
    found = search(samples, audit=dead, legs=lambda: legs(samples, "prefill_vs_decode"))
    assert found.cause is Cause.DECODE_PREFILL
    assert any("the engine cannot be used" in finding.sentence for finding in found.findings)


def test_evidence_on_the_wire_has_every_check_with_its_numbers() -> None:
    samples = parted()
    found = search(samples, legs=lambda: legs(samples, "prefill_vs_decode"))
    wire = [finding.as_dict() for finding in found.findings]
    assert [entry["check"] for entry in wire[:3]] == ["weights", "trainer_weights", "packed_vs_alone"]
    assert wire[-1]["result"] == "explains"
    assert wire[-1]["mean"] > 0.1
    assert "tensors" not in wire[-1]
    assert [Finding.of_dict(entry) for entry in wire] == list(found.findings)


def test_a_trainer_that_was_changed_past_its_updates_is_named() -> None:
    clean = search(parted(), trainer=lambda: TrainerAudit("run/1/3/abc", "run/1/3/abc"))
    assert clean.cause is Cause.UNKNOWN
    stray = search(parted(), trainer=lambda: TrainerAudit("run/1/3/abc", "run/1/3/def", ("layers.0.mixer.D",)))
    assert stray.cause is Cause.CORRUPT_WEIGHTS
    assert (
        "the trainer says that it scores with run/1/3/abc and holds run/1/3/def in layers.0.mixer.D" in stray.sentence
    )


@pytest.mark.parametrize(
    ("packed", "again", "cause"),
    [(True, False, Cause.TRAIN_PACKING), (True, True, Cause.KERNEL), (False, False, Cause.UNKNOWN)],
)
def test_what_leaks_in_a_pack_is_told_from_what_chance_makes(packed: bool, again: bool, cause: Cause) -> None:
    samples = parted()
    found = Packing(leg(samples, apart=packed), leg(samples, apart=again))
    assert search(samples, packing=lambda: found).cause is cause


def test_decode_explains_only_what_it_reproduces_answer_by_answer() -> None:
    """A leg of the same size in other answers, or of answers that are not the step's, is a suspicion; so is one beside
    a trainer that the prefill does not agree with either."""
    samples = parted(("text",))
    other = [sample for sample in parted(("image",)) if sample.kind == "image"]
    clean = legs(samples)
    elsewhere = replace(clean, prefill_vs_decode=[*leg(samples, apart=False)[::2], *other])
    assert search(samples, legs=lambda: elsewhere).cause is Cause.UNKNOWN
    both = legs(samples, "prefill_vs_decode", "train_vs_prefill")
    assert search(samples, legs=lambda: both).cause is Cause.UNKNOWN
    not_own = replace(legs(samples, "prefill_vs_decode"), decoded={})
    assert search(samples, legs=lambda: not_own).cause is Cause.UNKNOWN


def test_rounding_now_does_not_explain_a_step_that_was_further_apart() -> None:
    samples = parted()
    now = search(samples, reference=lambda: Reference(3e-7, 4e-7, "text"))
    assert now.cause is Cause.UNKNOWN
    assert "which is not the" in now.sentence


def test_no_module_is_blamed_where_the_trainer_agrees_with_the_engines_prefill() -> None:
    samples = parted()
    modules = [ModuleDifference("layers.1", 0.2, 17, 1e-4)]
    found = search(samples, legs=lambda: legs(samples), localise=lambda sample: (sample, modules))
    assert found.cause is Cause.UNKNOWN
    assert search(samples, localise=lambda sample: (sample, modules)).cause is Cause.KERNEL


def test_of_batch_invariant_policies_a_leg_is_noise_only_where_the_bits_are_the_same() -> None:
    """A decode state in bfloat16 makes 0.007, which two kernels of that dtype may be apart, and these may not."""
    samples = parted(by=0.01)
    given = legs(samples, "prefill_vs_decode")
    causes = {
        numerics: attribute(
            Case(samples), Experiments(legs=lambda: given), noise_of("bfloat16", numerics), seconds=60
        ).cause
        for numerics in ("matched", "batch_invariant")
    }
    assert causes == {"matched": Cause.UNKNOWN, "batch_invariant": Cause.DECODE_PREFILL}


@pytest.mark.parametrize(("sampled_at", "expected"), [((0.7, 0.7), 0.7), ((0.7, 1.0), None)])
def test_a_case_has_the_temperature_that_all_of_its_samples_have(
    sampled_at: tuple[float, float], expected: float | None
) -> None:
    samples = parted()[:2]
    step = replace(PostedStep.of(StepColumns.of(samples)), temperatures=np.array(sampled_at))
    assert Case.of(step, samples, ()).temperature == expected


def test_lost_support_is_found_in_a_step_that_no_service_has_sealed() -> None:
    world = World(59, 32, 64, 64)
    engine = np.where(np.isfinite(world.cut(top_p=0.9)), world.engine(world.logits), -np.inf)
    ids = world.sample(engine)
    sides = zip(world.logprobs(engine, ids), world.logprobs(world.logits, ids), strict=True)
    columns = StepColumns.of([SampleRecord(f"a{n}", "text", 3, *both) for n, both in enumerate(sides)])
    found = found_in(columns, PostedStep.of(columns), Yardstick.of("bfloat16"))
    assert found[-1].cause is Cause.SAMPLING_SUPPORT


@pytest.mark.parametrize(("temperature", "expected"), [(0.7, [(0.7, None)]), (None, [])])
def test_the_trainers_own_logprobs_are_computed_at_the_temperature_that_all_samples_have(
    temperature: float | None, expected: list[tuple[float, None]]
) -> None:
    samples, asked = parted(), list[tuple[float, Sequence[str] | None]]()

    def rescore(at: float, names: Sequence[str] | None) -> dict[str, np.ndarray]:
        asked.append((at, names))
        return {sample.sample: sample.train_logprobs for sample in samples}

    attribute(Case(samples, temperature=temperature), Experiments(rescore=rescore), FLOAT32, seconds=60)
    assert asked == expected
