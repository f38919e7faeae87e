"""Defines what a loop asks the engines at each step, and how the answers are rewarded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from omni_rl.api.jobs import PolicyGradientParameters
from omni_rl.media.types import Prompt
from omni_rl.rollout.types import SamplingSettings
from omni_rl.tasks.settings import Task

EVALUATION, SHUFFLE = 1, 2
"""The purposes that a seed is drawn for, besides 0, which is to sample the answers that are learnt from."""
SEED_BITS = 31


@dataclass(frozen=True)
class Asked:
    """What the engines are asked for: `copies` answers to each prompt, the answers to one prompt side by side.

    `names` has a name for each answer, and `groups` the group in which the answer is compared with others. `shuffle` is
    a seed with which the rewards are shuffled within each group, as a control experiment; if it is None, each answer
    keeps its own reward.
    """

    prompts: Sequence[Prompt]
    names: Sequence[str]
    groups: Sequence[str]
    sampling: SamplingSettings
    copies: int = 1
    shuffle: Sequence[int] | None = None

    @property
    def each(self) -> list[Prompt]:
        """The prompt of every answer."""
        return [prompt for prompt in self.prompts for _ in range(self.copies)]


class Environment(Protocol):
    """Gives prompts and rewards. They depend on the step's number alone, so that a resumed job goes on as if it had
    never stopped."""

    def asked(self, step: int) -> Asked:
        """Return what is asked at a step for the trainer to learn from."""

    def held_out(self, step: int) -> Asked | None:
        """Return what is asked before a step to measure the policy with, or None for nothing."""

    def reward(self, text: str, expected: str | None) -> float: ...


class TaskEnvironment:
    """Asks a task's prompts in an order that the job's seed fixes, with `copies` answers to each."""

    def __init__(self, parameters: PolicyGradientParameters, task: Task, copies: int) -> None:
        self.reward = task.reward
        self._parameters = parameters
        self._task = task
        self._copies = copies

    def asked(self, step: int) -> Asked:
        seed = self._parameters.seed
        numbers = prompts_of(step, self._parameters.prompts, len(self._task.train), seed)
        shuffle = [seed, step, SHUFFLE] if self._task.shuffled else None
        return self._asked(self._task.prompts("train", numbers), self._copies, seed_of(step, seed), shuffle)

    def held_out(self, step: int) -> Asked | None:
        """Return every held-out prompt, with the same seeds every time, before every `evaluate_every`-th step and the
        last one; None before any other."""
        every = self._parameters.evaluate_every
        if every == 0 or (step % every != 0 and step != self._parameters.steps - 1):
            return None
        prompts = self._task.prompts("held_out", list(range(len(self._task.held_out))))
        return self._asked(prompts, self._parameters.evaluate_answers, seed_of(0, self._parameters.seed, EVALUATION))

    def _asked(self, prompts: list[Prompt], copies: int, seed: int, shuffle: list[int] | None = None) -> Asked:
        """Return what to ask for these prompts; a prompt that occurs twice makes two groups."""
        groups = [f"{prompt.id}/{place}" for place, prompt in enumerate(prompts)]
        names = [f"{group}.{copy}" for group in groups for copy in range(copies)]
        of = self._parameters
        sampling = SamplingSettings(max_tokens=of.max_tokens, temperature=of.temperature, seed=seed)
        return Asked(prompts, names, [group for group in groups for _ in range(copies)], sampling, copies, shuffle)


def prompts_of(step: int, count: int, available: int, seed: int) -> list[int]:
    """Return the numbers of a step's `count` prompts, out of 0 to `available` - 1. One epoch follows the other, each in
    a random order of its own."""
    first = step * count
    chosen = []
    for place in range(first, first + count):
        epoch, index = divmod(place, available)
        order = np.random.default_rng([seed, epoch]).permutation(available)
        chosen.append(int(order[index]))
    return chosen


def seed_of(step: int, seed: int, purpose: int = 0) -> int:
    """Return the seed of a step's first request; request i of the step uses this seed plus i."""
    state = np.random.SeedSequence([seed, step, purpose]).generate_state(1)
    return int(state[0]) >> (32 - SEED_BITS + 1)
