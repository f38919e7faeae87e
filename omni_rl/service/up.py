"""Starts the service, or what of it is missing, and waits until both policies answer."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from omni_rl_services.coordinator.server import bind
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings

from omni_rl.api.state import ReadyAnswer
from omni_rl.bridge.devices import require_devices
from omni_rl.bridge.settings import BatchSettings, ClusterSettings, Hosts
from omni_rl.client.blocking import Client
from omni_rl.errors import ConfigError, CoordinatorUnreachableError, ServiceError, UnauthenticatedError
from omni_rl.service.directory import held, prepared, write_private
from omni_rl.service.down import down
from omni_rl.service.ports import LOOPBACK, free_port
from omni_rl.service.servable import require_servable
from omni_rl.service.settings import OF_A_CALL, UpSettings
from omni_rl.service.state import MARK, Process, ServiceState
from omni_rl.service.tokens import HASHES, owner_token, ray_token
from omni_rl.sync.ownership import PREFIX, SHARED_MEMORY

LOOK_SECONDS = 0.5
LOG_LINES = 5
"""How many last lines of an ended process's log its error shows."""
HEADS = 3
"""How often Ray's head is started. On a busy machine the head ends by itself: Ray gives a node 30 s, whatever one
sets."""
NODES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else Ray's head keeps an entry for each of the last 100,000 calls of any actor, which nobody reads here.
    "RAY_task_events_report_interval_ms": "0",
    # Else Ray takes a page of its store when it first writes there, and one that a full /dev/shm refuses ends the node
    # with SIGBUS, and every actor with it.
    "RAY_preallocate_plasma_memory": "1",
}
"""Environment variables of every process that is, or starts, a Ray node."""
RAY = "r"
"""The name of Ray's directory within a directory of the service's own: Ray lets every user into the one that it is
given, but not into that one."""
Say = Callable[[str], None]


def up(settings: UpSettings, say: Say) -> ServiceState:
    """Start the service, or what of it is missing, with the settings that it had, and return its state once its
    policies answer. What runs already stays as it is.

    If the start of a new service is interrupted, the service is ended; what ran before is left alone.

    Raises:
        CheckpointError: `model` is no checkpoint that an engine could serve; nothing was started.
        ConfigError: the transport needs devices that this machine does not have, the directory cannot be written to, or
            the service runs with other settings; nothing was started.
        ServiceError: the port is taken, a process ended, not everything answered within `ready_seconds`, or another
            process starts the service of this directory just now.
    """
    directory = settings.directory.resolve()
    _intended(settings, directory)  # what is refused leaves no directory behind
    prepared(directory, "up.directory")
    # Of two services that start in one directory, one would be left that its state does not name.
    with held(directory / "up.lock", lambda holder: _is_starting(holder, directory)):
        return _up(*_intended(settings, directory), directory, say)


def _is_starting(holder: str, directory: Path) -> ServiceError:
    return ServiceError(f"process {holder} is starting the service in {directory}: wait until it has, or end it")


def _intended(settings: UpSettings, directory: Path) -> tuple[UpSettings, ServiceState | None]:
    """Return the settings that the service is to have, and the state of the one that runs, if one does.

    Raises:
        CheckpointError: `model` is no checkpoint that an engine could serve.
        ConfigError: this machine lacks the transport's devices, or the service runs with other settings.
    """
    before = _same_run(ServiceState.read(directory))
    if before is not None and before.settings is not None:
        _require_same(settings, before)
        settings = settings.over(before.settings)
    settings = settings.model_copy(update={"model": settings.model.resolve()})
    if before is None:
        require_devices(settings, settings.replicas)  # the quicker answer first
        require_servable(settings.model)
    return settings, before


def _up(settings: UpSettings, before: ServiceState | None, directory: Path, say: Say) -> ServiceState:
    if before is None and settings.port:
        bind(settings.host, settings.port).close()
    state = (before or _new(settings)).model_copy(update={"settings": settings})
    state.write(directory)
    try:
        return _started(settings, directory, state, say)
    except KeyboardInterrupt:
        if before is None:
            say("interrupted: what was started is ended")
            down(directory)
        raise


def _started(settings: UpSettings, directory: Path, state: ServiceState, say: Say) -> ServiceState:
    if state.head is None or not state.head.lives:
        say(f"starting Ray's head at {state.ray_address}")
        state = _with_head(settings, directory, state)
    if state.coordinator is None or not state.coordinator.lives:
        say(f"starting the coordinator at {state.url}")
        coordinator = _start_coordinator(settings, directory, state)
        state = state.model_copy(update={"coordinator": coordinator})
        state.write(directory)
    return _ready(settings, directory, state, say)


def _require_same(settings: UpSettings, before: ServiceState) -> None:
    """Raise `ConfigError` where a running service was started with other settings than are set now."""
    assert before.settings is not None
    given = {name: getattr(settings, name) for name in settings.model_fields_set - set(OF_A_CALL)}
    if "model" in given:
        given["model"] = settings.model.resolve()
    other = {name: value for name, value in given.items() if value != getattr(before.settings, name)}
    if other:
        has = ", ".join(f"{name} {getattr(before.settings, name)}, not {value}" for name, value in other.items())
        raise ConfigError(f"the service in {settings.directory} was started with {has}: run omni-rl down first")


def _same_run(state: ServiceState | None) -> ServiceState | None:
    """Return `state` if anything of that service is left, a process or the weights that it served; else None."""
    if state is None:
        return None
    alive = any(process is not None and process.lives for process in (state.head, state.coordinator))
    return state if alive or (SHARED_MEMORY / f"{PREFIX}{state.name}").exists() else None


def _new(settings: UpSettings) -> ServiceState:
    ray_port, dashboard_port = free_port(), free_port()
    return ServiceState(
        name=f"up-{secrets.token_hex(4)}",
        ray_address=f"{LOOPBACK}:{ray_port}",
        dashboard=f"http://{LOOPBACK}:{dashboard_port}",
        # A Unix socket's path has 107 bytes at most, and Ray adds some 70 to this.
        ray_directory=Path(tempfile.mkdtemp(prefix="omni-rl-")) / RAY,
        url=f"http://{settings.host}:{settings.port or free_port()}",
    )


def environment(directory: Path, state: ServiceState) -> dict[str, str]:
    """Return the environment of every process that is to reach the service's Ray cluster."""
    return {
        **os.environ,
        MARK: state.name,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ray_token(directory)),
        **NODES,
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
    state.ray_directory.mkdir(mode=0o700, parents=True)
    host, port = state.ray_address.split(":")
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={host}", f"--port={port}", f"--temp-dir={state.ray_directory}"]
    command += ["--include-dashboard=true", f"--dashboard-host={LOOPBACK}"]
    command += [f"--dashboard-port={state.dashboard.rpartition(':')[2]}"]
    # The agent takes jobs; at Ray's own port, another Ray of this machine would leave this one without it.
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
    command += [f"--object-store-memory={settings.object_store}", f"--ray-client-server-port={free_port()}"]
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
    write_private(path, coordinator.model_dump_json(indent=1))
    command = [sys.executable, "-m", "omni_rl_services.coordinator", str(path)]
    # Where OMNI_RL_AGENT=1 asks for agents in the service's engines, they find it by these.
    variables = {**environment(directory, state), "OMNI_RL_URL": state.url, "OMNI_RL_TOKEN_FILE": str(token)}
    return _spawn(command, directory / "coordinator.log", variables)


def _spawn(command: list[str], log: Path, variables: dict[str, str]) -> Process:
    """Start a process that outlives this one, in a session of its own."""
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        child = subprocess.Popen(  # noqa: S603, the command is made here
            command, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    started = Process.of(child.pid)
    # A process that ended counts as gone once its parent has reaped it, and `down` waits for that.
    threading.Thread(target=child.wait, name=f"reaper of {child.pid}", daemon=True).start()
    return started


def _ready(settings: UpSettings, directory: Path, state: ServiceState, say: Say) -> ServiceState:
    """Wait until everything answers, and return the state then."""
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
                _require_ours(client, state)
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


def _require_ours(client: Client, state: ServiceState) -> None:
    """Raise `ServiceError` if what answers at the service's address is another service."""
    try:
        run = client.state().cluster.run
    except UnauthenticatedError:
        run = None  # it does not know our token
    if run != state.name:
        raise ServiceError(f"another service answers at {state.url}: end it, or choose another up.port")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-LOG_LINES:]
    return f"{log}: " + " | ".join(lines)
