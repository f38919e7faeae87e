"""The way in for a Ray job: the run's policies, which the service hosts, by name.

A job's driver does

    with attach() as policies:
        rollouts = policies.rollout.sample(policies.rollout.render(prompts), sampling)
        scores = policies.trainer.score(rollouts)
        policies.trainer.update(rollouts, advantages)
        answer = policies.coordinator.sync(key=f"{run}-{step}")  # PREPARE to RESUME; its version is what is served

and gets the handles that the demo has. New weights reach the engines through the coordinator alone, which keeps the
journal of syncs. It also replaces engines that die, with every sync: after `EngineDeadError`, `mend` asks for their
successors and finds them; after a sync whose answer names replaced ones, `refresh` does.

The environment says where: OMNI_RL_RUN, OMNI_RL_URL and OMNI_RL_TOKEN_FILE, which jobs submitted through the API have.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import ray

from omni_rl.api.syncs import SyncBody
from omni_rl.bridge.named import engines
from omni_rl.bridge.patience import mending
from omni_rl.bridge.settings import TRAINER, namespace_of
from omni_rl.bridge.trainer import TrainerHandle
from omni_rl.client.blocking import Client
from omni_rl.client.retries import Retries
from omni_rl.errors import ConfigError, EngineDeadError, TrainerDeadError
from omni_rl.rollout.actor import RolloutHandle

PATIENT = Retries(attempts=40)
"""A job outlives the coordinator's restart: three minutes without an answer."""


@dataclass
class Policies:
    """Of `run`. `rollouts` by their numbers, `coordinator` a client with the job's token.

    They live on when the job ends: their handles are never closed here.
    """

    run: str
    rollouts: tuple[RolloutHandle, ...]
    trainer: TrainerHandle
    coordinator: Client

    @property
    def rollout(self) -> RolloutHandle:
        """The first one."""
        return self.rollouts[0]

    def refresh(self) -> None:
        """Find the actors again, which may be successors. Raises what `attach` raises."""
        self.rollouts, self.trainer = _rollouts(self.run), _trainer(self.run)

    def mend(self) -> None:
        """Have the service replace engines that died, and find all actors again. Raises what `attach` raises."""
        self.rollouts = _mended(self.run, self.coordinator)
        self.trainer = _trainer(self.run)


@contextlib.contextmanager
def attach(run: str | None = None) -> Iterator[Policies]:
    """The policies of `run`, or of OMNI_RL_RUN, on the Ray cluster of this process, which connects if it has not.

    Where every engine has died, their successors are asked for and waited for.

    Raises:
        ConfigError: nobody says which run.
        EngineDeadError, TrainerDeadError: its actors are not there, or do not answer.
    """
    name = run or os.environ.get("OMNI_RL_RUN")
    if not name:
        raise ConfigError("which run? Set OMNI_RL_RUN to what omni-rl up printed, or submit through the API")
    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    with Client(retries=PATIENT) as client:
        yield Policies(name, _found(name, client), _trainer(name), client)


def _found(run: str, coordinator: Client) -> tuple[RolloutHandle, ...]:
    try:
        return _rollouts(run)
    except EngineDeadError:
        return _mended(run, coordinator)


def _mended(run: str, coordinator: Client) -> tuple[RolloutHandle, ...]:
    """The engines after dead ones were replaced."""
    for _ in mending(lambda: coordinator.sync(SyncBody(source="served", probe=False))):
        with contextlib.suppress(EngineDeadError):
            return _rollouts(run)
    return _rollouts(run)


def _rollouts(run: str) -> tuple[RolloutHandle, ...]:
    namespace = namespace_of(run)
    found = [RolloutHandle.attach(name, namespace) for name in engines(namespace)]
    complete = tuple(handle for handle in found if handle is not None)
    if not complete:
        raise EngineDeadError(f"run {run} has no rollout engine on this Ray cluster; see omni-rl status")
    return complete


def _trainer(run: str) -> TrainerHandle:
    found = TrainerHandle.attach(TRAINER, namespace_of(run))
    if found is None:
        raise TrainerDeadError(f"run {run} has no trainer on this Ray cluster; see omni-rl status")
    return found
