"""Sets up the live run that faults are put into: a service of its own, its engines and trainer, and a job that
posts."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from omni_rl_services.coordinator.webhooks import NOBODY, PagerSettings

from omni_rl.api.runs import LimitChanges, LimitValues, RunBody
from omni_rl.api.steps import Verdict
from omni_rl.api.syncs import CheckBody, SyncBody
from omni_rl.client.blocking import Client
from omni_rl.consistency.limits import limits_for
from omni_rl.errors import EngineDeadError, WeightUpdateError
from omni_rl.jobs.attached import AttachedRun
from omni_rl.jobs.clock import Clock
from omni_rl.jobs.run import StepAnswers
from omni_rl.jobs.saved import SavedSteps
from omni_rl.kinds import KINDS, OVERALL
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.policies.attach import AttachedPair, attach
from omni_rl.policies.retries import retried
from omni_rl.rollout.settings import Dtype
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.service.settings import SMALL_CHECKPOINT
from omni_rl.settings import Numerics
from omni_rl.tasks.samples import demo_prompts
from omni_rl.train.types import Score
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.service import service

LEARNING_RATE = 1e-2
"""Ten times the demo's: one step must change every tensor in bfloat16 too, or a sync has nothing to leave out."""
ATTEMPT = 1
Say = Callable[[str], None]


@dataclass(frozen=True)
class Pair:
    """The dtype and numerics of both policies. batch_invariant: bit for bit what is sampled, in bfloat16."""

    dtype: Dtype
    numerics: Numerics = "reference"

    def __str__(self) -> str:
        return self.dtype if self.numerics == "reference" else self.numerics


PAIRS = {str(pair): pair for pair in (Pair("float32"), Pair("bfloat16"), Pair("bfloat16", "batch_invariant"))}


@dataclass(frozen=True)
class Step:
    """One step of the job, as it was sampled and scored, and the service's verdict on it."""

    number: int
    rollouts: Sequence[Rollout]
    scores: Sequence[Score]
    verdict: Verdict
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def calm(self) -> bool:
        """Whether the step by itself is ok; the severity that the service reports may be that of earlier steps. A step
        that is not ok is explained, if only by `unknown`."""
        return self.verdict.cause is None and not self.verdict.breaches


class Rig:
    """The rig, as a context: a service with `replicas` engines and a trainer of one rank, which hold the checkpoint's
    weights.

    What several ranks do is tested elsewhere, and here would only take time. `policies` is the pair as a job has it;
    the job's own run is made by `begin`.
    """

    def __init__(
        self,
        pair: Pair,
        say: Say,
        *,
        model: Path = SMALL_CHECKPOINT,
        replicas: int = 1,
        learning_rate: float = LEARNING_RATE,
        pager: PagerSettings = NOBODY,
    ) -> None:
        self.pair = pair
        self.policies: AttachedPair
        self.client: Client
        self.prompts: list[Prompt] = []
        self.last_sampling: SamplingSettings
        self._rendered: list[RenderedPrompt] = []
        self._job: AttachedRun
        self._model, self._replicas, self._learning_rate = model, replicas, learning_rate
        self._say = say
        self._pager = pager
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Rig":
        with contextlib.ExitStack() as stack:
            self._jobs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="omni-rl-jobs-")))
            self._say(f"{self.pair}: starting Ray, the coordinator, {self._replicas} engines and the trainer")
            running = stack.enter_context(
                service(
                    self._model,
                    self.pair.dtype,
                    self.pair.numerics,
                    replicas=self._replicas,
                    learning_rate=self._learning_rate,
                    pager=self._pager,
                )
            )
            stack.enter_context(_environment({"OMNI_RL_URL": running.url}))
            self.policies = stack.enter_context(attach(running.run))
            self.client = self.policies.coordinator
            # An operator calibrates this once for a model: how far apart its modules lie while nothing is wrong.
            self.client.check(CheckBody(legs=False, localise=True))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def begin(self, run: str, prompts: Sequence[Prompt], *, lag: int | None = None) -> None:
        """Begin a new run of the job with these prompts; the checkpoint's weights and a fresh optimiser everywhere."""
        self.policies.trainer.reset()
        self.sync()
        limits = _limits(self.pair)
        body = RunBody(run=run, model=self._model.name, dtype=self.pair.dtype, gated=True, lag=lag, limits=limits)
        self.client.create_run(body)
        self._job = AttachedRun(self.policies, run, ATTEMPT, SavedSteps(run, self._jobs))
        self.ask(prompts)

    def ask(self, prompts: Sequence[Prompt]) -> None:
        """Ask these prompts from the next step on."""
        self.prompts = list(prompts)
        self._rendered = self.policies.render(self.prompts)

    def sync(self) -> None:
        """Serve the trainer's weights, in one try, where a job would try again. Raises what a sync raises."""
        answer = retried(lambda: self.client.sync(SyncBody(probe=False)))
        if answer.outcome != "committed":
            raise WeightUpdateError(f"sync {answer.sync} was {answer.outcome}: {answer.reason}")
        self.policies.follow(answer)

    def step(self, number: int, sampling: SamplingSettings) -> Step:
        """Sample, score, post and seal one step, as a job does.

        Raises `EngineDeadError` if an engine died over it: the engine's successor has no fault.
        """
        clock = Clock()
        with clock.time("sample"):
            rollouts = self.sample(sampling)
        with clock.time("score"):
            scores = self.policies.score(rollouts)
        with clock.time("judge"):
            verdict = self.judge(number, rollouts, scores)
        return Step(number, rollouts, scores, verdict, clock.seconds)

    def sample(self, sampling: SamplingSettings) -> list[Rollout]:
        """Return an answer to each prompt. Raises `EngineDeadError` if an engine died over them."""
        self.last_sampling = sampling
        before = [engine.pid for engine in self.policies.rollouts]
        rollouts = self.policies.sample(self._rendered, sampling)
        if before != [engine.pid for engine in self.policies.rollouts]:
            raise EngineDeadError("an engine died over these prompts, and was replaced")
        return rollouts

    def judge(
        self, number: int, rollouts: Sequence[Rollout], scores: Sequence[Score], of: Sequence[int] | None = None
    ) -> Verdict:
        """Post a step's records and seal it; media that no step before had go to the store. `of` are the numbers of the
        prompts that these are answers to; None: of all."""
        prompts = self.prompts if of is None else [self.prompts[number] for number in of]
        verdict, _ = self._job.judge(number, StepAnswers(prompts, rollouts, scores, [None] * len(rollouts)), {})
        return verdict

    def learn(self, rollouts: Sequence[Rollout], seed: int) -> None:
        """Take one optimiser step, in any direction."""
        advantages = np.random.default_rng(seed).standard_normal(len(rollouts))
        self.policies.update(rollouts, advantages.tolist())

    def take_out(self) -> None:
        """Undo every fault that was put in."""
        for engine in self.policies.rollouts:
            engine.between_steps(patches.take_out)
        self.policies.trainer.on_ranks(patches.take_out)
        patches.take_out(self)


def prompts_of(seed: int, per_kind: int) -> list[Prompt]:
    """Return `per_kind` prompts of each kind."""
    return [prompt for kind in KINDS for prompt in demo_prompts(kind, per_kind, seed)]


def _limits(pair: Pair) -> LimitChanges:
    """Return the limits of the job's run in place of its dtype's. Between batch-invariant policies no difference is
    rounding: they get the limits of float32."""
    if pair.numerics != "batch_invariant":
        return {}
    own = limits_for("float32")[OVERALL]
    values = {name: LimitValues(warn=of.warn, mask=of.mask, pause=of.pause) for name, of in own.items()}
    return dict.fromkeys((OVERALL, *KINDS), values)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process inside the context."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
