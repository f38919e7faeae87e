"""The search for the cause: proofs first, legs, float32, router, first module; and what happens when time is over."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.evidence import Audit, SampleEvidence, TensorSeen, WrongTensor
from omni_rl.consistency.attribution.legs import Legs, Reference
from omni_rl.consistency.attribution.search import Attribution, Experiments, attribute
from omni_rl.consistency.bands import NOISE
from omni_rl.consistency.localisation import ModuleDifference
from omni_rl.consistency.records import SampleRecord
from omni_rl.errors import EngineDeadError
from tests.consistency.policies import answers, noisy

FLOAT32 = NOISE["float32"]


def parted(kinds: Sequence[str] = ("text", "image"), by: float = 0.3) -> list[SampleEvidence]:
    """Samples of which those of `kinds` part, by differences of both signs."""
    rng = np.random.default_rng(7)
    found = []
    for answer in answers(7):
        moved = by * rng.standard_normal(len(answer.ids)) if answer.kind in kinds else 0.0
        found.append(answer.evidence(noisy(answer.logprobs(), "float32", 1) + moved))
    return found


def leg(samples: Sequence[SampleEvidence], *, apart: bool) -> list[SampleRecord]:
    """The samples' own difference, or noise."""
    if apart:
        return [sample.record for sample in samples]
    return [replace(s.record, rollout_logprobs=noisy(s.record.train_logprobs, "float32", 3)) for s in samples]


def legs(samples: Sequence[SampleEvidence], *apart: str) -> Legs:
    names = ("train_vs_prefill", "prefill_vs_decode", "batch_vs_alone", "cold")
    return Legs(**{name: leg(samples, apart=name in apart) for name in names})


def search(samples: Sequence[SampleEvidence], seconds: float = 60, **experiments: object) -> Attribution:
    return attribute(samples, Experiments(**experiments), FLOAT32, seconds=seconds)  # type: ignore[arg-type]


def test_another_version_is_stale_weights_and_names_both() -> None:
    samples = parted()
    samples[1] = replace(samples[1], sampled_under=("run/1/2/old",))
    found = search(samples)
    assert found.cause is Cause.STALE_WEIGHTS
    assert "run/1/2/old" in found.sentence
    assert "run/1/3/abc" in found.sentence
    assert found.findings[-1].samples == (samples[1].record.sample,)


@pytest.mark.parametrize(
    ("engine", "train", "says"),
    [("d1", "d2", "the trainer got another"), ("d2", "d1", "the engine got another"), ("d1", None, "did not get")],
)
def test_media_that_differ_are_named_with_the_side(engine: str | None, train: str | None, says: str) -> None:
    samples = parted()
    samples[2] = replace(samples[2], tensors=(TensorSeen("audio", 1, "input_audio_features", "d1", engine, train),))
    found = search(samples)
    assert found.cause is Cause.MEDIA_MISMATCH
    assert says in found.sentence
    assert "audio 1" in found.sentence
    assert found.findings[-1].modalities == ("audio",)


def test_other_prompt_ids_are_a_prompt_mismatch() -> None:
    samples = parted()
    samples[0] = replace(samples[0], train_prompt="p2")
    assert search(samples).cause is Cause.PROMPT_MISMATCH


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
    samples = parted()
    found = attribute(
        samples,
        Experiments(legs=lambda: legs(samples, "train_vs_prefill"), reference=lambda: Reference(0.02, 0.03, "image")),
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


def flipping(margin: float, left: float) -> SampleEvidence:
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
    sample = answer.evidence(rollout)
    return replace(
        sample,
        record=replace(sample.record, rollout_experts=experts, train_experts=other, margins=margins),
    )


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
    assert [entry["check"] for entry in wire[:3]] == ["versions", "media", "prompt"]
    assert wire[-1]["result"] == "explains"
    assert wire[-1]["mean"] > 0.1
    assert "tensors" not in wire[-1]
