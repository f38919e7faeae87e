"""A job's loop: sample, reward, score, judge, learn, sync; each step as DESIGN has it."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from omni_rl.api.jobs import PolicyGradientParameters
from omni_rl.api.steps import Verdict
from omni_rl.jobs.batch import Array, Batch
from omni_rl.jobs.clock import Clock
from omni_rl.jobs.order import prompts_of, seed_of
from omni_rl.jobs.policies import Answers, JudgedPolicies
from omni_rl.jobs.routing import flip_rates
from omni_rl.jobs.staleness import score_by_span, staleness
from omni_rl.jobs.updates import Algorithm
from omni_rl.media.types import Prompt
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.tasks.rewards import Rewards, rate
from omni_rl.tasks.settings import Task
from omni_rl.train.advantages import members_of
from omni_rl.train.types import Score

RANK = 0
"""The rank that posts: one process has all answers of a step."""
EVALUATION = 1
"""The purpose of a seed."""
SHUFFLE = 2
REFERENCE = "reference"
"""The name of the trainer's snapshot of the weights that a run began with."""


@dataclass(frozen=True)
class StepDone:
    """One step: its verdict, and the job's own figures. `dropped`: samples without a reward, and why."""

    step: int
    verdict: Verdict
    figures: Mapping[str, float]
    dropped: tuple[str, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class _Sampled:
    """A step's answers in order, each with its prompt, and the group that it is compared in."""

    prompts: list[Prompt]
    groups: list[str]
    rollouts: list[Rollout]


class Loop:
    """The steps of one job. The trainer holds the weights that the first one begins with."""

    def __init__(
        self, parameters: PolicyGradientParameters, task: Task, algorithm: Algorithm, policies: JudgedPolicies
    ) -> None:
        self._parameters = parameters
        self._task = task
        self._algorithm = algorithm
        self._policies = policies
        self._served: list[str] = []
        self._ahead: deque[Future[_Sampled]] = deque()

    def run(self, first: int = 0) -> Iterator[StepDone]:
        """Each step when it is done: sealed, learnt from, and its weights served."""
        self._serve(first - 1)
        with ThreadPoolExecutor(1, "sampling") as sampler:
            for step in range(first, self._parameters.steps):
                yield self._step(step, sampler)

    def _step(self, step: int, sampler: ThreadPoolExecutor) -> StepDone:
        clock = Clock()
        figures: dict[str, float] = {}
        if self._measures(step):
            with clock.time("evaluate"):
                figures["held_out_reward"] = self._evaluate()
        with clock.time("sample"):
            sampled = self._next(step, sampler)
        rollouts = sampled.rollouts
        rewards = self._rewards(step, sampled)
        with clock.time("score"):
            scores = self._score(rollouts, replay=self._parameters.router_replay)
            if self._parameters.router_replay:
                figures |= flip_rates("replayed", rollouts, scores)
                figures |= flip_rates("free", rollouts, self._score(rollouts, replay=False))
        figures |= _reward_figures(rewards)
        if self._parameters.max_staleness:
            figures["staleness"] = staleness(rollouts, self._served)
        with clock.time("judge"):
            answers = Answers(sampled.prompts, rollouts, scores, rewards.values)
            sealed = self._policies.judge(step, answers, figures)
        with clock.time("learn"):
            weights = _weights(rollouts, sealed.weights)
            batch = _rewarded(rewards, rollouts, scores, sampled.groups, weights)
            if len(batch):
                learnt = self._algorithm.learn(self._with_reference(batch), self._policies.update, step)
                self._policies.learnt(step, learnt)
                figures |= learnt
        with clock.time("sync"):
            self._serve(step)
        if self._saves(step):
            with clock.time("save"):
                self._policies.save(step + 1)
        return StepDone(step, sealed.verdict, figures, rewards.dropped, clock.seconds)

    def _serve(self, step: int) -> None:
        """Sync, and hold a snapshot of served weights for as long as an answer under way may name them."""
        self._served.append(self._policies.sync(step))
        ahead = self._parameters.max_staleness
        if ahead:
            self._policies.take_snapshot(self._served[-1])
            for version in self._served[: -(ahead + 1)]:
                self._policies.drop_snapshot(version)

    def _next(self, step: int, sampler: ThreadPoolExecutor) -> "_Sampled":
        """This step's answers, while those of the next `max_staleness` steps are asked for."""
        last = min(step + self._parameters.max_staleness, self._parameters.steps - 1)
        for number in range(step + len(self._ahead), last + 1):
            self._ahead.append(sampler.submit(self._sample, number))
        return self._ahead.popleft().result()

    def _score(self, rollouts: Sequence[Rollout], *, replay: bool) -> list[Score]:
        if not self._parameters.max_staleness:
            return self._policies.score(rollouts, replay=replay)
        return score_by_span(rollouts, partial(self._policies.score, replay=replay))

    def _with_reference(self, batch: Batch) -> Batch:
        return batch if self._parameters.kl == 0 else replace(batch, refer=self._refer)

    def _refer(self, rollouts: Sequence[Rollout]) -> list[Array]:
        scores = self._policies.score(rollouts, REFERENCE, replay=self._parameters.router_replay)
        return [score.logprobs for score in scores]

    def _saves(self, step: int) -> bool:
        every = self._parameters.save_every
        return every > 0 and (step + 1) % every == 0

    def _measures(self, step: int) -> bool:
        every = self._parameters.evaluate_every
        return every > 0 and (step % every == 0 or step == self._parameters.steps - 1)

    def _sample(self, step: int) -> "_Sampled":
        parameters = self._parameters
        numbers = prompts_of(step, parameters.prompts, len(self._task.train), parameters.seed)
        prompts = self._task.prompts("train", numbers)
        return self._answers(prompts, self._algorithm.answers_per_prompt, seed_of(step, parameters.seed))

    def _answers(self, prompts: Sequence[Prompt], copies: int, seed: int) -> "_Sampled":
        """`copies` to each prompt; one that is here twice is two groups."""
        rendered = self._policies.render(prompts)
        each = [
            replace(prompt, id=f"{prompt.id}/{place}.{copy}")
            for place, prompt in enumerate(rendered)
            for copy in range(copies)
        ]
        rollouts = self._policies.sample(each, self._sampling(seed))
        groups = [f"{prompt.id}/{place}" for place, prompt in enumerate(prompts) for _ in range(copies)]
        return _Sampled([prompt for prompt in prompts for _ in range(copies)], groups, rollouts)

    def _sampling(self, seed: int) -> SamplingSettings:
        parameters = self._parameters
        return SamplingSettings(max_tokens=parameters.max_tokens, temperature=parameters.temperature, seed=seed)

    def _rewards(self, step: int, sampled: "_Sampled") -> Rewards:
        found = self._rate(sampled.prompts, sampled.rollouts)
        if not self._task.shuffled:
            return found
        rng = np.random.default_rng([self._parameters.seed, step, SHUFFLE])
        values = list(found.values)
        for places in members_of(sampled.groups).values():
            for place, other in zip(places, rng.permutation(places), strict=True):
                values[place] = found.values[other]
        return replace(found, values=tuple(values))

    def _rate(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> Rewards:
        return rate(
            self._task.reward,
            [rollout.prompt.id for rollout in rollouts],
            [self._policies.decode(rollout.ids) for rollout in rollouts],
            [prompt.answer for prompt in prompts],
        )

    def _evaluate(self) -> float:
        """The mean reward of sampled answers to every held-out prompt, of the same seeds every time."""
        prompts = self._task.prompts("held_out", list(range(len(self._task.held_out))))
        seed = seed_of(0, self._parameters.seed, EVALUATION)
        sampled = self._answers(prompts, self._parameters.evaluate_answers, seed)
        values = [value for value in self._rate(sampled.prompts, sampled.rollouts).values if value is not None]
        return float(np.mean(values)) if values else 0.0


def _reward_figures(rewards: Rewards) -> dict[str, float]:
    values = [value for value in rewards.values if value is not None]
    figures = {"samples_dropped": float(len(rewards.dropped))}
    return figures | ({"reward": float(np.mean(values))} if values else {})


def _weights(rollouts: Sequence[Rollout], given: Mapping[tuple[int, str], NDArray[np.float32]] | None) -> list[Array]:
    """Of every token; 1 where the verdict gives none."""
    if given is None:
        return [np.ones(len(rollout.ids)) for rollout in rollouts]
    return [np.asarray(given[RANK, rollout.prompt.id], np.float64) for rollout in rollouts]


def _rewarded(
    rewards: Rewards,
    rollouts: Sequence[Rollout],
    scores: Sequence[Score],
    groups: Sequence[str],
    weights: Sequence[Array],
) -> Batch:
    """What a step learns from: answers that have a reward."""
    kept = [(place, value) for place, value in enumerate(rewards.values) if value is not None]
    return Batch(
        rollouts=[rollouts[place] for place, _ in kept],
        scores=[scores[place] for place, _ in kept],
        rewards=[value for _, value in kept],
        groups=[groups[place] for place, _ in kept],
        weights=[weights[place] for place, _ in kept],
    )
