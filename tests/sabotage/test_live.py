"""A few faults on the real pair: noticed, named, answered and mended; and a clean step beside them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.localisation import first_outside
from omni_rl.sabotage import points
from omni_rl.sabotage.faults import Fault
from omni_rl.sabotage.stand import Stand
from omni_rl.sabotage.suite import chosen
from omni_rl.sabotage.trial import run_step, run_trial
from omni_rl.train.worker import TrainWorker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stand(small_checkpoint: Path) -> Iterator[Stand]:
    with Stand(small_checkpoint, "float32") as stand:
        yield stand


LIVE = ("projector left stale", "one bit flipped", "encoder cache stale", "normalised twice", "top-p, untold")


@pytest.mark.parametrize("fault", [f for name in LIVE for f in chosen(name)], ids=lambda fault: fault.key)
def test_a_fault_is_noticed_named_answered_and_mended(stand: Stand, fault: Fault) -> None:
    trial = run_trial(stand, fault, seed=3)
    assert trial.by, "nothing noticed it"
    assert trial.trouble == ""
    assert trial.healed
    if fault.moment == "before VERIFY" and trial.by == ["verify"]:
        assert trial.action == "rollback"
    else:
        assert trial.cause in {str(cause) for cause in fault.causes}, trial.sentence
        assert trial.action_right


def test_a_clean_pair_agrees_module_by_module_and_with_float32(stand: Stand) -> None:
    stand.begin(4)
    step = run_step(stand, 4)
    assert not step.noticed
    experiments = stand.experiments(step.rollouts)
    found = experiments.reference()
    assert max(found.train, found.engine) < 1e-5
    for sample in step.evidence[::2]:
        _, modules = experiments.localise(sample.record.sample)
        names = [module.module for module in modules]
        assert {"embeddings", "layers.0.mixer", "norm"} <= set(names)
        assert names[-1] == "logits"
        if sample.record.kind in ("image", "video"):
            assert {"vision.layers.0.attention", "vision.layers.0.mlp", "vision.layers.1.mlp"} <= set(names)
        assert not [module for module in modules if module.outside]


@pytest.mark.parametrize(
    ("module", "shown"),
    [("vision_model.encoder.layer.1.mlp", "vision.layers.1.mlp"), ("sound_encoder.layers.0", "sound.layers.0")],
)
def test_a_block_of_a_tower_that_differs_is_found_by_its_name(stand: Stand, module: str, shown: str) -> None:
    stand.begin(5)
    step = run_step(stand, 5)
    kind = "image" if shown.startswith("vision") else "audio"
    sample = next(each.record.sample for each in step.evidence if each.record.kind == kind)
    stand.pair.trainer.on_ranks(partial(_louder, module=module))
    try:
        _, modules = stand.experiments(step.rollouts).localise(sample)
    finally:
        stand.take_out()
    first = first_outside(modules)
    assert first is not None
    assert first.module == shown


def _louder(worker: TrainWorker, module: str) -> None:
    points.hook(worker.model.get_submodule(module), lambda found: found * 1.01)


def test_a_resync_of_sound_weights_finds_nothing_wrong_and_an_audit_names_what_is_stale(stand: Stand) -> None:
    (fault,) = (f for f in chosen("mixer.D not written") if f.moment == "vouched for")
    trial = run_trial(stand, fault, seed=3)
    assert trial.cause == Cause.STALE_WEIGHTS
    assert ".mixer.D" in trial.sentence
    assert np.isfinite(trial.abs_diff_mean)
