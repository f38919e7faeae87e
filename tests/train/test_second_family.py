"""Another model family than ours through the whole pair: it needs its own folder, and nothing else knows of it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray

from omni_rl.config import DemoSettings
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.limits import Severity, judge
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.demo.environment import DemoEnvironment
from omni_rl.errors import ConfigError, PromptError
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.media.types import Prompt, Sound
from omni_rl.models.recording import LAST_NORM, LOGITS
from omni_rl.policies.probe import AgreementProbe, render_probe
from omni_rl.rollout import diagnosis
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.sync.sources import FsdpSource
from omni_rl.train import hooks
from omni_rl.train.group import TrainerGroup
from omni_rl.train.pairing import train_against_decode
from omni_rl.train.settings import TrainSettings
from tests.models.dense.installed import installed
from tests.watch.trl_models import write_qwen

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SAMPLING = SamplingSettings(max_tokens=16, seed=5, ignore_eos=True)
YARDSTICK = Yardstick.of("float32")
PROMPTS = [Prompt(f"p{number}", "name the capital of " + "the " * number) for number in range(8)]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A random checkpoint of the family, which every process of a Ray of this module's own can serve."""
    with installed(tmp_path_factory.mktemp("site")):
        ray.init(address="local", num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False)
        yield write_qwen(tmp_path_factory.mktemp("qwen"))
        ray.shutdown()


@pytest.fixture(scope="module")
def engine(dense: Path) -> Iterator[RolloutHandle]:
    with RolloutHandle.start(EngineSettings(model=dense, run="dense", max_model_len=256)) as started:
        yield started


@pytest.fixture(scope="module")
def trainer(dense: Path) -> Iterator[TrainerGroup]:
    settings = TrainSettings(world_size=2, learning_rate=1e-2, collective_timeout=120.0)
    with TrainerGroup.start(dense, settings, run="dense") as group:
        yield group


def sampled(engine: RolloutHandle) -> list[Rollout]:
    return engine.sample(engine.render(PROMPTS), SAMPLING)


def verdict(rollouts: list[Rollout], trainer: TrainerGroup) -> Severity:
    """What the one yardstick says of the engine's logprobs beside the trainer's."""
    records = train_against_decode(rollouts, trainer.score(rollouts))
    return YARDSTICK.judge(YARDSTICK.compare(StepColumns.of(records))).severity


def test_the_demo_asks_what_the_model_takes(dense: Path) -> None:
    asked = DemoEnvironment(DemoSettings(model=dense, prompts_per_kind=3)).asked(0)
    assert [prompt.kind for prompt in asked.prompts] == ["text"] * 3


def test_both_sides_agree_part_and_agree_again_once_weights_are_synced(
    engine: RolloutHandle, trainer: TrainerGroup, tmp_path: Path
) -> None:
    assert engine.weight_version == str(trainer.version())
    rollouts = sampled(engine)
    assert verdict(rollouts, trainer) is Severity.OK

    trainer.update(rollouts, [1.0, -1.0] * (len(rollouts) // 2))
    assert verdict(sampled(engine), trainer) is Severity.PAUSE

    with (
        opened_journal(tmp_path / "ledger.db", "dense") as journal,
        weight_sync([engine], journal, base=tmp_path) as sync,
    ):
        probe = AgreementProbe(lambda: render_probe(engine), trainer.score, "float32")
        result = sync.sync(FsdpSource(trainer), probe=probe)
    assert result.outcome == "committed"
    assert result.agreement is not None
    assert result.agreement.keys() == {"text"}
    assert judge(result.agreement, YARDSTICK.limits).breaches == ()
    assert result.version == engine.weight_version == str(trainer.version())
    assert result.elements_proven == result.elements >= engine.parameters
    assert verdict(sampled(engine), trainer) is Severity.OK


def test_the_same_places_are_looked_at_on_both_sides(engine: RolloutHandle, trainer: TrainerGroup) -> None:
    (rollout, *_) = sampled(engine)
    ours = engine.between_steps(partial(diagnosis.activations, rollout=rollout))
    theirs = trainer.on_ranks(partial(hooks.activations, rollout=rollout))[0]
    assert (
        ours.keys()
        == theirs.keys()
        == {
            *(f"layers.{layer}.{part}" for layer in range(2) for part in ("attention", "mlp")),
            LAST_NORM,
            LOGITS,
        }
    )


def test_the_trainers_reference_is_its_own_policy(engine: RolloutHandle, trainer: TrainerGroup) -> None:
    rollouts = sampled(engine)
    references = trainer.on_ranks(partial(hooks.reference, rollouts=rollouts))[0]
    for reference, score in zip(references, trainer.score(rollouts), strict=True):
        assert np.abs(reference - score.logprobs).max() < 1e-4


def test_a_saved_state_is_served_and_trained_on(trainer: TrainerGroup, tmp_path: Path) -> None:
    trainer.save(tmp_path / "saved")
    settings = TrainSettings(world_size=1, collective_timeout=120.0)
    with (
        RolloutHandle.start(EngineSettings(model=tmp_path / "saved", run="dense", max_model_len=256)) as engine,
        TrainerGroup.start(tmp_path / "saved", settings, run="dense") as again,
    ):
        assert again.version().digest == trainer.version().digest
        assert verdict(sampled(engine), trainer) is verdict(sampled(engine), again) is Severity.OK


def test_media_are_refused_by_name(engine: RolloutHandle) -> None:
    hiss = Sound(np.zeros(16000, np.float32), 16000)
    with pytest.raises(PromptError, match="prompt 'sound' has 1 audio item"):
        engine.render([Prompt("sound", "hear <so_embedding> now", sounds=(hiss,))])


def test_what_the_family_lacks_is_refused_by_name(dense: Path) -> None:
    with pytest.raises(ConfigError, match='numerics "matched" are not there for dense models'):
        TrainerGroup.start(dense, TrainSettings(world_size=1, numerics="matched"), run="dense")
