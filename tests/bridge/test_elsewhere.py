"""Engines whose weights are another trainer's: proven, judged by its own scores, and never called stale."""

import math

import numpy as np
import pytest

from omni_rl.bridge.elsewhere import Elsewhere, check_elsewhere
from omni_rl.bridge.posted import of_records
from omni_rl.bridge.seam import CheckRequest
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.bands import NOISE
from omni_rl.consistency.evidence import Audit, Check, Finding, WrongTensor
from omni_rl.ledger.records import StepRecords
from omni_rl.sync.manifest import Manifest, Origin, arrange
from omni_rl.sync.nonfinite import NonFinite

OURS = "up-1/1/3/0123456789abcdef"
BANDS = NOISE["float32"]


def manifest(origin: Origin | None, nonfinite: tuple[NonFinite, ...] = ()) -> Manifest:
    checksums = {"a": "0" * 48}
    places = arrange({"a": ("float32", (2,))})
    return Manifest.seal(places, checksums, run="up-1", attempt=1, number=12, origin=origin, nonfinite=nonfinite)


def theirs() -> Elsewhere:
    found = Elsewhere.of(manifest("published"), OURS)
    assert found is not None
    return found


@pytest.mark.parametrize("origin", ["trainer", "checkpoint", None])
def test_what_our_trainer_had_or_began_with_may_be_stale(origin: Origin | None) -> None:
    assert Elsewhere.of(manifest(origin), OURS) is None


@pytest.mark.parametrize("origin", ["published", "directory"])
def test_what_came_from_elsewhere_is_not_unless_our_trainer_has_the_same(origin: Origin) -> None:
    served = manifest(origin)
    assert Elsewhere.of(served, OURS) is not None
    same = f"up-1/1/0/{served.version.digest[:16]}"
    assert Elsewhere.of(served, same) is None


def test_the_bytes_are_proven_and_nothing_is_compared() -> None:
    audit = Audit("rollout-0", theirs().version, 1601919)
    found = check_elsewhere(theirs(), CheckRequest(), lambda: [audit], None, BANDS)
    assert (found.compared, found.figures, found.cause) == (False, {}, None)
    assert [entry["sentence"] for entry in found.evidence] == [
        "all 1601919 elements of 1 replica are those of the version they serve"
    ]
    assert f"the engines serve {theirs().version}, which was published" in found.sentence
    assert "agreement is measured where their own trainer posts its scores" in found.sentence
    assert "stale" not in found.sentence


def test_what_is_not_finite_and_was_allowed_is_told() -> None:
    served = Elsewhere.of(manifest("published", (NonFinite("a", 1, 0, 2),)), OURS)
    assert "they hold what is no finite number (a: 1 NaN of 2 elements)" in str(served)


def test_wrong_bytes_are_named() -> None:
    audit = Audit("rollout-0", theirs().version, 8, (WrongTensor("layers.3.A_log", 2, stale=False),))
    found = check_elsewhere(theirs(), CheckRequest(), lambda: [audit], None, BANDS)
    assert found.cause is Cause.CORRUPT_WEIGHTS
    assert "layers.3.A_log" in found.sentence


@pytest.mark.parametrize(("scored", "cause"), [("served", Cause.UNKNOWN), (OURS, Cause.STALE_WEIGHTS)])
def test_a_posted_step_is_judged_by_its_own_figures(scored: str, cause: Cause) -> None:
    """Where the seal found nothing, nothing is made up; what it found is said, with where the weights came from."""
    version = theirs().version
    rollout = np.array([-1.0, -2.0, -0.5])
    record = {
        "sample": "a",
        "prompt_tokens": 4,
        "rollout_logprobs": rollout.tolist(),
        "train_logprobs": (rollout + np.array([1e-7, -1e-7, 0.0])).tolist(),
        "version_spans": [{"version": version, "start": 0, "end": 3, "mixed_state": False}],
        "train_version": version if scored == "served" else scored,
    }
    figures = {"overall": {"tokens": 3.0, "logprob_abs_diff_mean": math.nan}}
    behind = Finding(Check.VERSIONS, "explains", "sampled under other weights", Cause.STALE_WEIGHTS)
    known = [] if scored == "served" else [behind]
    step = of_records([StepRecords.of([record])], ["a"], "float32", known, figures)
    audit = Audit("rollout-0", version, 8)
    found = check_elsewhere(theirs(), CheckRequest(run="theirs", attempt=1, step=4), lambda: [audit], step, BANDS)
    assert (found.figures, found.compared, found.cause) == (figures, False, cause)
    assert str(theirs()) in found.sentence
