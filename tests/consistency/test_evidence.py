"""Findings in words and as JSON, noise by dtype, and the limits and ties that a dtype is judged by."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.proofs import trainer_weights, weights
from omni_rl.consistency.bands import NOISE, Bands, calibrated, noise_of
from omni_rl.consistency.dtypes import Dtype, coarser
from omni_rl.consistency.evidence import (
    Audit,
    Check,
    Finding,
    TensorSeen,
    TrainerAudit,
    WrongTensor,
    mean_abs,
    named,
)
from omni_rl.consistency.left_out import TIES
from omni_rl.consistency.limits import limits_for
from omni_rl.consistency.localisation import ModuleDifference, first_outside, flips_by_layer, profile
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.shown import mean_abs as shown_mean
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.errors import ConfigError


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("", ""),
        ("a", "a"),
        ("abc", "a, b, c"),
        ("abcd", "a, b, c and 1 more"),
        ("abcdef", "a, b, c and 3 more"),
    ],
)
def test_three_names_are_told_and_how_many_more_there_are(names: str, said: str) -> None:
    assert named(names) == said


def test_the_mean_of_nothing_is_zero_and_nan_is_not_dropped() -> None:
    assert mean_abs(np.empty(0)) == 0.0
    assert mean_abs(np.array([-3.0, 1.0])) == 2.0
    assert math.isnan(mean_abs(np.array([1.0, math.nan])))


@pytest.mark.parametrize(
    ("rendered", "engine", "train", "agreed"),
    [
        ("r", "r", "r", True),
        (None, "r", "r", True),
        ("other", "r", "r", False),
        ("r", "r", "other", False),
        (None, "r", "other", False),
        ("r", "r", None, False),
    ],
)
def test_a_tensor_agrees_where_both_sides_have_what_was_rendered(
    rendered: str | None, engine: str | None, train: str | None, agreed: bool
) -> None:
    assert TensorSeen("image", 0, "pixel_values", rendered, engine, train).agreed is agreed


def test_a_finding_is_its_own_json_without_what_is_empty() -> None:
    bare = Finding(Check.MEDIA, "clear", "all agree")
    assert bare.as_dict() == {"check": "media", "result": "clear", "sentence": "all agree"}
    whole = Finding(
        Check.LOCALISATION,
        "explains",
        "a module parts",
        Cause.KERNEL,
        {"row": 0.0, "count": 3},
        tensors=("lm_head",),
        samples=("a", "b"),
        layers=("layers.1",),
        modalities=("image",),
        modules={"layers.1": (0.123456, 1e-4)},
    )
    assert whole.as_dict() == {
        "check": "localisation",
        "result": "explains",
        "sentence": "a module parts",
        "cause": "kernel",
        "row": 0.0,
        "count": 3.0,
        "tensors": ["lm_head"],
        "samples": ["a", "b"],
        "layers": ["layers.1"],
        "modalities": ["image"],
        "modules": {"layers.1": [0.1235, 1e-4]},
    }
    back = Finding.of_dict(whole.as_dict())
    assert (back.cause, back.numbers, back.tensors) == (Cause.KERNEL, {"row": 0.0, "count": 3.0}, ("lm_head",))
    assert (back.samples, back.layers, back.modalities) == (("a", "b"), ("layers.1",), ("image",))
    assert back.modules == {"layers.1": (0.1235, 1e-4)}
    assert Finding.of_dict(bare.as_dict()) == bare


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("float32", None, "float32"),
        ("bfloat16", "float32", "bfloat16"),
        ("float32", "float16", "float16"),
        ("fp8", "bfloat16", "fp8"),
        ("float16", "bfloat16", "bfloat16"),
    ],
)
def test_two_sides_are_judged_by_the_coarser_dtype(one: Dtype, other: Dtype | None, expected: str) -> None:
    assert coarser(one, other) == expected


def test_noise_is_that_of_the_dtype_unless_numerics_promise_more() -> None:
    wide, tight = NOISE["bfloat16"], NOISE["float32"]
    assert noise_of("bfloat16", "reference") == wide
    matched, same = noise_of("bfloat16", "matched"), noise_of("bfloat16", "batch_invariant")
    assert (matched.mean, matched.token, matched.relative) == (wide.mean, wide.token, 0.0)
    assert (same.mean, same.token, same.relative) == (tight.mean, tight.token, 0.0)
    assert matched.dtype == same.dtype == "bfloat16"


def test_a_modules_band_is_four_times_its_widest_clean_run_and_a_tenth_of_the_noise_at_least() -> None:
    noise = Bands("bfloat16", 0.05, 0.4, 0.05)
    found = calibrated(noise, [{"a": 0.01, "b": 0.0001}, {"a": 0.03, "c": 0.002}], "digest")
    assert found.modules == {"a": pytest.approx(0.12), "b": pytest.approx(0.005), "c": pytest.approx(0.008)}
    assert [found.of(module) for module in ("a", "d")] == [pytest.approx(0.12), 0.05]
    assert (found.dtype, found.mean, found.token, found.relative, found.checkpoint) == (
        "bfloat16",
        0.05,
        0.4,
        0.05,
        "digest",
    )


@pytest.mark.parametrize("text", [None, "no JSON", "[1]", '{"dtype": "float32"}', '{"size": 3}'])
def test_a_file_without_bands_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "bands.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"bands\.json holds no noise bands .*; calibrate them again"):
        Bands.load(path, "digest")


def test_bands_of_other_weights_are_told_by_both_digests(tmp_path: Path) -> None:
    calibrated(NOISE["float32"], [], "0123456789abcdef").save(tmp_path / "bands.json")
    with pytest.raises(
        ConfigError, match="calibrated for weights 0123456789ab, these are fedcba987654; calibrate again"
    ):
        Bands.load(tmp_path / "bands.json", "fedcba9876543210")


def test_a_yardstick_has_the_limits_and_ties_of_its_dtype_and_a_runs_own() -> None:
    plain = Yardstick.of("bfloat16")
    assert (plain.limits, plain.ties) == (limits_for("bfloat16"), TIES["bfloat16"])
    changes = {"text": {"gen_kl_error": {"warn": 1.0, "mask": 2.0, "pause": 3.0}}}
    own = Yardstick.of("bfloat16", changes, "nothing")
    assert own.limits == limits_for("bfloat16", changes)
    assert (own.ties.leave_out, own.ties.margin) == ("nothing", TIES["bfloat16"].margin)


def test_a_kind_without_tokens_has_no_mean_to_show() -> None:
    assert shown_mean({"tokens": 0, "logprob_abs_diff_mean": None}) == "no tokens"
    assert shown_mean({"tokens": 1, "logprob_abs_diff_mean": 0.0125}) == "mean |d| 1.25e-02"


def audit(replica: str, *wrong: WrongTensor, elements: int = 8) -> Audit:
    return Audit(replica, "run/1/3/ab", elements, wrong)


def test_what_replicas_hold_is_told_of_the_first_that_is_wrong() -> None:
    clear = weights([audit("r0"), audit("r1", elements=5)])
    assert clear.sentence == "all 13 elements of 2 replicas are those of the version they serve"
    assert (clear.result, clear.numbers) == ("clear", {"elements": 13})
    one = weights([audit("r0", elements=1)])
    assert one.sentence == "all 1 element of 1 replica is that of the version they serve"
    wrong = [WrongTensor(f"t{n}", n + 1, stale=n > 0) for n in range(4)]
    found = weights([audit("r0"), audit("r1", *wrong), audit("r2", wrong[1])])
    assert (found.result, found.cause) == ("explains", Cause.CORRUPT_WEIGHTS)
    assert found.sentence == (
        "replica r1 serves run/1/3/ab and holds 10 elements that nobody sent in t0, t1, t2 and 1 more"
    )
    assert found.numbers == {"elements_wrong": 10, "elements": 8, "tensors_wrong": 4, "replicas": 2}
    assert found.tensors == ("t0", "t1", "t2", "t3")
    stale = weights([audit("r0", *wrong[1:])])
    assert (stale.cause, "still holds the version before in t1, t2, t3" in stale.sentence) == (
        Cause.STALE_WEIGHTS,
        True,
    )


@pytest.mark.parametrize(("tensors", "numbers", "where"), [((), {}, ""), (("t0",), {"tensors_wrong": 1}, " in t0")])
def test_a_trainer_that_holds_other_weights_is_told_with_their_names_if_known(
    tensors: tuple[str, ...], numbers: dict[str, float], where: str
) -> None:
    found = trainer_weights(TrainerAudit("run/1/3/ab", "run/1/3/cd", tensors))
    assert (found.result, found.cause, found.numbers, found.tensors) == (
        "explains",
        Cause.CORRUPT_WEIGHTS,
        numbers,
        tensors,
    )
    assert f"scores with run/1/3/ab and holds run/1/3/cd{where}: its weights were changed" in found.sentence


def rows(*values: Sequence[float]) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("engine", "train", "relative", "row"),
    [
        (rows((3, 4), (0, 0)), rows((3, 4), (0, 1)), 0.2, 1),
        (rows((3, 4), (0, 0)), rows((0, 4), (0, 4)), 1.0, 1),
        (rows((0, 0), (0, 0)), rows((0, 0), (0, 0)), 0.0, 0),
        (rows((0, 0), (0, 0)), rows((0, 0), (0, 2)), 1.0, 1),
        (rows((0, 0), (math.inf, 0)), rows((0, 0), (0, 2)), math.inf, 1),
        (rows((0, 0), (0, 1)), rows((0, 0), (0, math.nan)), math.inf, 1),
        (np.empty((0, 2), np.float32), np.empty((0, 2), np.float32), 0.0, 0),
    ],
)
def test_a_modules_difference_is_relative_to_the_engines_norm(
    engine: np.ndarray, train: np.ndarray, relative: float, row: int
) -> None:
    (found,) = profile({"ours alone": engine, "m": engine}, {"m": train, "theirs alone": train}, NOISE["float32"])
    assert (found.module, found.row) == ("m", row)
    assert found.relative == pytest.approx(relative)
    assert found.band == NOISE["float32"].relative


def test_a_module_at_its_band_is_inside_and_nan_is_not() -> None:
    modules = [ModuleDifference(name, at, 0, 0.5) for name, at in (("a", 0.4), ("b", 0.5), ("c", math.nan), ("d", 0.6))]
    assert [module.outside for module in modules] == [False, False, True, True]
    assert first_outside(modules) == modules[2]
    assert first_outside(modules[:2]) is None


def test_flips_of_several_sequences_are_counted_together() -> None:
    experts = np.tile(np.array([0, 1], np.int16), (4, 3, 1))
    other = experts.copy()
    other[1, 2] = other[2, 2] = other[3, 0] = (0, 2)
    logprobs, margins = np.zeros(2), np.zeros((4, 3), np.float32)
    flipped = SampleRecord("a", "text", 3, logprobs, logprobs, experts, other, margins)
    bare = SampleRecord("b", "text", 3, logprobs, logprobs)
    assert flips_by_layer([flipped, bare, flipped]) == {0: 2, 2: 4}
    assert flips_by_layer([bare]) == {}
