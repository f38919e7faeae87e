"""Starts the service, or what of it is missing, and waits until both policies answer."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings

from omni_rl.api.state import ReadyAnswer
from omni_rl.bridge.devices import require_devices
from omni_rl.bridge.settings import BatchSettings, ClusterSettings, Hosts
from omni_rl.client.blocking import Client
from omni_rl.errors import CheckpointError, CoordinatorUnreachableError, ServiceError
from omni_rl.service.settings import UpSettings
from omni_rl.service.state import MARK, Process, ServiceState
from omni_rl.service.tokens import HASHES, owner_token, ray_token
from omni_rl.sync.ownership import PREFIX

LOOK_SECONDS = 0.5
LOG_LINES = 5
"""Of a process that ended, in the error."""
HEADS = 3
"""How often Ray's head is started. On a machine that is busy it ends by itself: Ray gives a node 30 s, whatever one
sets."""
LOOPBACK = "127.0.0.1"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108, the slabs' own directories are their owner's alone

Say = Callable[[str], None]


def up(settings: UpSettings, say: Say) -> ServiceState:
    """The state of a service whose policies answer. What runs already stays as it is; what is missing is started with
    the settings that the service had, where `settings` has no others set.

    Raises:
        CheckpointError: `model` is no checkpoint.
        ConfigError: the transport needs devices that this machine does not have; nothing was started.
        ServiceError: a process ended, or not everything answered within `ready_seconds`.
    """
    directory = settings.directory.resolve()
    before = _same_run(ServiceState.read(directory))
    if before is not None and before.settings is not None:
        settings = settings.over(before.settings)
    if not (settings.model / "config.json").is_file():
        raise CheckpointError(f"{settings.model} is not a checkpoint directory: it has no config.json")
    require_devices(settings, settings.replicas)
    settings = settings.model_copy(update={"model": settings.model.resolve()})
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = (before or _new(settings)).model_copy(update={"settings": settings})
    state.write(directory)
    if state.head is None or not state.head.lives:
        say(f"starting Ray's head at {state.ray_address}")
        state = _with_head(settings, directory, state)
    if state.coordinator is None or not state.coordinator.lives:
        say(f"starting the coordinator at {state.url}")
        coordinator = _start_coordinator(settings, directory, state)
        state = state.model_copy(update={"coordinator": coordinator})
        state.write(directory)
    return _ready(settings, directory, state, say)


def _same_run(state: ServiceState | None) -> ServiceState | None:
    """What was started before, if anything of it is left: a process, or the weights that it served."""
    if state is None:
        return None
    alive = any(process is not None and process.lives for process in (state.head, state.coordinator))
    return state if alive or (SHARED_MEMORY / f"{PREFIX}{state.name}").exists() else None


def _new(settings: UpSettings) -> ServiceState:
    ray_port, dashboard_port = _free_port(), _free_port()
    return ServiceState(
        name=f"up-{secrets.token_hex(4)}",
        ray_address=f"{LOOPBACK}:{ray_port}",
        dashboard=f"http://{LOOPBACK}:{dashboard_port}",
        # A Unix socket's path has 107 bytes at most, and Ray adds some 70 to this.
        ray_directory=Path(tempfile.mkdtemp(prefix="omni-rl-")),
        url=f"http://{settings.host}:{settings.port or _free_port()}",
    )


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def environment(directory: Path, state: ServiceState) -> dict[str, str]:
    """Of every process that is to reach the service's Ray."""
    return {
        **os.environ,
        MARK: state.name,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ray_token(directory)),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Else Ray's head keeps an entry for each of the last 100,000 calls of any actor, which nobody reads here.
        "RAY_task_events_report_interval_ms": "0",
        # An address that the caller's shell has would draw the actors to another cluster.
        "RAY_ADDRESS": state.ray_address,
    }


def _with_head(settings: UpSettings, directory: Path, state: ServiceState) -> ServiceState:
    state = state.model_copy(update={"head": _start_head(settings, directory, state)})
    state.write(directory)
    return state


def _start_head(settings: UpSettings, directory: Path, state: ServiceState) -> Process:
    # What a killed head left would be taken for the new one's.
    shutil.rmtree(state.ray_directory, ignore_errors=True)
    state.ray_directory.mkdir(mode=0o700)
    host, port = state.ray_address.split(":")
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={host}", f"--port={port}", f"--temp-dir={state.ray_directory}"]
    command += ["--include-dashboard=true", f"--dashboard-host={LOOPBACK}"]
    command += [f"--dashboard-port={state.dashboard.rpartition(':')[2]}"]
    # The agent takes jobs; at Ray's own port, another Ray of this machine would leave this one without it.
    command += [f"--dashboard-agent-listen-port={_free_port()}", f"--dashboard-agent-grpc-port={_free_port()}"]
    command += [f"--object-store-memory={settings.object_store}", f"--ray-client-server-port={_free_port()}"]
    variables = environment(directory, state)
    return _spawn(command, directory / "ray.log", {k: v for k, v in variables.items() if k != "RAY_ADDRESS"})


def _start_coordinator(settings: UpSettings, directory: Path, state: ServiceState) -> Process:
    ledger = settings.ledger or f"sqlite:///{directory / 'ledger.db'}"
    token = owner_token(directory)
    cluster = ClusterSettings(
        address=state.ray_address,
        dashboard=state.dashboard,
        run=state.name,
        model=settings.model.resolve(),
        ledger=ledger,
        dtype=settings.dtype,
        numerics=settings.numerics,
        replicas=settings.replicas,
        world_size=settings.world_size,
        learning_rate=settings.learning_rate,
        **{name: getattr(settings, name) for part in (BatchSettings, Hosts) for name in part.model_fields},
        job_environment={
            "OMNI_RL_URL": state.url,
            "OMNI_RL_TOKEN_FILE": str(token),
            "OMNI_RL_RUN": state.name,
            "OMNI_RL_JOBS": str(directory / "jobs"),
        },
    )
    coordinator = CoordinatorSettings(
        host=settings.host,
        port=int(state.url.rpartition(":")[2]),
        ledger=ledger,
        media=MediaSettings(directory=directory / "media"),
        tokens_file=directory / HASHES,
        weight_roots=tuple(root.resolve() for root in settings.weight_roots),
        cluster=cluster,
    )
    path = directory / "coordinator.json"
    path.write_text(coordinator.model_dump_json(indent=1))
    command = [sys.executable, "-m", "omni_rl_services.coordinator", str(path)]
    return _spawn(command, directory / "coordinator.log", environment(directory, state))


def _spawn(command: list[str], log: Path, variables: dict[str, str]) -> Process:
    """A process that outlives this one, in a group of its own."""
    with log.open("ab") as out:
        child = subprocess.Popen(  # noqa: S603, the command is made here
            command, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    return Process.of(child.pid)


def _ready(settings: UpSettings, directory: Path, state: ServiceState, say: Say) -> ServiceState:
    """Wait until everything answers; the state then."""
    deadline = time.monotonic() + settings.ready_seconds
    said, heads = "", HEADS
    with Client(state.url, owner_token(directory).read_text()) as client:
        while True:
            if state.head is not None and not state.head.lives and heads > 1:
                heads -= 1
                say(f"Ray's head ended while it started, and is started again: {_tail(directory / 'ray.log')}")
                state = _with_head(settings, directory, state)
            for process, log in ((state.head, "ray.log"), (state.coordinator, "coordinator.log")):
                if process is not None and not process.lives:
                    raise ServiceError(f"a process ended while the service started: {_tail(directory / log)}")
            try:
                answer = client.ready()
            except CoordinatorUnreachableError as error:
                answer = ReadyAnswer(ready=False, reason=str(error))
            if answer.ready:
                return state
            if answer.reason != said:
                said = answer.reason
                say(said)
            if time.monotonic() >= deadline:
                raise ServiceError(
                    f"not everything answered within {settings.ready_seconds:g} s: {said}; see the logs in "
                    f"{directory}, and omni-rl down ends what runs"
                )
            time.sleep(LOOK_SECONDS)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
    return f"{log}: " + " | ".join(lines)
