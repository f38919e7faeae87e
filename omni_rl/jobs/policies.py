"""What a job's loop needs of the two policies and of whoever judges them; `attached.Attached` is the real thing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from omni_rl.client.sealed import Sealed
from omni_rl.media.types import Prompt
from omni_rl.policies.types import Policies
from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score


@dataclass(frozen=True)
class Answers:
    """One step's, in order: prompts as the task gave them, both sides' views, and rewards (None: dropped)."""

    prompts: Sequence[Prompt]
    rollouts: Sequence[Rollout]
    scores: Sequence[Score]
    rewards: Sequence[float | None]


class JudgedPolicies(Policies, Protocol):
    """The two policies, and whoever judges them."""

    def take_snapshot(self, name: str) -> None:
        """Let the trainer hold on to its present weights under that name."""

    def drop_snapshot(self, name: str) -> None: ...
    def judge(self, step: int, answers: Answers, training: Mapping[str, float]) -> Sealed:
        """Post a step's records; the verdict, and the weights that its tokens get."""

    def learnt(self, step: int, training: Mapping[str, float]) -> None:
        """Post what came of learning from a step that was judged."""

    def sync(self, step: int) -> str:
        """Bring the trainer's weights to the engines, proven; the version that they serve."""

    def save(self, following: int) -> None:
        """Keep the state with which step `following` begins."""
