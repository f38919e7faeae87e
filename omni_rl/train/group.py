"""Defines the trainer whose ranks are actors of this process."""

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import ray

from omni_rl.actors import ReservedBundle, share
from omni_rl.agent.settings import for_actor
from omni_rl.closing import Closing
from omni_rl.errors import ConfigError, OmniRLError, TrainerDeadError
from omni_rl.media.slots import FeatureCounts
from omni_rl.processes import PLACEMENT_TIMEOUT
from omni_rl.train.pulse import HEALTH
from omni_rl.train.ranks import Ranks, died
from omni_rl.train.rendezvous import LOOPBACK
from omni_rl.train.settings import TrainSettings
from omni_rl.train.trainer import Built, Trainer
from omni_rl.train.worker import TrainWorker


class TrainerGroup(Closing, Trainer):
    """A trainer whose ranks this process holds. Make one with `start`, and end it with `close`.

    A call waits for a rank that is stopped, for `collective_timeout` seconds of the settings.
    """

    def __init__(self, built: Built, ranks: Ranks) -> None:
        self.built = built
        self._ranks = ranks

    @classmethod
    def start(
        cls,
        model_path: Path,
        settings: TrainSettings,
        run: str,
        attempt: int = 1,
        bundles: Sequence[ReservedBundle] = (),
    ) -> "TrainerGroup":
        """Start the ranks with the weights of the checkpoint in `model_path`, which get number 0. Each rank is placed
        in its bundle if `bundles` were reserved.

        Raises:
            CheckpointError, ConfigError: the checkpoint cannot be loaded.
            ConfigError: the ranks need devices, and the cluster has too few.
            TrainerDeadError: Ray could not place the ranks, or one failed while starting.
        """
        _require_devices(settings)
        rooms: Sequence[ReservedBundle | None] = bundles or [None] * settings.world_size
        shares = [share(settings.cpus_per_rank, settings.set_aside, room, for_actor(run)) for room in rooms]
        worker = ray.remote(concurrency_groups={HEALTH: 1})(TrainWorker)
        actors = [worker.options(max_restarts=0, **its) for its in shares]
        ranks = Ranks(
            [actor.remote(rank, settings, run, attempt) for rank, actor in enumerate(actors)],
            settings.collective_timeout,
        )
        try:
            addresses = ranks.locate(PLACEMENT_TIMEOUT)
            host = LOOPBACK if _one_machine(addresses) else addresses[0]
            port = ranks.first("listen", host)
            ranks.call("join", host, port)
            model = Path(model_path).resolve()
            ranks.call("build", model, 0)
            features: FeatureCounts = ranks.first("feature_counts")
        except TrainerDeadError as error:
            # The group was never in use, so the caller gets the cause itself, such as a bad checkpoint.
            if isinstance(error.__cause__, OmniRLError):
                raise error.__cause__ from None
            raise
        except BaseException:
            ranks.close()
            raise
        return cls(Built(model, settings, features, tuple(addresses)), ranks)

    def each(self, method: str, *shares: Sequence[Any]) -> list[Any]:
        return self._ranks.each(method, *shares)

    @property
    def pids(self) -> list[int]:
        """The process ids of the ranks on this node."""
        return self._ranks.pids

    def stopped(self) -> str:
        """Return at once which ranks are stopped, whatever they compute; empty while all run."""
        return self._ranks.pulse.look()

    def dead(self) -> str:
        """Return at once which ranks' processes have ended; empty while none has."""
        gone = self._ranks.pulse.gone()
        return died(gone) if gone else ""

    def close(self) -> None:
        """End every rank's process. The call is idempotent."""
        self._ranks.close()


def _require_devices(settings: TrainSettings) -> None:
    """Raise `ConfigError` if the cluster has too few devices, for which Ray would wait forever."""
    present = ray.cluster_resources().get("GPU", 0.0)
    if settings.device == "cuda" and present < settings.world_size:
        raise ConfigError(
            f"{settings.world_size} ranks need a CUDA device each, and this Ray cluster has {present:g}; lower "
            'world_size, or set device = "cpu"'
        )


def _one_machine(addresses: Sequence[str]) -> bool:
    """Return whether all addresses are of one machine; several nodes of one machine have different loopback
    addresses."""
    return len(set(addresses)) == 1 or all(ip_address(address).is_loopback for address in addresses)
