"""Announces what TRL's trainer is about to send to its engine, to the agent in that engine and to the coordinator."""

from collections.abc import Callable
from typing import Any

from omni_rl.watch.guard import guarded
from omni_rl.watch.trl_engine import wrap
from omni_rl.watch.updates import Announcer, announcer, weights_of


class TrlUpdates:
    """Announces every optimizer step's weights: before TRL syncs them, or where it never does, before it generates. A
    PEFT model's layers count as base + delta, which is what TRL sends."""

    def __init__(self, trainer: Any, dtype: str | None, announcer: Announcer) -> None:
        """Wrap the trainer's engine. `dtype` is the engine's, by name; None where that is not known."""
        self._trainer = trainer
        self._dtype = dtype
        self._announcer = announcer
        self._number = 0
        self._of: int | None = None
        for name in ("sync_weights", "generate"):
            wrap(trainer.vllm_generation, name, self._first)

    def _first(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._announce()
        return inner(*args, **kwargs)

    def _announce(self) -> None:
        step = self._trainer.state.global_step
        if step == self._of:
            return
        self._of = step
        self._number += 1
        model = self._trainer.model
        merged = hasattr(model, "peft_config")
        self._announcer.announce(self._number, lambda: weights_of(model, self._dtype, merged=merged))


def announce_updates(trainer: Any, dtype: str | None) -> None:
    """Announce every update of a TRL trainer, if this process is asked for an agent."""
    posts = trainer.accelerator.is_main_process
    ours = guarded(lambda: announcer(posts=posts), "updates are not announced")
    if ours is not None:
        TrlUpdates(trainer, dtype, ours)
