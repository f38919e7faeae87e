"""Runs the loop of every job and of the demo: sample, reward, score, judge, learn, sync."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic

import numpy as np

from omni_rl.api.jobs import PolicyGradientParameters
from omni_rl.jobs.batch import Array, Batch
from omni_rl.jobs.clock import Clock
from omni_rl.jobs.environment import Asked, Environment
from omni_rl.jobs.routing import flip_rates
from omni_rl.jobs.run import JudgedRun, StepAnswers, V, Weights
from omni_rl.jobs.staleness import score_by_span, staleness
from omni_rl.jobs.updates import Algorithm
from omni_rl.policies.types import Policies
from omni_rl.rollout.types import Rollout
from omni_rl.tasks.rewards import Rewards, rate
from omni_rl.train.advantages import members_of
from omni_rl.train.types import Score

RANK = 0
"""The rank under which every sample is posted, because one process has all answers of a step."""
REFERENCE = "reference"
"""The name of the trainer's snapshot of the weights that a run began with."""
Answered = tuple[Asked, list[Rollout]]


@dataclass(frozen=True)
class LoopSettings:
    """The number of a loop's steps, and its options; see `omni_rl.api.jobs.PolicyGradientParameters`.

    `with_reference` says that the objective has a KL term against the weights that the run began with. `learn_last`
    says that the last step is learnt from like any other; without it, that step ends with its verdict.
    """

    steps: int
    max_staleness: int = 0
    router_replay: bool = False
    with_reference: bool = False
    save_every: int = 0
    learn_last: bool = True

    @classmethod
    def of(cls, job: PolicyGradientParameters) -> "LoopSettings":
        return cls(job.steps, job.max_staleness, job.router_replay, job.kl > 0, job.save_every)


@dataclass(frozen=True)
class StepDone(Generic[V]):
    """The result of a step: its verdict, the loop's own figures, and the `seconds` of each phase. `dropped` has a
    sentence for each sample without a reward, which says why."""

    step: int
    verdict: V
    figures: Mapping[str, float]
    dropped: tuple[str, ...]
    seconds: Mapping[str, float]


class Loop(Generic[V]):
    """Runs the steps of one run. The trainer has to hold the weights with which the first step begins.

    `save` is called with a step's number to save the state with which that step begins, and `on_phase` with the step's
    number and the phase's name as each phase begins.
    """

    def __init__(
        self,
        settings: LoopSettings,
        environment: Environment,
        algorithm: Algorithm,
        policies: Policies,
        run: JudgedRun[V],
        *,
        save: Callable[[int], None] = lambda following: None,
        on_phase: Callable[[int, str], None] = lambda step, phase: None,
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._algorithm = algorithm
        self._policies = policies
        self._run = run
        self._save = save
        self._on_phase = on_phase
        self._served: list[str] = []
        self._ahead: deque[Future[Answered]] = deque()

    def run(self, first: int = 0) -> Iterator[StepDone[V]]:
        """Yield each step when it is done: judged, learnt from, and its weights served."""
        self._serve(first - 1)
        sampler = ThreadPoolExecutor(1, "sampling")
        try:
            for step in range(first, self._settings.steps):
                yield self._step(step, sampler)
        finally:
            # What it waits for may be a closed gate: an error is told without that.
            sampler.shutdown(wait=False, cancel_futures=True)

    def _step(self, step: int, sampler: ThreadPoolExecutor) -> StepDone[V]:
        clock = Clock(partial(self._on_phase, step))
        figures: dict[str, float] = {}
        held_out = self._environment.held_out(step)
        if held_out is not None:
            with clock.time("evaluate"):
                figures["held_out_reward"] = self._evaluate(held_out)
        with clock.time("sample"):
            asked, rollouts = self._next(step, sampler)
        rewards = self._rewards(asked, rollouts)
        with clock.time("score"):
            scores = self._score(rollouts, replay=self._settings.router_replay)
            if self._settings.router_replay:
                figures |= flip_rates("replayed", rollouts, scores)
                figures |= flip_rates("free", rollouts, self._score(rollouts, replay=False))
        figures |= _reward_figures(rewards)
        if self._settings.max_staleness:
            figures["staleness"] = staleness(rollouts, self._served)
        with clock.time("judge"):
            answers = StepAnswers(asked.each, rollouts, scores, rewards.values)
            verdict, weights = self._run.judge(step, answers, figures)
        if self._settings.learn_last or step < self._settings.steps - 1:
            with clock.time("learn"):
                figures |= self._learn(step, _rewarded(answers, asked.groups, _weights(rollouts, weights)))
            with clock.time("sync"):
                self._serve(step)
        every = self._settings.save_every
        if every and (step + 1) % every == 0:
            with clock.time("save"):
                self._save(step + 1)
        return StepDone(step, verdict, figures, rewards.dropped, clock.seconds)

    def _learn(self, step: int, batch: Batch) -> dict[str, float]:
        """Learn from a step's answers, and return the figures of the updates; there are none without an answer."""
        if not len(batch):
            return {}
        if self._settings.with_reference:
            batch = replace(batch, refer=self._refer)
        learnt = self._algorithm.learn(batch, self._policies.update, step)
        self._run.learnt(step, learnt)
        return learnt

    def _serve(self, step: int) -> None:
        """Have the engines serve the trainer's weights. If answers may be stale, hold a snapshot of each served version
        for as long as an answer under way may name it."""
        self._served.append(self._run.sync(step))
        ahead = self._settings.max_staleness
        if ahead:
            self._policies.take_snapshot(self._served[-1])
            # A step that taught nothing is served under the version before: what is left may still name it.
            left = self._served[-(ahead + 1) :]
            for version in dict.fromkeys(self._served):
                if version not in left:
                    self._policies.drop_snapshot(version)
            self._served = left

    def _next(self, step: int, sampler: ThreadPoolExecutor) -> Answered:
        """Return this step's answers; those of the next `max_staleness` steps are sampled in the meantime."""
        if not self._settings.max_staleness:
            # In this thread, because an interrupted driver would have to wait for the sampler's.
            return self._answered(self._environment.asked(step))
        last = min(step + self._settings.max_staleness, self._settings.steps - 1)
        for number in range(step + len(self._ahead), last + 1):
            self._ahead.append(sampler.submit(lambda at: self._answered(self._environment.asked(at)), number))
        asked, rollouts = self._ahead.popleft().result()
        if {span.version for rollout in rollouts for span in rollout.version_spans} - {*self._served}:
            # Between two updates of a step, somebody else's sync served weights of which nobody holds a snapshot. What
            # is served by now is the last step's.
            return sampler.submit(self._answered, asked).result()
        return asked, rollouts

    def _answered(self, asked: Asked) -> Answered:
        rendered = [prompt for prompt in self._policies.render(asked.prompts) for _ in range(asked.copies)]
        named = [replace(prompt, id=name) for prompt, name in zip(rendered, asked.names, strict=True)]
        return asked, self._policies.sample(named, asked.sampling)

    def _score(self, rollouts: Sequence[Rollout], *, replay: bool) -> list[Score]:
        if not self._settings.max_staleness:
            return self._policies.score(rollouts, replay=replay)
        return score_by_span(rollouts, partial(self._policies.score, replay=replay))

    def _refer(self, rollouts: Sequence[Rollout]) -> list[Array]:
        scores = self._policies.score(rollouts, REFERENCE, replay=self._settings.router_replay)
        return [score.logprobs for score in scores]

    def _rewards(self, asked: Asked, rollouts: Sequence[Rollout]) -> Rewards:
        found = rate(
            self._environment.reward,
            asked.names,
            [self._policies.decode(rollout.ids) for rollout in rollouts],
            [prompt.answer for prompt in asked.each],
        )
        if asked.shuffle is None:
            return found
        rng = np.random.default_rng(asked.shuffle)
        values = list(found.values)
        for places in members_of(asked.groups).values():
            for place, other in zip(places, rng.permutation(places), strict=True):
                values[place] = found.values[other]
        return replace(found, values=tuple(values))

    def _evaluate(self, asked: Asked) -> float:
        """Return the mean reward of sampled answers to held-out prompts, or 0.0 if no answer has a reward."""
        rewards = self._rewards(*self._answered(asked))
        return _reward_figures(rewards).get("reward", 0.0)


def _reward_figures(rewards: Rewards) -> dict[str, float]:
    values = [value for value in rewards.values if value is not None]
    figures = {"samples_dropped": float(len(rewards.dropped))}
    return figures | ({"reward": float(np.mean(values))} if values else {})


def _weights(rollouts: Sequence[Rollout], given: Weights | None) -> list[Array]:
    """Return the weights of each answer's tokens, float64 [T]; all are 1 if the verdict gives no weights."""
    if given is None:
        return [np.ones(len(rollout.ids)) for rollout in rollouts]
    return [np.asarray(given[RANK, rollout.prompt.id], np.float64) for rollout in rollouts]


def _rewarded(answers: StepAnswers, groups: Sequence[str], weights: Sequence[Array]) -> Batch:
    """Return the batch that a step learns from: its answers that have a reward."""
    kept = [place for place, reward in enumerate(answers.rewards) if reward is not None]
    rewards = [np.nan if reward is None else reward for reward in answers.rewards]
    return Batch(answers.rollouts, answers.scores, rewards, groups, weights).take(kept)
