"""Combines both policies of a run, whoever started them: all engines, used as one, and their trainer."""

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.policies.dealing import Ask, Deal
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.train.settings import PLAIN, Objective
from omni_rl.train.targets import Targets
from omni_rl.train.trainer import Trainer
from omni_rl.train.types import Score, StepStats

B = TypeVar("B")
T = TypeVar("T", bound=Trainer)


class Pair(Generic[T]):
    """Both policies of a run: `rollouts` are the handles of its engines, in the order of their numbers and started with
    the same settings, and `trainer` is the training side.

    Requests are dealt over all engines, and answered in the order of the prompts. No answer depends on how many engines
    there are: request i of a batch is seeded with `sampling.seed + i`, whichever engine gets it.

    When an engine dies or is stopped, its requests go to the others; where none is left, successors are asked for. A
    request that several engines are lost over raises the error of the last one (`dealing.ASKED`).
    """

    def __init__(self, rollouts: Sequence[RolloutHandle], trainer: T) -> None:
        self.rollouts = rollouts
        self.trainer = trainer

    @property
    def settings(self) -> EngineSettings:
        """The settings that the engines were started with."""
        return self.rollouts[0].settings

    def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]:
        """Render each prompt once, for the engines and the trainer; see `omni_rl.media.renderer.Renderer.render`."""
        return self._dealt(range(len(prompts)), lambda engine, share: engine.render([prompts[at] for at in share]))

    def sample(self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings) -> list[Rollout]:
        """Sample one answer for each prompt; the one at place i is seeded with `sampling.seed + i`.

        Copies of a prompt go to one engine as far as possible, so that their media are encoded once.
        """
        return self._dealt(
            [_content(prompt) for prompt in prompts],
            lambda engine, share: engine.sample([prompts[at] for at in share], sampling, share),
        )

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool = False) -> list[Rescore]:
        """Score answers by prefill at temperature 1: those of a replica together or, with `alone`, each by itself with
        cold caches."""
        return self._dealt(
            [_content(rollout.prompt) for rollout in rollouts],
            lambda engine, share: engine.rescore([rollouts[at] for at in share], alone=alone),
        )

    def score(self, rollouts: Sequence[Rollout], snapshot: str | None = None, *, replay: bool = False) -> list[Score]:
        """Score every answer with the trainer; see `omni_rl.train.trainer.Trainer.score`."""
        return self.trainer.score(rollouts, snapshot, replay=replay)

    def update(
        self, rollouts: Sequence[Rollout], targets: Sequence[float | Targets], objective: Objective = PLAIN
    ) -> StepStats:
        """Take one optimiser step; see `omni_rl.train.trainer.Trainer.update`. The engines keep their weights."""
        return self.trainer.update(rollouts, targets, objective)

    def take_snapshot(self, name: str) -> None:
        """Have the trainer hold on to its current weights; see `omni_rl.train.trainer.Trainer.take_snapshot`."""
        self.trainer.take_snapshot(name)

    def drop_snapshot(self, name: str) -> None:
        """Have the trainer forget a snapshot."""
        self.trainer.drop_snapshot(name)

    def decode(self, ids: NDArray[np.int64]) -> str:
        """Return the text of token ids, int64 [T]."""
        text: str = self._tokenizer.decode(ids.tolist())
        return text

    def revive(self) -> None:
        """Replace engines that died by successors with the weights that the run serves."""
        raise NotImplementedError

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.settings.model / "tokenizer.json"))

    def _dealt(self, alike: Sequence[Hashable], ask: Ask[RolloutHandle, B]) -> list[B]:
        # A sync in another thread may put other handles into their place meanwhile.
        return Deal(lambda: self.rollouts, self.revive, ask, alike).run()


def _content(prompt: RenderedPrompt) -> tuple[bytes, tuple[str, ...]]:
    """Return a key that is equal for prompts that an engine cannot tell apart."""
    return prompt.ids.tobytes(), tuple(item.content_hash for item in prompt.items)
