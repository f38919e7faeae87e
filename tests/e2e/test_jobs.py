"""One service: its jobs as their operator has them, submitted, followed, killed, resumed and drawn; and then one of its
processes stopped, its slabs cut, or /dev/shm full: it says so, waits for nothing without an end, and comes back by
itself."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from omni_rl.api.steps import StepLine
from omni_rl.api.syncs import SyncBody
from omni_rl.client import Client
from omni_rl.client.retries import Retries
from omni_rl.errors import RayUnavailableError, SyncRolledBackError
from omni_rl.processes import life
from omni_rl.service.state import ServiceState, marked
from omni_rl.sync.ownership import PREFIX
from omni_rl.tasks.words import FOLDER

pytestmark = pytest.mark.slow
SMALL = ["prompts=4", "group=4", "max_tokens=2", "learning_rate=0.0003", "kl=0.01"]
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
    """One that is up in `directory`, with a /dev/shm of its own if `holder` keeps one."""

    def __init__(self, directory: Path, holder: int | None) -> None:
        self.directory = directory
        self.confined = holder is not None
        enter = ["nsenter", "-t", str(holder), "-m", "--wd=/", "env", f"PYTHONPATH={os.getcwd()}"]
        self._inside = enter if self.confined else []

    def run(self, *command: str, **variables: str) -> str:
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("OMNI_RL", "RAY_"))} | variables
        done = subprocess.run([*self._inside, *command], capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def omni_rl(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "omni_rl", *arguments, "--directory", str(self.directory))

    def submit(self, kind: str, run: str, *values: str, follow: bool = True) -> str:
        """The job's name."""
        options = [option for value in [f"run={run}", *values] for option in ("--set", value)]
        out = self.omni_rl("submit", kind, *options, "--json", *(["--follow"] if follow else []))
        name: str = json.loads(out.splitlines()[0])["job"]
        return name

    @property
    def state(self) -> ServiceState:
        state = ServiceState.read(self.directory)
        assert state is not None
        return state

    @cached_property
    def client(self) -> Client:
        """Asks once, so that what is refused is seen."""
        return self.asking(Retries(attempts=1))

    def asking(self, retries: Retries | None = None) -> Client:
        return Client(self.state.url, (self.directory / "tokens" / "owner").read_text(), retries=retries or Retries())

    def pids(self, name: str) -> list[int]:
        """Return the ids of the service's processes that are called so."""
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
    with own_shared_memory() as holder:
        service = Service(tmp_path_factory.mktemp("up"), holder)
        try:
            service.omni_rl("up", "--port", "0")
            yield service
            service.client.close()
        finally:
            name = service.state.name
            service.omni_rl("down")
            assert marked(name) == [], "down left processes"


@contextlib.contextmanager
def own_shared_memory() -> Iterator[int | None]:
    """The process that keeps a small /dev/shm, which only root may mount; for another user there is none."""
    mount = f"mount -t tmpfs -o size={SHARED_MEMORY_MB}m tmpfs /dev/shm && echo mounted && exec sleep infinity"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", mount], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            yield holder.pid if holder.stdout.readline() == "mounted\n" else None
        finally:
            holder.kill()


def figures(steps: list[StepLine]) -> list[dict[str, Any]]:
    """What a step amounts to, but for its time and attempt."""
    return [{"step": s.step, "severity": s.severity, "training": s.training, "figures": s.figures} for s in steps]


def test_a_job_that_is_killed_and_resumed_is_bitwise_the_one_that_outlives_its_coordinator(
    service: Service, tmp_path: Path
) -> None:
    values = [*SMALL, "save_every=2"]
    with service.asking() as client:
        job = service.submit("grpo", "parted", *values, "steps=500", follow=False)
        wait_for_steps(client, job, "parted", 3)
        client.stop_job(job)
        while client.job(job).status == "running":
            time.sleep(0.2)
        assert client.state().gate.gate == "open", "a stopped job left the engines paused"
        number = client.steps("parted")[-1].step + 6

        service.submit("grpo", "parted", *values, f"steps={number}", "resume=true")
        resumed = client.steps("parted", attempt=2)

        job = service.submit("grpo", "whole", *values, f"steps={number}", follow=False)
        wait_for_steps(client, job, "whole", 2)
        assert len(client.steps("whole")) < number
        coordinator = service.state.coordinator
        assert coordinator is not None
        os.kill(coordinator.pid, signal.SIGKILL)
        while coordinator.lives:
            time.sleep(0.05)
        service.omni_rl("up")
        while client.job(job).status in ("pending", "running"):
            time.sleep(0.2)
        assert client.job(job).status == "succeeded", client.logs(job)
        assert client.run("whole").activity == "ended"
        whole = client.steps("whole")
        assert [(step.attempt, step.step, step.severity) for step in whole] == [(1, n, "ok") for n in range(number)]
        assert resumed[0].step >= 2
        assert figures(resumed) == figures(whole[resumed[0].step :])

    drawing = tmp_path / "whole.svg"
    service.omni_rl("plot", "whole", "--out", str(drawing))
    assert drawing.read_text().startswith("<svg")


def wait_for_steps(client: Client, job: str, run: str, steps: int) -> None:
    """Wait until the job has so many steps."""
    while run not in {known.run for known in client.runs()} or len(client.steps(run)) < steps:
        assert client.job(job).status in ("pending", "running"), client.logs(job)
        time.sleep(0.2)


def test_ppo_runs_ahead_and_stale_tokens_are_no_drift(service: Service) -> None:
    service.submit(
        "ppo", "stale", "prompts=8", "max_tokens=2", "steps=4", "epochs=2", "minibatches=2", "max_staleness=1"
    )
    with service.asking() as client:
        steps = client.steps("stale")
    assert [step.severity for step in steps] == ["ok"] * 4
    assert any((step.training["staleness"] or 0.0) > 0 for step in steps)


@pytest.mark.parametrize("task", ["words", "halves"])
def test_sound_and_video_are_learned_from_in_agreement(service: Service, task: str) -> None:
    """With the rollout's experts replayed, on other tasks than the digits."""
    if task == "words" and not FOLDER.is_dir():
        pytest.skip("the recordings come with Debian's alsa-utils")
    run = f"of-{task}"
    service.submit("grpo", run, f"task={task}", *SMALL, "steps=2", "router_replay=true")
    with service.asking() as client:
        steps = client.steps(run)
        assert [step.severity for step in steps] == ["ok"] * 2
        assert all(step.samples == 16 and step.tokens > 0 for step in steps)
        kinds = {worst.kind for worst in client.step(run, 1, 1).verdict.worst}
    assert kinds == {"audio" if task == "words" else "video"}


def test_a_job_that_cannot_run_says_why_in_its_log(service: Service) -> None:
    with service.asking() as client:
        job = service.submit("grpo", "lost", "dtype=bfloat16", follow=False)
        while client.job(job).status in ("pending", "running"):
            time.sleep(0.2)
        assert client.job(job).status == "failed"
        assert "dtype bfloat16: the service has float32" in client.logs(job)


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
    if not service.confined:
        pytest.skip("only root may mount a /dev/shm of its own")
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
