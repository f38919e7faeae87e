"""The service where one of its processes is stopped, its slabs are cut, or /dev/shm is full: it says so, waits for
nothing without an end, and comes back by itself."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest

from omni_rl.api.syncs import SyncBody
from omni_rl.client import Client
from omni_rl.client.retries import Retries
from omni_rl.errors import RayUnavailableError, SyncRolledBackError
from omni_rl.processes import life
from omni_rl.service.state import ServiceState, marked
from omni_rl.sync.ownership import PREFIX

pytestmark = pytest.mark.slow
SHARED_MEMORY_MB = 400
"""Ray's store, two sets of slabs, and room."""
SECONDS = 12.0
"""For a stopped process to be named, and for a sync that needs it to be rolled back."""
PATIENCE = 90.0
WEIGHTS = SyncBody(source="trainer", probe=False)
PUT = """
import numpy, ray
ray.init(log_to_driver=False)
print(ray.get(ray.put(numpy.ones(20_000_000, numpy.uint8))).sum())
"""


class Service:
    """One that is up in `directory`, with a /dev/shm of its own, which `holder` keeps."""

    def __init__(self, directory: Path, holder: int) -> None:
        self.directory = directory
        self._inside = ["nsenter", "-t", str(holder), "-m", "--wd=/", "env", f"PYTHONPATH={os.getcwd()}"]

    def run(self, *command: str, **variables: str) -> str:
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("OMNI_RL", "RAY_"))} | variables
        done = subprocess.run([*self._inside, *command], capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def omni_rl(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "omni_rl", *arguments, "--directory", str(self.directory), "--json")

    @property
    def state(self) -> ServiceState:
        state = ServiceState.read(self.directory)
        assert state is not None
        return state

    @cached_property
    def client(self) -> Client:
        token = (self.directory / "tokens" / "owner").read_text()
        return Client(self.state.url, token, retries=Retries(attempts=1))

    def pids(self, name: str) -> list[int]:
        """Of processes that are called so."""
        return [pid for pid in marked(self.state.name) if name in Path(f"/proc/{pid}/cmdline").read_text()]

    def reason(self) -> str:
        """Why it is not ready."""
        return self._until(False)

    def ready(self) -> None:
        self._until(True)

    def incident(self, what: str) -> None:
        """Wait until there is an incident of that beginning."""
        deadline = time.monotonic() + PATIENCE
        while not any(one.what.startswith(what) for one in self.client.incidents()):
            assert time.monotonic() < deadline, self.client.incidents()
            time.sleep(0.2)

    def _until(self, ready: bool) -> str:
        deadline = time.monotonic() + PATIENCE
        while (answer := self.client.ready()).ready != ready:
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)
        return answer.reason


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    mount = f"mount -t tmpfs -o size={SHARED_MEMORY_MB}m tmpfs /dev/shm && echo mounted && exec sleep infinity"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", mount], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != "mounted\n":
                pytest.skip("only root may mount a /dev/shm of its own")
            service = Service(tmp_path_factory.mktemp("up"), holder.pid)
            try:
                service.omni_rl("up", "--port", "0")
                yield service
                service.client.close()
            finally:
                service.omni_rl("down")
        finally:
            holder.kill()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_rank_that_dies_while_nobody_asks_for_it_is_named_and_a_new_trainer_takes_its_place(service: Service) -> None:
    before = service.pids("ray::TrainerActor")
    os.kill(service.pids("ray::TrainWorker")[1], signal.SIGKILL)
    assert re.search("the process of rank [01] died", service.reason())
    service.ready()
    assert not set(before) & set(service.pids("ray::TrainerActor"))
    service.incident("A trainer (")
    assert service.client.sync(WEIGHTS).outcome == "committed"


@pytest.mark.parametrize("what", ["gcs_server", "raylet/raylet"])
def test_a_process_of_rays_that_is_stopped_is_named(service: Service, what: str) -> None:
    (pid,) = service.pids(what)
    with stopped(pid):
        assert re.search("no answer from (Ray's head|the raylet of this host) at .*: it is stopped", service.reason())
    service.ready()
    assert service.client.sync(WEIGHTS).outcome == "committed"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named_and_no_sync_waits_for_it(service: Service, rank: int) -> None:
    pid = sorted(service.pids("ray::TrainWorker"))[rank]
    began = time.monotonic()
    with stopped(pid):
        with pytest.raises(SyncRolledBackError, match=rf"process {pid} on .* is stopped .*kill -CONT"):
            service.client.sync(WEIGHTS)
        assert f"process {pid} on " in service.reason()
        assert time.monotonic() - began < SECONDS
    service.ready()
    assert service.client.sync(WEIGHTS).outcome == "committed"


def test_a_stopped_trainer_is_named(service: Service) -> None:
    (pid,) = service.pids("ray::TrainerActor")
    with stopped(pid):
        assert f"trainer: process {pid} is stopped" in service.reason()
    service.ready()


def test_slabs_that_were_cut_are_made_anew(service: Service) -> None:
    for slab in slabs(service):
        os.truncate(slab, 1000)
    assert re.search(r"slab-\d\.weights was cut or removed", service.reason())
    assert service.client.sync(WEIGHTS).outcome == "committed"
    service.ready()
    assert service.client.sync(WEIGHTS).outcome == "committed"


def test_a_full_shared_memory_rolls_syncs_back_and_ends_nothing(service: Service) -> None:
    before = service.state.head, marked(service.state.name)
    first, second = slabs(service)
    filler = first.parents[1] / "filler"
    for slab in (first, second):
        os.truncate(slab, 1000)
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(2**20)):
            pass
    with pytest.raises(SyncRolledBackError, match=r"slab-.\.weights needs .* bytes are free; free some"):
        service.client.sync(WEIGHTS)
    address = {"RAY_ADDRESS": service.state.ray_address, "RAY_AUTH_MODE": "token"}
    secret = str(service.directory / "ray_token")
    assert service.run(sys.executable, "-c", PUT, RAY_AUTH_TOKEN_PATH=secret, **address) == "20000000\n"
    assert "was cut or removed" in service.reason()
    filler.unlink()
    assert service.client.sync(WEIGHTS).outcome == "committed"
    service.ready()
    assert set(before[1]) <= set(marked(service.state.name)), "everything lives on"


def test_a_stopped_engine_is_named(service: Service) -> None:
    """tests/chaos/test_stopped.py has it replaced."""
    (pid,) = service.pids("ray::RolloutActor")
    with stopped(pid):
        assert f"rollout-0: process {pid} is stopped" in (reason := service.reason())
        assert "the next sync replaces it" in reason
    service.ready()


def test_a_stopped_bridge_is_ended(service: Service) -> None:
    (pid,) = service.pids("omni_rl.bridge")
    with stopped(pid):
        with pytest.raises(RayUnavailableError, match=rf"process {pid}\) was stopped"):
            service.client.sync(WEIGHTS)
        assert life(pid) == "gone"
    service.ready()


def test_whoever_waits_for_a_raylet_that_stays_stopped_is_answered(service: Service) -> None:
    """The last one: Ray gives such a node up, and its head ends when it goes on."""
    (pid,) = service.pids("raylet/raylet")
    with stopped(pid), pytest.raises(RayUnavailableError):
        sync_again_and_again(service)


def sync_again_and_again(service: Service) -> None:
    """With the probe, whose answers go through Ray's store; until one is refused, or for a while."""
    deadline = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(SyncRolledBackError):
            service.client.sync()
        time.sleep(0.5)


def slabs(service: Service) -> list[Path]:
    """In the service's own /dev/shm."""
    (bridge,) = service.pids("omni_rl.bridge")
    run = Path(f"/proc/{bridge}/root/dev/shm/{PREFIX}{service.state.name}")
    return sorted(run.glob("*.weights"))
