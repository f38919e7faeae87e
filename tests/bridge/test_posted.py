"""A posted record as the search sees it: what was posted is evidence, what was not is left open."""

import numpy as np

from omni_rl.bridge.posted import evidence_of
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.search import Experiments, attribute
from omni_rl.consistency.bands import NOISE
from omni_rl.ledger.records import StepRecords

LOGPROBS = [-1.0, -2.0, -0.5]


def test_versions_and_media_of_a_record_are_evidence() -> None:
    tensor = {"name": "pixel_values_flat", "rendered": "d1", "engine": "d1", "train": "d2"}
    record = {
        "sample": "p7/0",
        "kind": "image",
        "prompt_tokens": 4,
        "rollout_logprobs": LOGPROBS,
        "train_logprobs": np.array(LOGPROBS) - 0.4,
        "temperature": 0.7,
        "version_spans": [{"version": "run/1/3/abc", "start": 0, "end": 3, "mixed_state": False}],
        "train_version": "run/1/3/abc",
        "media": [{"modality": "image", "offset": 1, "length": 2, "content": None, "tensors": [tensor]}],
    }
    sample = evidence_of(StepRecords.of([record]))
    assert (sample.temperature, sample.sampled_under) == (0.7, ("run/1/3/abc",))
    np.testing.assert_allclose(sample.d, -0.4)
    found = attribute([sample], Experiments(), NOISE["float32"], seconds=10)
    assert found.cause is Cause.MEDIA_MISMATCH
    assert "image 0 of sample p7/0: the trainer got another" in found.sentence


def test_a_bare_record_proves_nothing() -> None:
    bare = {"sample": "a", "rollout_logprobs": LOGPROBS, "train_logprobs": [-1.0, -2.5, -0.1]}
    found = attribute([evidence_of(StepRecords.of([bare]))], Experiments(), NOISE["float32"], seconds=10)
    assert found.cause is Cause.UNKNOWN
