"""Describes a fault: where it is put in, when, and what is right to say about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from omni_rl.consistency.actions import Cause

Moment = Literal["before VERIFY", "vouched for", "after VERIFY", "from then on"]
"""When a fault is put in. before VERIFY: the next sync goes wrong, and its proof is asked. vouched for: the same, but
the proof is replaced by one that finds nothing. after VERIFY: a serving engine is damaged. from then on: it stays until
it is taken out."""
Side = Literal["engine", "trainer", "job"]
Put = Callable[[Any, int], None]


@dataclass(frozen=True)
class Fault:
    """One fault. `put` takes an engine, a rank of the trainer, or the job's rig (by `side`), and a seed. `causes` are
    what it may be called.

    `replicas` are all engines, or the last one. `proven`: digests or bytes show the fault, whatever the logprobs do.
    `temperature` is that of the whole run, and `setting` is put into its job from the first, clean step on.
    """

    name: str
    causes: tuple[Cause, ...]
    put: Put
    moment: Moment = "from then on"
    side: Side = "engine"
    replicas: Literal["all", "last"] = "all"
    temperature: float = 1.0
    proven: bool = False
    setting: Put | None = None

    @property
    def heals_by_sync(self) -> bool:
        """Whether weights brought anew heal the fault: all but those that stay until they are taken out."""
        return self.moment != "from then on"

    @property
    def key(self) -> str:
        return f"{self.name} ({self.moment})"
