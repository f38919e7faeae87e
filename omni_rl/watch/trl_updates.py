"""What TRL's trainer is about to send to its engine, said to the agent in that engine and to the coordinator."""

import uuid
from collections.abc import Callable
from typing import Any

from omni_rl.agent import announced
from omni_rl.agent.bodies import announcement
from omni_rl.agent.install import poster
from omni_rl.agent.settings import AgentSettings
from omni_rl.watch.guard import guarded
from omni_rl.watch.trl_engine import wrap


class TrlUpdates:
    """Says of every optimizer step's weights what they are: before TRL syncs them, or where it never does, before it
    generates. A PEFT model's layers count as base + delta, which is what TRL sends."""

    def __init__(self, trainer: Any, dtype: str | None, settings: AgentSettings) -> None:
        """`dtype`: the engine's, by name; None where that is not known."""
        self._trainer = trainer
        self._dtype = dtype
        self._settings = settings
        self._session = uuid.uuid4().hex[:12]
        self._number = 0
        self._of: int | None = None
        for name in ("sync_weights", "generate"):
            wrap(trainer.vllm_generation, name, self._first)

    def _first(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        guarded(self._announce)
        return inner(*args, **kwargs)

    def _announce(self) -> None:
        step = self._trainer.state.global_step
        if step == self._of:
            return
        # A trainer has torch; this module is imported by those that have none.
        import torch

        from omni_rl.agent.trainer import fingerprints

        self._of = step
        model = self._trainer.model
        dtype = None if self._dtype is None else getattr(torch, self._dtype)
        sums = fingerprints(model, dtype=dtype, merged=hasattr(model, "peft_config"))
        self._number += 1
        number = self._number
        announced.announce(number)
        if self._trainer.accelerator.is_main_process:
            body = announcement(sums, session=self._session)
            poster(self._settings.url).put(lambda client: client.announce_update(self._settings.run, number, body))


def announce_updates(trainer: Any, dtype: str | None) -> None:
    """Announce every update of a TRL trainer, if this process is asked for an agent."""
    settings = guarded(AgentSettings.from_environment)
    if settings is not None:
        TrlUpdates(trainer, dtype, settings)
