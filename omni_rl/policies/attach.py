"""Gives a Ray job its way in: the run's policies, which the service hosts, found by name.

A job's driver does

    with attach() as policies:
        rollouts = policies.sample(policies.render(prompts), sampling)  # dealt over all engines of the run
        scores = policies.score(rollouts)
        policies.update(rollouts, advantages)
        answer = policies.coordinator.sync(key=f"{run}-{step}")  # PREPARE to RESUME; its version is what is served
        policies.follow(answer)

New weights reach the engines through the coordinator alone, which keeps the journal of syncs. With every sync, it also
replaces engines that died or are stopped; `follow` finds their successors. Until then the other engines take over their
requests, and where there are none, the coordinator is asked for successors.

The environment says where the run is: OMNI_RL_RUN, OMNI_RL_URL and OMNI_RL_TOKEN_FILE, which jobs submitted through the
API have.
"""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence

import ray

from omni_rl.api.syncs import SyncAnswer, SyncBody
from omni_rl.errors import ConfigError, EngineDeadError, TrainerDeadError
from omni_rl.policies.named import engines
from omni_rl.policies.pair import Pair
from omni_rl.policies.patient_client import PatientClient
from omni_rl.policies.retries import replacements
from omni_rl.policies.settings import TRAINER, namespace_of
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.train.handle import TrainerHandle


class AttachedPair(Pair[TrainerHandle]):
    """Both policies of `run`, which a service hosts; `coordinator` is a client with the job's token, whose calls
    outlive deaths.

    The actors live on when the job ends: their handles are never closed here.
    """

    def __init__(
        self, run: str, rollouts: Sequence[RolloutHandle], trainer: TrainerHandle, coordinator: PatientClient
    ) -> None:
        super().__init__(rollouts, trainer)
        self.run = run
        self.coordinator = coordinator

    def follow(self, answer: SyncAnswer) -> None:
        """Find the engines again after a sync if it replaced some, or if others serve than those known.

        Another sync than the job's own may have replaced an engine, and one may have been missing when the job
        attached. An engine that the sync left out is not used, because it would keep its share of the requests waiting.
        Raises `EngineDeadError` if no engine is found.

        The trainer stays the one that the job began with: another of its name has nothing of what the job learnt, and
        the job has to end with `TrainerDeadError` instead of going on with the weights of the checkpoint.
        """
        known = [handle.name for handle in self.rollouts if handle.usable]
        serving = [name for name in engines(namespace_of(self.run)) if name not in answer.out]
        if answer.replaced or known != serving:
            self.rollouts = _rollouts(self.run, without=answer.out)

    def revive(self) -> None:
        """Have the service replace lost engines, and find all of them again. Raises `EngineDeadError` if none is
        found."""
        self.rollouts = _of_replaced(self.run, self.coordinator)


@contextlib.contextmanager
def attach(run: str | None = None) -> Iterator[AttachedPair]:
    """Find the policies of `run`, or of OMNI_RL_RUN, on the Ray cluster, to which this process connects if it has not.

    Where every engine has died, their successors are asked for and waited for.

    Raises:
        ConfigError: no run is given.
        EngineDeadError, TrainerDeadError: the run's actors are not there, or do not answer.
    """
    name = run or os.environ.get("OMNI_RL_RUN")
    if not name:
        raise ConfigError("which run? Set OMNI_RL_RUN to what omni-rl up printed, or submit through the API")
    if not ray.is_initialized():
        ray.init(address="auto", log_to_driver=False)
    with PatientClient() as client:
        yield AttachedPair(name, _found(name, client), _trainer(name), client)


def _found(run: str, coordinator: PatientClient) -> tuple[RolloutHandle, ...]:
    try:
        return _rollouts(run)
    except EngineDeadError:
        return _of_replaced(run, coordinator)


def _of_replaced(run: str, coordinator: PatientClient) -> tuple[RolloutHandle, ...]:
    """Have the coordinator replace dead engines, and return the run's engines."""
    for _ in replacements(lambda: coordinator.sync(SyncBody(source="served", probe=False))):
        with contextlib.suppress(EngineDeadError):
            return _rollouts(run)
    return _rollouts(run)


def _rollouts(run: str, without: Collection[str] = ()) -> tuple[RolloutHandle, ...]:
    namespace = namespace_of(run)
    found, failure = [], None
    for name in engines(namespace):
        try:
            handle = None if name in without else RolloutHandle.attach(name, namespace)
        except EngineDeadError as error:
            failure = error  # those that answer have its share until a sync replaces it
        else:
            found += [] if handle is None else [handle]
    if not found:
        raise EngineDeadError(f"run {run} has no rollout engine on this Ray cluster; see omni-rl status") from failure
    return tuple(found)


def _trainer(run: str) -> TrainerHandle:
    found = TrainerHandle.attach(TRAINER, namespace_of(run))
    if found is None:
        raise TrainerDeadError(f"run {run} has no trainer on this Ray cluster; see omni-rl status")
    return found
