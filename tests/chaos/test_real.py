"""The promises on real vLLM engines and real FSDP2 ranks: a few of everything that the fakes are put through.

The tests share engines and follow each other: each leaves all replicas serving the committed weights.
"""

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from omni_rl.errors import SyncRolledBackError, TrainerDeadError
from omni_rl.kinds import KINDS
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.policies.probe import AgreementProbe, render_probe
from omni_rl.processes import life
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.sync.manifest import Entry
from omni_rl.sync.replica_group import Deadlines
from omni_rl.sync.slabs import FILES, RunRecord, slab_directory
from omni_rl.sync.sources import DirectorySource, FsdpSource
from omni_rl.sync.states import Phase, SyncEvent
from omni_rl.sync.version import WeightVersion
from omni_rl.sync.weight_sync import WeightSync
from omni_rl.tasks.samples import demo_prompts
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings
from omni_rl.train.types import Score

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

RUN = "real"
Scores = dict[str, list[list[float]]]


@dataclass
class Real:
    """Two engines, two ranks, and a sync of them. `at`: what is done when the sync comes to an event."""

    handles: list[RolloutHandle]
    trainer: TrainerGroup
    base: Path
    probe: tuple[Rollout, ...] = ()
    at: dict[tuple[Phase, str | None], Callable[[], None]] = field(default_factory=dict)
    sync: WeightSync = field(init=False)

    def observe(self, event: SyncEvent) -> None:
        if event.what != "failed" and (act := self.at.pop((event.phase, event.replica), None)) is not None:
            act()

    def scores(self) -> Scores:
        """Of the canonical probe, by replica; equal bits only for equal weights."""
        return {
            handle.name: [score.logprobs.tolist() for score in handle.rescore(self.probe, alone=True)]
            for handle in self.handles
        }

    def learn(self) -> None:
        self.trainer.update(self.probe, [1.0, -1.0, 1.0, -1.0, 1.0])

    def all_serve(self, version: str) -> bool:
        return [(handle.status().standing, handle.weight_version) for handle in self.handles] == [
            ("serving", version)
        ] * len(self.handles)

    def idle_slab(self) -> Path:
        """Where a sync that is under way has its new weights."""
        paths = [slab_directory(RUN, self.base) / name for name in FILES]
        return max(paths, key=lambda path: path.with_suffix(".json").stat().st_mtime_ns)

    def entry(self, name: str) -> Entry:
        (entry,) = (e for e in RunRecord.read(slab_directory(RUN, self.base)).places if e.name == name)
        return entry


def local_ray() -> None:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)


@pytest.fixture(scope="module")
def real(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    base = tmp_path_factory.mktemp("slabs")
    with ExitStack() as stack:
        local_ray()
        stack.callback(ray.shutdown)
        settings = EngineSettings(model=small_checkpoint, run=RUN)
        handles = [
            stack.enter_context(RolloutHandle.start(settings, name=name, namespace="chaos", closed=True))
            for name in ("r0", "r1")
        ]
        train = TrainSettings(world_size=2, learning_rate=1e-3)
        trainer = stack.enter_context(TrainerGroup.start(small_checkpoint, train, RUN))
        started = Real(handles, trainer, base)
        deadlines = Deadlines(answer=20.0, write=20.0, prove=20.0)
        journal = stack.enter_context(opened_journal(base / "ledger.db", RUN))
        started.sync = stack.enter_context(
            weight_sync(handles, journal, base=base, deadlines=deadlines, observe=started.observe)
        )
        started.probe = render_probe(handles[0])
        yield started


def test_a_sync_of_the_same_weights_changes_nothing(real: Real) -> None:
    assert {handle.weight_version for handle in real.handles} == {str(real.trainer.version())}
    assert {answer.prompt.kind for answer in real.probe} == set(KINDS)
    before = real.scores()
    assert before["r0"] == before["r1"]
    probe = AgreementProbe(lambda: real.probe, real.trainer.score, "float32")
    result = real.sync.sync(FsdpSource(real.trainer), probe=probe)
    assert result.serving == str(real.trainer.version())
    assert result.elements_proven == result.elements > real.handles[0].parameters
    assert real.scores() == before
    assert result.agreement is not None
    assert set(result.agreement) == set(KINDS)
    for kind, figures in result.agreement.items():
        assert figures["tokens"] == len(real.probe[0].ids)
        assert figures["logprob_abs_diff_mean"] < 1e-5, kind
        assert figures["logprob_abs_diff_max"] < 1e-4, kind


def sampled(engine: RolloutHandle) -> list[Rollout]:
    """Answers to real media of every kind."""
    prompts = [prompt for kind in KINDS for prompt in demo_prompts(kind, 2, 0)]
    return engine.sample(engine.render(prompts), SamplingSettings(max_tokens=8, seed=5, ignore_eos=True))


def assert_agreement(rollouts: list[Rollout], scores: list[Score]) -> None:
    for rollout, score in zip(rollouts, scores, strict=True):
        assert {span.version for span in rollout.version_spans} == {score.version}
        assert rollout.engine_digests == score.digests
        kind, difference = rollout.prompt.kind, np.abs(score.logprobs - rollout.logprobs)
        assert difference.mean() < 1e-5, kind
        assert difference.max() < 1e-4, kind


def test_both_sides_agree_before_and_after_an_update_and_on_what_was_saved(real: Real, tmp_path: Path) -> None:
    engine = real.handles[0]
    assert engine.weight_version == str(real.trainer.version())
    rollouts = sampled(engine)
    before = real.trainer.score(rollouts)
    assert_agreement(rollouts, before)

    real.trainer.update(rollouts, [1.0, -1.0] * len(KINDS))
    version = real.trainer.version()
    result = real.sync.sync(FsdpSource(real.trainer))
    assert result.version == result.serving == str(version)
    assert result.elements_proven == result.elements > engine.parameters
    rollouts = sampled(engine)
    after = real.trainer.score(rollouts)
    assert_agreement(rollouts, after)
    assert after[0].version != before[0].version

    real.trainer.save(tmp_path / "saved")
    with RolloutHandle.start(EngineSettings(model=tmp_path / "saved", run=RUN)) as served:
        assert WeightVersion.parse(served.weight_version).digest == version.digest[:16]
        again = sampled(served)
    for rollout, fresh in zip(rollouts, again, strict=True):
        assert fresh.ids.tolist() == rollout.ids.tolist()
        assert np.abs(fresh.logprobs - rollout.logprobs).max() < 1e-4


def flip(real: Real, entry: Entry) -> None:
    with real.idle_slab().open("r+b") as file:
        file.seek(entry.offset + entry.nbytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def swap(real: Real, entry: Entry) -> None:
    """Two elements that differ, anywhere in the tensor."""
    values = np.memmap(real.idle_slab(), np.uint32, "r+", entry.offset, (entry.elements,))
    other = int(np.flatnonzero(values != values[0])[-1])
    values[[0, other]] = values[[other, 0]]
    values.flush()


def skip(real: Real, entry: Entry) -> None:
    """What the slab would hold if the source had left the tensor out: the old values."""
    paths = [slab_directory(RUN, real.base) / name for name in FILES]
    (active,) = set(paths) - {real.idle_slab()}
    with active.open("rb") as old, real.idle_slab().open("r+b") as new:
        old.seek(entry.offset)
        new.seek(entry.offset)
        new.write(old.read(entry.nbytes))


@pytest.mark.parametrize("damage", [flip, swap, skip])
def test_damaged_weights_are_named_and_undone(real: Real, damage: Callable[[Real, Entry], None]) -> None:
    real.learn()
    before, version = real.scores(), real.sync.version
    names = [
        "mlp1.1.weight",
        "language_model.backbone.layers.0.mixer.A_log",
        "language_model.backbone.layers.0.mixer.D",
        "vision_model.radio_model.model.blocks.1.mlp.fc1.weight",
        "language_model.lm_head.weight",
    ]
    for name in names:
        entry = real.entry(name)
        real.at[Phase.PAUSE, None] = lambda entry=entry: damage(real, entry)  # type: ignore[misc]
        with pytest.raises(SyncRolledBackError) as error:
            real.sync.sync(FsdpSource(real.trainer))
        assert name in str(error.value)
        assert real.all_serve(version)
    assert real.scores() == before


def turn_entry(actor: Any) -> None:
    """In the engine's process: rows of one tensor's entry in the layout map change places. Both writing and reading
    back follow it."""
    ask = actor._service.loop.command(lambda engine: engine.llm_engine.collective_rpc(lambda worker: worker.weights))
    (weights,) = ask.result()
    name = "language_model.lm_head.weight"
    number = list(weights._layout.specs).index(name)
    width = weights._layout.specs[name].shape[1]
    blocks: list[Any] = []
    for block in weights._layout.blocks:
        if block.tensor != number:
            blocks.append(block)
            continue
        assert block.rows == 1
        half = block.length // width // 2 * width
        rest = block.length - half
        blocks.append(block._replace(length=half, target=block.target + rest))
        blocks.append(block._replace(length=rest, source=block.source + half))
    weights._layout = dataclasses.replace(weights._layout, blocks=tuple(blocks))
    weights._layout.check_complete()


@pytest.mark.parametrize("phase", [Phase.PAUSE, Phase.VERIFY])
def test_a_wrong_entry_of_the_layout_map_is_named_and_undone(real: Real, phase: Phase) -> None:
    """Before the engine writes by it, or between writing and reading back."""
    real.learn()
    before, version, victim = real.scores(), real.sync.version, real.handles[0].pid
    actor = real.handles[0]._hold.actor
    real.at[phase, None] = lambda: ray.get(actor.__ray_call__.remote(turn_entry))
    with pytest.raises(SyncRolledBackError) as error:
        real.sync.sync(FsdpSource(real.trainer))
    assert "language_model.lm_head.weight: its entry in the layout map is not the one" in str(error.value)
    assert real.handles[0].pid != victim  # nothing can be proven with that map: another engine serves
    assert real.all_serve(version)
    assert real.scores() == before


def test_what_was_learnt_is_served_and_agrees(real: Real) -> None:
    before = real.scores()
    probe = AgreementProbe(lambda: real.probe, real.trainer.score, "float32")
    result = real.sync.sync(FsdpSource(real.trainer), probe=probe)
    after = real.scores()
    assert after["r0"] == after["r1"]
    assert all(one != other for one, other in zip(after["r0"], before["r0"], strict=True))
    assert result.serving == str(real.trainer.version())
    assert result.agreement is not None
    assert max(figures["logprob_abs_diff_mean"] for figures in result.agreement.values()) < 1e-5


@pytest.mark.parametrize("phase", [Phase.APPLY, Phase.VERIFY])
def test_an_engine_that_is_killed_takes_nobody_with_it(real: Real, phase: Phase) -> None:
    real.learn()
    before, version = real.scores(), real.sync.version
    victim = real.handles[1].pid
    assert victim is not None
    real.at[phase, None] = lambda: os.kill(victim, signal.SIGKILL)
    with pytest.raises(SyncRolledBackError, match="replica r1: r1: its process ended during obey"):
        real.sync.sync(FsdpSource(real.trainer))
    assert real.handles[1].pid != victim
    assert real.all_serve(version)
    assert real.scores() == before


def test_an_engine_that_dies_after_the_decision_comes_back_with_the_new_weights(real: Real) -> None:
    before, victim = real.scores(), real.handles[0].pid
    assert victim is not None
    real.at[Phase.RESUME, None] = lambda: os.kill(victim, signal.SIGKILL)
    result = real.sync.sync(FsdpSource(real.trainer))
    assert "its process ended" in result.replaced["r0"]
    assert real.all_serve(result.version)
    after = real.scores()
    assert after["r0"] == after["r1"] != before["r0"]


def test_a_stopped_engine_is_told_from_a_dead_one(real: Real) -> None:
    real.learn()
    before, victim = real.scores(), real.handles[0].pid
    assert victim is not None
    real.at[Phase.VERIFY, None] = lambda: os.kill(victim, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(SyncRolledBackError, match=f"process {victim} is stopped .SIGSTOP or frozen., not dead"):
        real.sync.sync(FsdpSource(real.trainer))
    assert time.monotonic() - started < 90
    assert life(victim) == "gone"
    assert real.scores() == before


def test_a_trainer_that_dies_halfway_is_named_and_nothing_happens(real: Real) -> None:
    before, version = real.scores(), real.sync.version
    os.kill(real.trainer.pids[1], signal.SIGKILL)
    with pytest.raises(SyncRolledBackError, match="the process of rank 1 died"):
        real.sync.sync(FsdpSource(real.trainer))
    with pytest.raises(TrainerDeadError):
        real.trainer.version()
    assert real.all_serve(version)
    assert real.scores() == before


# The last test with this Ray.
def test_the_run_outlives_its_ray(real: Real, small_checkpoint: Path) -> None:
    """Slabs and journal are files: with another Ray the run goes on where it was."""
    before, version = real.scores(), real.sync.version
    checkpoint = DirectorySource(small_checkpoint, torch.float32, RELEASED, run=RUN, number=10)
    ray.shutdown()
    with pytest.raises(SyncRolledBackError, match="no connection to Ray"):
        real.sync.sync(checkpoint)
    local_ray()
    for handle in real.handles:
        handle.replace(closed=True)
    real.sync.repair()
    assert real.all_serve(version)
    assert real.scores() == before
    result = real.sync.sync(checkpoint)
    assert real.all_serve(result.version)
