"""The legs of a difference at the edges of what they explain, on answers whose differences are given."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.legs import (
    Legs,
    Reference,
    batch,
    decode,
    localisation,
    reference,
    router,
    train,
)
from omni_rl.consistency.attribution.packing import Packing, packing
from omni_rl.consistency.attribution.parting import apart, held, kinds_outside, outside, pairs
from omni_rl.consistency.bands import NOISE, Bands
from omni_rl.consistency.localisation import ModuleDifference
from omni_rl.consistency.records import SampleRecord

BANDS = Bands("bfloat16", mean=0.125, token=1.0, relative=0.05)


def record(d: Sequence[float], name: str = "a", kind: str = "text") -> SampleRecord:
    rollout = np.full(len(d), -16.0)
    return SampleRecord(name, kind, 5, rollout, rollout + np.array(d))


def leg(text: float, image: float = 0.0, tokens: int = 4) -> list[SampleRecord]:
    """An answer of each kind, all of whose tokens are that far apart."""
    return [record([text] * tokens, "a", "text"), record([image] * tokens, "b", "image")]


@pytest.mark.parametrize(
    ("found", "step", "expected"),
    [
        (0.125, math.nan, False),
        (0.126, math.nan, True),
        (math.nan, math.nan, True),
        (9.0, 0.125, False),  # a step within noise needs no explanation
        (0.126, 0.126, True),
        (0.125, 0.126, False),
        (0.29, 1.0, False),  # less than 0.3 of the step
        (0.3, 1.0, False),
        (0.31, 1.0, True),
        (0.59, 2.0, False),
        (0.61, 2.0, True),
        (math.nan, 1.0, True),
    ],
)
def test_a_leg_is_outside_if_it_is_more_than_noise_and_much_of_the_step(
    found: float, step: float, expected: bool
) -> None:
    assert outside(found, step, BANDS) is expected


def test_a_leg_is_as_far_apart_as_its_furthest_kind() -> None:
    assert apart(leg(0.25, 0.5), BANDS) == 0.5
    assert apart(leg(0.75, 0.5), BANDS) == 0.75
    assert math.isnan(apart(leg(math.nan, 0.5), BANDS))
    assert math.isnan(apart(leg(0.25, math.nan), BANDS))
    assert apart([], BANDS) == apart([record([])], BANDS) == 0.0
    assert kinds_outside(leg(0.125, 0.126), BANDS) == ("image",)
    assert kinds_outside(leg(math.nan, 0.5), BANDS) == ("text", "image")


def test_what_a_leg_holds_is_counted_answer_by_answer() -> None:
    samples = [record([0.5] * 4, "a"), record([0.25] * 24, "b"), record([4.0], "c")]
    # a holds 2 nats, b 6, c 4: the leg has a quarter of a's, and enough of b's; c is none of its answers.
    of_leg = [record([0.125] * 4, "a"), record([0.0, 0.25] * 12, "b"), record([9.0], "x")]
    assert held(of_leg, samples) == pytest.approx(6 / 8)
    assert held([record([0.16] * 4, "a"), *of_leg[1:]], samples) == 1.0
    assert held([record([9.0], "x")], samples) == 0.0
    assert held(of_leg, [record([0.0] * 4, "a")]) == 0.0


def test_two_computations_are_paired_where_both_have_the_answer() -> None:
    samples = [record([0.0], name) for name in "abc"]
    one, other = (
        {name: np.array([float(at)]) for name, at in zip(names, (-1, -2), strict=True)} for names in ("ab", "bc")
    )
    (found,) = pairs(samples, one, other)
    assert (found.sample, found.rollout_logprobs[0], found.train_logprobs[0]) == ("b", -2.0, -1.0)


def legs(
    decoded: Sequence[SampleRecord] = (),
    trained: Sequence[SampleRecord] = (),
    batched: Sequence[SampleRecord] = (),
    cold: Sequence[SampleRecord] = (),
    *,
    of_step: bool = True,
) -> Legs:
    return Legs(trained, decoded, batched, cold, {"a": np.zeros(4)} if of_step else {})


@pytest.mark.parametrize(
    ("other", "left", "of_step", "result"),
    [
        (0.42, 0.0, True, "explains"),  # it holds 1 of 1.42 nats a token, which is over 0.7
        (0.44, 0.0, True, "suspicious"),  # 1 of 1.44 is not
        (0.4, 0.39, True, "explains"),
        (0.4, 0.41, True, "suspicious"),  # more than 0.4 of the step is left
        (0.4, 0.0, False, "suspicious"),
        (0.4, math.nan, True, "suspicious"),
    ],
)
def test_decode_explains_what_it_holds_if_little_else_is_left(
    other: float, left: float, of_step: bool, result: str
) -> None:
    samples = leg(1.0, other)
    found = decode(legs(leg(0.5), leg(left), of_step=of_step), samples, 1.0, BANDS)
    assert (found.result, found.cause) == (result, Cause.DECODE_PREFILL)
    assert ("the state that it carries" in found.sentence) is (result == "explains")
    assert ("not all of the step's difference" in found.sentence) is (result == "suspicious")
    assert found.modalities == ("text",)
    share = 1.0 / (1.0 + other) if of_step else 0.0
    assert found.numbers["mean"] == 0.5
    assert found.numbers["held"] == pytest.approx(share)


def test_noise_may_be_left_of_a_small_step_that_decode_explains() -> None:
    for left, result in ((0.125, "explains"), (0.13, "suspicious")):
        assert decode(legs(leg(0.25), leg(left)), leg(0.26), 0.26, BANDS).result == result


@pytest.mark.parametrize(("left", "result"), [(0.79, "explains"), (0.81, "suspicious")])
def test_a_share_of_a_large_step_may_be_left_that_decode_explains(left: float, result: str) -> None:
    assert decode(legs(leg(1.0), leg(left)), leg(2.0), 2.0, BANDS).result == result


def test_decode_is_told_with_both_halves_of_its_answers() -> None:
    found = decode(legs([record([0.5, 1.0, 2.0]), record([0.5], "b"), record([], "c")]), leg(4.0), 4.0, BANDS)
    assert found.result == "clear"
    assert found.sentence == "decode and prefill differ by 1"
    assert found.numbers == {"mean": 1.0, "first_half_mean": 0.5, "second_half_mean": pytest.approx(3.5 / 3)}
    empty = decode(legs(), leg(4.0), 4.0, BANDS)
    assert empty.numbers == {"mean": 0.0, "first_half_mean": 0.0, "second_half_mean": 0.0}


@pytest.mark.parametrize(
    ("whole", "cold", "cause"),
    [
        (1.0, 0.31, Cause.STALE_CACHE),
        (1.0, 0.29, Cause.BATCH_VARIANCE),
        (0.5, 0.16, Cause.STALE_CACHE),
        (0.5, 0.14, Cause.BATCH_VARIANCE),
        (4.0, 1.25, Cause.STALE_CACHE),
        (4.0, 1.125, Cause.BATCH_VARIANCE),
        (1.0, None, Cause.BATCH_VARIANCE),
    ],
)
def test_a_batch_that_leaks_is_told_from_a_cache_that_is_stale(whole: float, cold: float | None, cause: Cause) -> None:
    """Caches that were dropped make 0.3 of what the batch does, or less."""
    dropped = [] if cold is None else leg(cold)
    found = batch(legs(batched=leg(0.0, whole), cold=dropped), whole, BANDS)
    assert (found.result, found.cause, found.modalities) == ("explains", cause, ("image",))
    assert found.numbers == pytest.approx({"mean": whole} | ({} if cold is None else {"cold_mean": cold}))
    clear = batch(legs(batched=leg(0.0, 0.125), cold=dropped), whole, BANDS)
    assert (clear.result, clear.sentence) == ("clear", "in a batch and alone differ by 0.12")


def test_a_trainer_that_parts_from_the_prefill_is_suspicious_of_the_kinds_that_part() -> None:
    found = train(legs(trained=leg(0.125, 0.5)), 1.0, BANDS)
    assert (found.result, found.numbers, found.modalities) == ("suspicious", {"mean": 0.5}, ("image",))
    assert found.sentence == "the trainer is 0.5 away from the engine's prefill, which agrees with itself"
    clear = train(legs(trained=leg(0.25)), 1.0, BANDS)
    assert (clear.result, clear.numbers, clear.modalities) == ("clear", {"mean": 0.25}, ())


@pytest.mark.parametrize(
    ("at", "step", "result", "says"),
    [
        ((0.1, 0.41), 1.0, "suspicious", "the engine is 0.41 away from float32, the other side 0.1"),
        ((0.41, 0.1), 1.0, "suspicious", "the trainer is 0.41 away from float32, the other side 0.1"),
        ((0.01, 0.126), 1.0, "suspicious", "the engine is 0.13 away"),
        ((0.01, 0.125), 0.26, "explains", "both sides lie within rounding of float32 (0.01 and 0.12): bfloat16"),
        ((0.01, 0.125), 0.28, "suspicious", "which is not the 0.28 of the step"),
        ((0.1, 0.39), 0.98, "explains", "both sides lie within rounding"),  # at most four times as far
        ((0.1, 0.39), 0.99, "suspicious", "which is not the 0.99 of the step"),
        ((0.125, 0.5), 1.25, "explains", "both sides lie within rounding"),
        ((0.126, 0.5), 1.0, "suspicious", "both sides are 0.13 or more away from float32"),
        ((0.01, math.inf), 1.0, "suspicious", "the engine is inf away"),
        ((math.inf, 0.01), 1.0, "suspicious", "the trainer is inf away"),
        ((0.01, math.nan), 1.0, "suspicious", "the engine is nan away"),
    ],
)
def test_which_side_is_far_from_float32_is_told(at: tuple[float, float], step: float, result: str, says: str) -> None:
    found = reference(Reference(*at, "image"), step, BANDS)
    assert found.result == result
    assert says in found.sentence
    assert found.cause is (Cause.ROUNDING if "rounding" in says or "of the step" in says else None)
    assert found.modalities == (() if found.cause else ("image",))
    assert [found.numbers["train_mean"], found.numbers["engine_mean"]] == pytest.approx(list(at), nan_ok=True)


def flipping(
    d: Sequence[float], margin: float, name: str = "a", at: int = 1, layer: int = 1, layers: int = 3
) -> SampleRecord:
    """An answer whose token number `at` was predicted where a layer chose other experts."""
    rollout = np.full(len(d), -16.0)
    experts = np.tile(np.array([0, 1], np.int16), (4 + len(d), layers, 1))
    other = experts.copy()
    other[4 + at, layer] = (0, 2)
    margins = np.full(experts.shape[:2], 0.5, np.float32)
    margins[4 + at, layer] = margin
    return SampleRecord(name, "text", 5, rollout, rollout + np.array(d), experts, other, margins)


def test_flips_at_ties_that_leave_nothing_explain_a_difference() -> None:
    d = [0.0, 2.5, *[0.0] * 10]
    found = router([record([0.0] * 4, "c"), flipping(d, 1e-3, "a"), flipping(d, 2e-3, "b", layer=2)], BANDS)
    assert (found.result, found.cause) == ("explains", Cause.ROUTER)
    assert (found.samples, found.layers) == (("a", "b"), ("moe.1", "moe.2"))
    assert found.sentence.startswith(
        "2 sequences flip at a tie of the router (margin at most 0.002), first in MoE layer 1; without them 0 is left"
    )
    assert found.numbers == pytest.approx(
        {
            "sequences_with_a_flip": 2,
            "mean_with": 5.0 / 28,
            "mean_without": 0.0,
            "flips_moe_1": 1.0,
            "flips_moe_2": 1.0,
            "widest_margin": 2e-3,
        }
    )
    alone = router([flipping(d, 1e-3)], BANDS)
    assert alone.sentence.startswith("1 sequence flips at a tie")


@pytest.mark.parametrize(
    ("d", "margin", "why"),
    [
        ([0.0, 2.5], 0.02, "no ties"),
        ([0.126, 2.5], 1e-3, "more than noise, a token of it by 0.13"),
        ([0.125, 2.5], 1e-3, ""),
        ([1.0, 2.5, *[0.0] * 10], 1e-3, ""),
        ([1.01, 2.5, *[0.0] * 10], 1e-3, "more than noise, a token of it by 1"),
        ([0.0, 2.5, *[0.0] * 18], 1e-3, "with it 0.12, which is noise"),
        ([0.0, 2.5, *[0.0] * 23], 1e-3, "with it 0.1, which is noise"),
        ([0.0, 2.5, *[0.0] * 17], 1e-3, ""),
    ],
)
def test_flips_explain_nothing_where_something_is_left_or_nothing_was_wrong(
    d: list[float], margin: float, why: str
) -> None:
    found = router([flipping(d, margin)], BANDS)
    assert found.result == ("suspicious" if why else "explains")
    if why:
        assert found.sentence.endswith(f" is left: {why}")
        assert (found.cause, found.layers) == (None, ("moe.1",))


@pytest.mark.parametrize(
    ("dtype", "margin", "mean", "token", "relative"),
    [("float32", 1e-7, 1e-5, 1e-4, 1e-4), ("bfloat16", 1e-3, 0.05, 0.4, 0.05)],
)
def test_noise_of_a_dtype_bounds_a_leg_a_token_and_a_module(
    dtype: str, margin: float, mean: float, token: float, relative: float
) -> None:
    bands = NOISE[dtype]
    assert [outside(share * mean, math.nan, bands) for share in (0.99, 1.01)] == [False, True]
    for share, result in ((0.99, "explains"), (1.01, "suspicious")):
        found = router([flipping([share * token, *[0.0] * 38, 2.5], margin, at=39)], bands)
        assert found.result == result
    modules = [ModuleDifference("norm", share * relative, 0, bands.of("norm")) for share in (0.99, 1.01)]
    assert [module.outside for module in modules] == [False, True]


def test_without_a_flip_the_router_is_clear() -> None:
    found = router([record([2.0] * 4)], BANDS)
    assert (found.result, found.sentence) == ("clear", "both sides chose the same experts everywhere")
    assert router([], BANDS).result == "clear"


def test_the_first_module_outside_its_band_is_named_with_its_row() -> None:
    modules = [
        ModuleDifference("vision.layers.0", 0.05, 3, 0.05),
        ModuleDifference("vision.layers.1", 0.25, 17, 0.05),
        ModuleDifference("layers.0", 0.5, 4, 0.05),
    ]
    found = localisation(modules, "image-3")
    assert (found.result, found.cause) == ("explains", Cause.KERNEL)
    assert found.sentence == (
        "sample image-3: vision.layers.1 is the first module that parts, by 0.25 of its output where 0.05 is noise, "
        "most at row 17"
    )
    assert (found.numbers, found.samples, found.layers) == ({"row": 17}, ("image-3",), ("vision.layers.1",))
    assert found.modalities == ("vision",)
    assert found.modules == {module.module: (module.relative, 0.05) for module in modules}


@pytest.mark.parametrize(
    ("module", "cause", "modalities"),
    [
        ("sound.features", Cause.MEDIA_MISMATCH, ("sound",)),
        ("sound.layers.0", Cause.KERNEL, ("sound",)),
        ("embeddings", Cause.PROMPT_MISMATCH, ()),
        ("attention.0", Cause.KERNEL, ()),
        ("norm", Cause.KERNEL, ()),
    ],
)
def test_a_module_that_parts_says_what_it_takes_in_or_is_wrong_itself(
    module: str, cause: Cause, modalities: tuple[str, ...]
) -> None:
    found = localisation([ModuleDifference(module, 0.25, 1, 0.05)], "a")
    assert (found.cause, found.modalities) == (cause, modalities)


@pytest.mark.parametrize(("count", "said"), [(1, "all 1 module agrees"), (2, "all 2 modules agree")])
def test_modules_that_all_agree_are_clear(count: int, said: str) -> None:
    found = localisation([ModuleDifference(f"layers.{n}", 0.01, 0, 0.05) for n in range(count)], "a")
    assert (found.result, found.sentence) == ("clear", f"{said} on sample a")
    assert (found.samples, len(found.modules)) == (("a",), count)


def test_a_pack_that_leaks_is_told_with_its_kinds() -> None:
    leaking = packing(Packing(leg(0.0, 0.5), leg(0.0, 0.125)), 1.0, BANDS)
    assert (leaking.result, leaking.cause, leaking.modalities) == ("explains", Cause.TRAIN_PACKING, ("image",))
    assert leaking.numbers == {"mean": 0.5, "again_mean": 0.125}
    chance = packing(Packing(leg(0.0), leg(0.5)), 1.0, BANDS)
    assert (chance.result, chance.cause, chance.modalities) == ("explains", Cause.KERNEL, ("text",))
    clear = packing(Packing(leg(0.25), leg(0.25)), 1.0, BANDS)
    assert (clear.result, clear.sentence) == (
        "clear",
        "the trainer scores an answer the same in a pack and alone, up to 0.25",
    )
