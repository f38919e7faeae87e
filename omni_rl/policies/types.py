"""Defines what loops need of the pair of policies, and what the pair reports of itself; imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.settings import Transport
from omni_rl.train.settings import Objective
from omni_rl.train.targets import Targets
from omni_rl.train.types import Score, StepStats


class Policies(Protocol):
    """Both policies of a run. Prompts and answers keep their order everywhere."""

    def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]: ...
    def sample(self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings) -> list[Rollout]: ...
    def score(self, rollouts: Sequence[Rollout], snapshot: str | None = None, *, replay: bool = False) -> list[Score]:
        """Score answers with the trainer's current weights, or with those of a `snapshot`; with `replay`, through the
        experts that the engine used."""

    def update(
        self, rollouts: Sequence[Rollout], targets: Sequence[float | Targets], objective: Objective
    ) -> StepStats: ...
    def decode(self, ids: NDArray[np.int64]) -> str: ...
    def take_snapshot(self, name: str) -> None:
        """Have the trainer hold on to its current weights under that name."""

    def drop_snapshot(self, name: str) -> None: ...


@dataclass(frozen=True)
class Placed:
    """The place of an actor: the address of its node and, for an engine, the transport by which its weights came; None
    for a rank of the trainer."""

    name: str
    node: str
    transport: Transport | None = None
