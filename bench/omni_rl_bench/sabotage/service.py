"""Runs the service in this process: the coordinator on a ledger and a port of its own, and the bridge's own code beside
it.

It has all of `omni-rl up` but processes: there is no child between the coordinator and the cluster, and no job server.
"""

import asyncio
import contextlib
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omni_rl_services.coordinator.app import create_app
from omni_rl_services.coordinator.server import make_server
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings
from omni_rl_services.coordinator.webhooks import NOBODY, PagerSettings
from ray.cluster_utils import Cluster as RayCluster

from omni_rl.bridge.cluster import Cluster
from omni_rl.bridge.seam import CheckRequest, CheckResult, ClusterState, NoBridge, SyncRequest
from omni_rl.bridge.settings import ClusterSettings
from omni_rl.errors import ServiceError
from omni_rl.rollout.settings import Dtype
from omni_rl.settings import Numerics
from omni_rl.sync.result import SyncResult
from omni_rl.sync.slabs import slab_directory
from omni_rl.sync.states import Observer, SyncEvent

CPUS = 8
"""The CPUs that Ray may give out: an engine asks for more than it uses, on a machine of two cores."""
OBJECT_STORE_BYTES = 256 * 2**20
START_SECONDS = 60.0
END_SECONDS = 30.0


class InProcess(NoBridge):
    """The `omni_rl.bridge.seam.Bridge` over a cluster of this process; jobs have no server."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__("no jobs are submitted to a service that lives in its job's process")
        self._cluster = cluster

    async def open(self, hold: str | None) -> None:
        await (self.resume() if hold is None else self.pause(hold))

    async def state(self) -> ClusterState:
        return await asyncio.to_thread(self._cluster.state)

    async def sync(self, request: SyncRequest, observe: Observer) -> SyncResult:
        loop = asyncio.get_running_loop()

        def tell(event: SyncEvent) -> None:
            loop.call_soon_threadsafe(observe, event)

        return await asyncio.to_thread(self._cluster.sync, request, tell)

    async def check(self, request: CheckRequest) -> CheckResult:
        return await asyncio.to_thread(self._cluster.check, request)

    async def pause(self, reason: str) -> None:
        await asyncio.to_thread(self._cluster.pause, reason)

    async def resume(self) -> None:
        await asyncio.to_thread(self._cluster.resume)


@dataclass(frozen=True)
class Running:
    """Where the coordinator listens, and the run whose weights its engines serve."""

    url: str
    run: str


@contextlib.contextmanager
def service(
    model: Path,
    dtype: Dtype,
    numerics: Numerics,
    *,
    replicas: int,
    learning_rate: float,
    pager: PagerSettings = NOBODY,
) -> Iterator[Running]:
    """Start Ray, `replicas` engines, a trainer of one rank and the coordinator, which reports incidents to `pager`;
    nothing of them is left behind."""
    run = f"sabotage-{uuid.uuid4().hex[:8]}"
    with contextlib.ExitStack() as stack:
        # A Unix socket's path has 107 bytes at most, and Ray puts its own below this.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="omni-rl-", ignore_cleanup_errors=True)))
        ray = RayCluster()
        stack.callback(shutil.rmtree, slab_directory(run), ignore_errors=True)
        stack.callback(ray.shutdown)
        ray.add_node(
            num_cpus=CPUS, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, temp_dir=str(folder / "ray")
        )
        ledger = f"sqlite:///{folder / 'ledger.db'}"
        settings = ClusterSettings(
            address=ray.address,
            dashboard="",
            run=run,
            model=model,
            ledger=ledger,
            replicas=replicas,
            world_size=1,
            learning_rate=learning_rate,
            dtype=dtype,
            numerics=numerics,
        )
        cluster = stack.enter_context(Cluster.attached(settings, None))
        chosen = CoordinatorSettings(
            port=0, ledger=ledger, media=MediaSettings(directory=folder / "media"), pager=pager
        )
        yield Running(stack.enter_context(_listening(chosen, cluster)), run)


@contextlib.contextmanager
def _listening(settings: CoordinatorSettings, cluster: Cluster) -> Iterator[str]:
    """Run a coordinator that answers, in a thread of its own."""
    server = make_server(create_app(settings, bridge=InProcess(cluster)))
    thread = threading.Thread(target=server.run, name="coordinator")
    thread.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise ServiceError("the coordinator did not start")
            time.sleep(0.01)
        yield server.address()
    finally:
        server.should_exit = True
        thread.join(END_SECONDS)
