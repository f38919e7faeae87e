"""The live pair that faults are put into: engines, trainer and syncs, as a run has them."""

import contextlib
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np

from omni_rl.bridge.experiments import LiveExperiments, served_slabs
from omni_rl.consistency.bands import NOISE, Bands, calibrated
from omni_rl.errors import EngineDeadError
from omni_rl.kinds import KINDS
from omni_rl.media.samples import demo_prompts
from omni_rl.media.types import RenderedPrompt
from omni_rl.policies.local import started
from omni_rl.rollout.settings import Dtype, EngineSettings
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.sabotage import points
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slabs import SlabPair, slab_directory
from omni_rl.train.settings import TrainSettings
from omni_rl.train.worker import TrainWorker

LEARNING_RATE = 1e-2
"""Ten times the demo's: one step is to change every tensor in bfloat16 too, or there is nothing for a sync to leave
out."""
PER_KIND = 2
CALIBRATION_SEEDS = (1, 2)
CALIBRATION_TOKENS = 16


class Stand:
    """A context: Ray, `replicas` engines and a trainer, which start with the checkpoint's weights.

    The trainer has one rank: what several ranks do is tested elsewhere, and here would only take time.
    """

    def __init__(self, model: Path, dtype: Dtype, *, replicas: int = 1, learning_rate: float = LEARNING_RATE) -> None:
        self.model = model
        self.dtype = dtype
        self.bands: Bands = NOISE[dtype]
        self.prompts: list[RenderedPrompt] = []
        self._replicas = replicas
        self._learning_rate = learning_rate
        self._run = f"sabotage-{uuid.uuid4().hex[:8]}"
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Stand":
        with contextlib.ExitStack() as stack:
            engine = EngineSettings(
                model=self.model, dtype=self.dtype, run=self._run, max_num_seqs=32, max_num_batched_tokens=4096
            )
            train = TrainSettings(world_size=1, dtype=self.dtype, learning_rate=self._learning_rate)
            self.pair = stack.enter_context(started(engine, train, replicas=self._replicas))
            self._slabs = stack.enter_context(contextlib.closing(SlabPair(slab_directory(self._run))))
            self.bands = self._calibrate()
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _calibrate(self) -> Bands:
        """Noise bands of each module, from answers that nothing was done to."""
        profiles = []
        for seed in CALIBRATION_SEEDS:
            prompts = self._rendered(seed)
            sampling = SamplingSettings(max_tokens=CALIBRATION_TOKENS, seed=seed, ignore_eos=True)
            answers = self.pair.sample(prompts, sampling)
            experiments = self.experiments(answers)
            for answer in answers:
                _, modules = experiments.localise(answer.prompt.id)
                profiles.append({module.module: module.relative for module in modules})
        return calibrated(NOISE[self.dtype], profiles, self.pair.trainer.version().digest)

    def _rendered(self, seed: int) -> list[RenderedPrompt]:
        return self.pair.render([p for kind in KINDS for p in demo_prompts(kind, PER_KIND, seed)])

    def begin(self, seed: int) -> None:
        """The checkpoint's weights everywhere, and prompts of this seed, two of each kind."""
        self.pair.trainer.on_ranks(partial(_start_over, model=self.model))
        self.pair.sync()
        self.prompts = self._rendered(seed)

    def sample(self, sampling: SamplingSettings) -> list[Rollout]:
        """An answer to each of `prompts`.

        Raises `EngineDeadError` if an engine died over them: the pair has replaced it, by one without the fault.
        """
        before = [engine.pid for engine in self.pair.rollouts]
        answers = self.pair.sample(self.prompts, sampling)
        if before != [engine.pid for engine in self.pair.rollouts]:
            raise EngineDeadError("an engine died over these prompts, and was replaced")
        return answers

    def learn(self, rollouts: Sequence[Rollout], seed: int) -> None:
        """One optimiser step, in whatever direction."""
        advantages = np.random.default_rng(seed).standard_normal(len(rollouts))
        self.pair.update(rollouts, advantages.tolist())

    @property
    def slabs(self) -> tuple[SlabRef, SlabRef | None]:
        """What is served, and the weights before it, if their slab still has them."""
        return served_slabs(self.pair.journal, self._slabs)

    def experiments(self, answers: Sequence[Rollout]) -> LiveExperiments:
        return LiveExperiments(self.pair.rollouts, self.pair.trainer, self.slabs, answers, self.bands)

    def take_out(self) -> None:
        """Undo every fault that was put in."""
        for engine in self.pair.rollouts:
            engine.between_steps(points.take_out)
        self.pair.trainer.on_ranks(points.take_out)


def _start_over(worker: TrainWorker, model: Path) -> None:
    """A fresh optimiser too: every trial learns the same step."""
    worker.build(model, worker.version().number + 1)
