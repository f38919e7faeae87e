"""Holds both policies of a run on a Ray cluster: found, or started where they are missing, then synced and compared."""

import contextlib
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import ray
import torch

from omni_rl.actors import ReservedBundle, clear, reserve
from omni_rl.bridge.between_syncs import between_syncs
from omni_rl.bridge.check import Checks
from omni_rl.bridge.elsewhere import Elsewhere
from omni_rl.bridge.experiments import served_slabs
from omni_rl.bridge.posted import posted
from omni_rl.bridge.seam import CheckRequest, CheckResult, ClusterState, ReplicaState, SyncRequest
from omni_rl.bridge.settings import ClusterSettings
from omni_rl.errors import (
    EngineDeadError,
    OmniRLError,
    ReplicaDeadError,
    ReplicaStoppedError,
    TrainerDeadError,
    TrainerStoppedError,
)
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import LedgerJournal
from omni_rl.ledger.types import StepKey
from omni_rl.models.families import family_of
from omni_rl.policies.named import end_others
from omni_rl.policies.probe import AgreementProbe
from omni_rl.policies.settings import TRAINER
from omni_rl.rollout.handle import CPUS, RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import sending_device, weight_sync
from omni_rl.sync.replica import Deadline, ReplicaStatus
from omni_rl.sync.result import SyncResult
from omni_rl.sync.slabs import INBOX, SlabPair, slab_directory
from omni_rl.sync.sources import DirectorySource, FsdpSource, PublishedSource, Source
from omni_rl.sync.states import Observer, SyncEvent
from omni_rl.sync.version import same_weights
from omni_rl.sync.weight_sync import WeightSync
from omni_rl.train.handle import WAKE_RANK, TrainerHandle
from omni_rl.train.settings import TrainSettings

logger = logging.getLogger("omni_rl.bridge")
STATUS = Deadline("status", 3.0)
"""The deadline for an actor's status; an actor answers at once, whatever it is doing."""
SYNC_AGAIN = "an engine that dies has no successor until the next sync, which brings them anew"
RANKS, ENGINES = "ranks", "engines"
"""The names of placement groups, by the actors that each is for."""


class Cluster:
    """Both policies of a run, attached to Ray and to the run's actors; make it with `attached`. Any thread may call."""

    def __init__(
        self,
        settings: ClusterSettings,
        rollouts: list[RolloutHandle],
        trainer: TrainerHandle,
        held: str | None,
    ) -> None:
        self._settings = settings
        self._rollouts = rollouts
        self._trainer = trainer
        self._checks = Checks(rollouts, trainer, settings.numerics, trainer.recall)
        self._held = held
        self._gate = threading.Lock()
        self._syncs = threading.Lock()
        self._sync: WeightSync
        self._ledger: Ledger
        self._journal: LedgerJournal
        self._slabs: SlabPair
        self._observe: Observer = lambda event: None

    @classmethod
    @contextlib.contextmanager
    def attached(cls, settings: ClusterSettings, held: str | None) -> Iterator["Cluster"]:
        """Connect, find or start the actors, and finish or roll back what a predecessor left.

        At the end the actors live on, and the slabs with what they serve. Raises `ConfigError` before anything starts
        if the transport needs a device that this process does not have.
        """
        sending_device(settings.transport)
        with contextlib.ExitStack() as stack:
            ray.init(
                address=settings.address, namespace=settings.namespace, log_to_driver=False, configure_logging=False
            )
            stack.callback(ray.shutdown)
            end_others(settings.namespace, settings.rollouts)
            engines = _room(settings, ENGINES, {"CPU": CPUS, **settings.rollout_resources}, settings.replicas)
            with ThreadPoolExecutor() as starting:
                trainer = starting.submit(_trainer, settings)
                rollouts = [
                    starting.submit(_rollout, settings, name, held, bundle)
                    for name, bundle in zip_longest(settings.rollouts, engines)
                ]
            cluster = cls(settings, [rollout.result() for rollout in rollouts], trainer.result(), held)
            ledger = stack.enter_context(contextlib.closing(Ledger.open(settings.ledger)))
            journal = stack.enter_context(contextlib.closing(LedgerJournal(ledger, settings.run)))

            def observe(event: SyncEvent) -> None:
                journal.observe(event)
                cluster._observe(event)

            cluster._sync = stack.enter_context(
                weight_sync(
                    cluster._rollouts, journal, transport=settings.transport, observe=observe, held=held, keep=True
                )
            )
            cluster._ledger, cluster._journal = ledger, journal
            cluster._slabs = stack.enter_context(contextlib.closing(SlabPair(slab_directory(settings.run))))
            cluster._hold(held)
            yield cluster

    def state(self) -> ClusterState:
        with ThreadPoolExecutor(len(self._rollouts) + 1) as asking:
            trainer = asking.submit(self._trainer_state)
            found = list(asking.map(_status, self._rollouts))
        members = [_member(handle.name, status) for handle, status in zip(self._rollouts, found, strict=True)]
        return ClusterState(
            connected=True,
            address=self._settings.address,
            run=self._settings.run,
            gate=self._gate_of([status for status in found if isinstance(status, ReplicaStatus)]),
            members=(*members, trainer.result()),
            dtype=self._settings.dtype,
            slabs=self._cut(),
            trainer=self._trainer.process,
        )

    def _cut(self) -> str:
        """Return what is wrong with the slab that is served, as far as its size tells; empty if nothing is. Syncs read
        its bytes."""
        served = self._journal.committed()
        assert served is not None, "the run's syncs were opened"
        path = Path(served.path)
        try:
            whole = path.stat().st_size >= self._slabs.record.nbytes
        except OSError:
            whole = False
        return "" if whole else f"{path} was cut or removed, and with it the weights that are served: {SYNC_AGAIN}"

    def trainer_died(self) -> str:
        """Return why the trainer can no longer be used; empty while it lives, even if it is stopped or silent."""
        try:
            return self._trainer.status(STATUS.seconds).end
        except TrainerDeadError as error:
            return str(error) if isinstance(error.__cause__, ReplicaDeadError) else ""
        except TrainerStoppedError:
            return ""

    def sync(self, request: SyncRequest, observe: Observer) -> SyncResult:
        """Run a sync; see `omni_rl.bridge.seam.Bridge.sync`. Only the trainer's own weights are compared with the
        trainer by the probe, and only syncs of new weights are recorded in the journal."""
        probe = None
        if request.probe and request.source == "trainer" and not request.heal:
            probe = AgreementProbe(lambda: self._checks.probe, self._trainer.score, self._settings.dtype)
        self._observe = lambda event: observe(event) if event.sync == request.sync else None
        with self._syncs:
            if request.source == "served":
                return self._sync.repair(name=request.sync)
            again = request.heal and self._elsewhere() is not None
            return self._sync.sync(
                self._served() if again else self._source(request),
                name=request.sync,
                key=request.key,
                mode=request.mode,
                probe=probe,
                # Weights that are served already were allowed.
                allow_nonfinite=request.allow_nonfinite or again,
            )

    def check(self, request: CheckRequest) -> CheckResult:
        step = None
        if request.run is not None and request.attempt is not None and request.step is not None:
            key = StepKey(request.run, request.attempt, request.step)
            step = posted(self._ledger, key, self._settings.dtype)

        def look() -> CheckResult:
            slabs = served_slabs(self._journal, self._slabs)
            return self._checks.run(request, slabs, step, self._elsewhere(), self._slabs.at(slabs[0].path).manifest)

        return between_syncs(
            look,
            lambda: self._trainer.status().version,
            lambda version: same_weights(version, self._sync.version),
            self._syncs,
        )

    def pause(self, reason: str) -> None:
        self._hold(reason)

    def resume(self) -> None:
        self._hold(None)

    def _hold(self, reason: str | None) -> None:
        with self._gate:
            self._held = reason
            if reason is None:
                self._sync.release()
            else:
                self._sync.hold(reason)

    def _source(self, request: SyncRequest) -> Source:
        settings = self._settings
        if request.source == "published":
            assert request.version is not None, "the API asks for it"
            if request.version == self._sync.version:
                return self._served()  # another process may have published since
            return PublishedSource(self._slabs.directory / INBOX, request.version)
        if request.source == "directory":
            assert request.path is not None, "the API asks for it"
            released = family_of(settings.model).released
            return DirectorySource(Path(request.path), getattr(torch, settings.dtype), released, run=settings.run)
        return FsdpSource(self._trainer)

    def _served(self) -> Source:
        """Return a source of the weights that are served, from their own slab."""
        served, _ = served_slabs(self._journal, self._slabs)
        return PublishedSource(Path(served.path), served.version)

    def _elsewhere(self) -> Elsewhere | None:
        """Return where the weights that are served came from, if not from the trainer."""
        served, _ = served_slabs(self._journal, self._slabs)
        return Elsewhere.of(self._slabs.at(served.path).manifest, self._trainer.status().version)

    def _gate_of(self, found: list[ReplicaStatus]) -> Literal["open", "closed", "unknown"]:
        """Return the state of the gate; where replicas differ, the state that is not the wanted one."""
        if not found:
            return "unknown"
        held = [status.held is not None for status in found]
        if self._held is None:
            return "closed" if any(held) else "open"
        return "closed" if all(held) else "open"

    def _trainer_state(self) -> ReplicaState:
        try:
            status = self._trainer.status(STATUS.seconds)
        except OmniRLError as error:
            return ReplicaState(TRAINER, "trainer", "", _fallen(error), str(error))
        if status.stopped and not status.end:
            return ReplicaState(TRAINER, "trainer", status.version, "stopped", f"{status.stopped}; {WAKE_RANK}")
        state = "dead" if status.end else status.busy or "idle"
        return ReplicaState(TRAINER, "trainer", status.version, state, status.end)


def _room(settings: ClusterSettings, what: str, need: dict[str, float], count: int) -> list[ReservedBundle]:
    """Reserve resources for `count` actors; returns none where Ray places them as it likes."""
    if settings.strategy is None:
        return []
    # A bridge that has joined is on a node that offers nothing; its memory is then another node's too.
    here = what == RANKS and not settings.join
    return reserve([need] * count, settings.strategy, first_here=here, detached=f"{settings.namespace}-{what}")


def _trainer(settings: ClusterSettings) -> TrainerHandle:
    with contextlib.suppress(TrainerDeadError):
        found = TrainerHandle.attach(TRAINER, settings.namespace, waits=False)
        if found is not None:
            return found
    clear(TRAINER, settings.namespace)
    train = TrainSettings(
        world_size=settings.world_size,
        dtype=settings.dtype,
        numerics=settings.numerics,
        learning_rate=settings.learning_rate,
        device=settings.trainer_device,
        resources=settings.trainer_resources,
    )
    bundles = _room(settings, RANKS, {"CPU": train.cpus_per_rank, **train.set_aside}, settings.world_size)
    return TrainerHandle.start(
        settings.model,
        train,
        run=settings.run,
        name=TRAINER,
        namespace=settings.namespace,
        bundles=bundles,
        waits=False,
    )


def _rollout(settings: ClusterSettings, name: str, held: str | None, bundle: ReservedBundle | None) -> RolloutHandle:
    with contextlib.suppress(EngineDeadError):
        found = RolloutHandle.attach(name, settings.namespace, bundle)
        if found is not None:
            return found
    clear(name, settings.namespace)
    engine = EngineSettings(
        model=settings.model,
        dtype=settings.dtype,
        run=settings.run,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        batch_invariant=settings.engine_is_batch_invariant,
        weight_transfer=settings.weight_transfer,
        resources=settings.rollout_resources,
    )
    # Closed: the successor of a dead replica must not serve the checkpoint where the run has moved on.
    return RolloutHandle.start(
        engine, name=name, namespace=settings.namespace, detached=True, closed=True, held=held, bundle=bundle
    )


def _status(handle: RolloutHandle) -> ReplicaStatus | OmniRLError:
    try:
        return handle.status(STATUS)
    except OmniRLError as error:
        return error


def _fallen(error: OmniRLError) -> str:
    return "stopped" if isinstance(error, ReplicaStoppedError | TrainerStoppedError) else "dead"


def _member(name: str, status: ReplicaStatus | OmniRLError) -> ReplicaState:
    if isinstance(status, OmniRLError):
        return ReplicaState(name, "rollout", "", _fallen(status), str(status))
    return ReplicaState(name, "rollout", status.holds or "", status.standing, status.reason or status.held or "")
