"""Announces a trainer's updates of its weights to the agent of an engine in this process and to the coordinator."""

import time
import uuid
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from omni_rl.agent import announced
from omni_rl.agent.bodies import AdapterSums, Sums, announcement
from omni_rl.agent.install import poster
from omni_rl.agent.settings import AgentSettings
from omni_rl.client import Client
from omni_rl.watch.guard import guarded
from omni_rl.watch.place import PostingRank


class Weights(NamedTuple):
    """The fingerprints of a trainer's weights, and of its LoRA adapters where an engine gets these as adapters."""

    sums: Sums
    adapters: tuple[AdapterSums, ...]


class Announcer:
    """Announces the updates of one trainer, each number once. A number below the last begins a new session: the trainer
    went back to an earlier checkpoint. So does the last number with another digest: it loaded another checkpoint."""

    def __init__(self, settings: AgentSettings, *, posts: bool) -> None:
        """Begin a session. `posts`: this process tells the coordinator; of a trainer's ranks, the first does."""
        self._settings = settings
        self._posts = posts
        self._session = uuid.uuid4().hex[:12]
        self._last: tuple[int, str | None] = (-1, None)

    def announce(
        self, number: int, weights: Callable[[], Weights], at: float | None = None, digest: str | None = None
    ) -> None:
        """Say what the weights of update `number` are, as `weights` returns them, before they are sent to an engine, or
        that they were sent from `at` on, in Unix seconds.

        `digest` is that of the weights, by which those of two checkpoints of one number are told apart. Where `weights`
        is a collective, every rank gives the same number and digest, so that all of them announce or none does.

        Where `weights` fails, one warning says so, and the update is announced without fingerprints: an engine that
        holds it must not be compared with the update before.
        """
        if (number, digest) == self._last:
            return
        if number <= self._last[0]:
            self._session = uuid.uuid4().hex[:12]
        self._last = number, digest
        announced.announce(number)
        found = guarded(weights, "an update's fingerprints are missing") or Weights({}, ())
        if self._posts:
            run, session, began = self._settings.run, self._session, time.time() if at is None else at

            def post(client: Client) -> object:
                # The body is put together in the poster's thread.
                body = announcement(found.sums, found.adapters, at=began, session=session)
                return client.announce_update(run, number, body)

            poster(self._settings.url).put(post)


def weights_of(model: Any, dtype: str | None, *, merged: bool = False, group: Any = None) -> Weights:
    """Return the fingerprints of a torch model, in its own dtypes and in the engine's, `dtype`, by name.

    This is a collective of the group's ranks. `merged`: LoRA adapters reach the engine as part of the weights that they
    adapt.
    """
    # A trainer has torch; this module is imported by those that have none.
    import torch

    from omni_rl.agent.trainer import adapters, fingerprints

    wanted: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
    sums = fingerprints(model, dtype=wanted, merged=merged, group=group)
    return Weights(sums, () if merged else tuple(adapters(model, dtype=wanted, group=group)))


def update(model: Any, number: int, *, dtype: str | None = "bfloat16", merged: bool = False, group: Any = None) -> None:
    """Announce update `number` of a trainer's weights, before they are sent to the engines: on every rank, since ranks
    that share the model out (FSDP2) add up what each of them holds. No weights are gathered, and no coordinator is
    waited for.

    This does nothing unless OMNI_RL_AGENT asks for it, as for the engines. Whatever fails in it is logged once.

    Args:
        model: The trainer's model, with whole parameters or DTensors.
        dtype: The engine's dtype; None: that of each parameter.
        merged: A PEFT model's adapters are sent as part of the weights that they adapt, not as adapters.
        group: The process group of the ranks that share the model out; None: all ranks.
    """
    if (ours := _announcer()) is not None:
        ours.announce(number, lambda: weights_of(model, dtype, merged=merged, group=group))


@cache
def _announcer() -> Announcer | None:
    return guarded(lambda: announcer(posts=PostingRank.found().rank == 0), "updates are not announced")


def announcer(*, posts: bool) -> Announcer | None:
    """Return an announcer for this process's trainer; None where OMNI_RL_AGENT asks for none. `posts` is that of
    `Announcer`. Raises `ConfigError`."""
    settings = AgentSettings.from_environment()
    return None if settings is None else Announcer(settings, posts=posts)
