"""A service that is started again, in whole or in part, is the one that it was."""

import contextlib
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from omni_rl.config import load
from omni_rl.errors import CheckpointError, ConfigError, ServiceError
from omni_rl.locks import FileLock
from omni_rl.processes import life
from omni_rl.service import up
from omni_rl.service.settings import SMALL_CHECKPOINT, UpSettings
from omni_rl.service.state import Process, ServiceState


def given(**flags: object) -> UpSettings:
    return load(None, {f"up.{name}": value for name, value in flags.items()}).up


def test_what_is_not_said_again_stays_as_it_was() -> None:
    first = given(replicas=2, world_size=1, dtype="bfloat16", learning_rate=1e-4, directory="here", ready_seconds=9.0)
    assert given().over(first) == first.model_copy(update={"directory": Path("runs/up"), "ready_seconds": 300.0})
    again = given(replicas=3, directory="there").over(first)
    assert (again.replicas, again.world_size, again.dtype, again.directory) == (3, 1, "bfloat16", Path("there"))
    assert given(replicas=1).over(first).replicas == 1  # said, though it is the default


def test_the_coordinator_of_a_service_that_lost_it_keeps_as_many_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = Process.of(1)
    assert life(head.pid) != "gone"
    started: list[UpSettings] = []

    def start(settings: UpSettings, directory: Path, state: ServiceState) -> Process:
        started.append(settings)
        return head

    monkeypatch.setattr(up, "_start_head", start)
    monkeypatch.setattr(up, "_start_coordinator", start)
    monkeypatch.setattr(up, "_ready", lambda settings, directory, state, say: state)
    up.up(given(directory=str(tmp_path), replicas=2, world_size=1, port=0), print)
    state = ServiceState.read(tmp_path)
    assert state is not None
    assert len(started) == 2
    state.model_copy(update={"coordinator": None}).write(tmp_path)  # killed
    assert up.up(given(directory=str(tmp_path)), print).url == state.url
    assert [(settings.replicas, settings.world_size) for settings in started] == [(2, 1)] * 3


def test_a_service_of_an_older_version_has_no_settings(tmp_path: Path) -> None:
    state = ServiceState(
        name="up-1", ray_address="127.0.0.1:1", dashboard="http://127.0.0.1:2", ray_directory=tmp_path, url="http://x"
    )
    (tmp_path / "state.json").write_text(state.model_dump_json(exclude={"settings"}))
    assert ServiceState.read(tmp_path) == state
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ServiceError):
        ServiceState.read(tmp_path)


def test_a_service_that_runs_is_not_asked_for_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "_start_head", lambda *_: Process.of(1))
    monkeypatch.setattr(up, "_start_coordinator", lambda *_: Process.of(1))
    monkeypatch.setattr(up, "_ready", lambda settings, directory, state, say: state)
    state = up.up(given(directory=str(tmp_path), replicas=2, port=0), print)
    with pytest.raises(ConfigError, match=r"replicas 2, not 3: run omni-rl down first"):
        up.up(given(directory=str(tmp_path), replicas=3), print)
    same = given(directory=str(tmp_path), replicas=2, model=SMALL_CHECKPOINT, ready_seconds=9.0)
    assert up.up(same, print).url == state.url


@pytest.mark.slow
def test_whoever_interrupts_the_start_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Process] = []

    def start(settings: UpSettings, directory: Path, state: ServiceState) -> Process:
        command, log = ["sleep", "600"], directory / "sleep.log"
        started.append(up._spawn(command, log, up.environment(directory, state)))
        return started[-1]

    def interrupted(*_: object) -> ServiceState:
        raise KeyboardInterrupt

    monkeypatch.setattr(up, "_start_head", start)
    monkeypatch.setattr(up, "_start_coordinator", start)
    monkeypatch.setattr(up, "_ready", interrupted)
    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        up.up(given(directory=str(tmp_path), port=0), heard.append)
    assert len(started) == 2
    for process in started:
        with pytest.raises(ProcessLookupError):  # not even as a child that nobody has reaped
            os.kill(process.pid, 0)
    assert heard[-1] == "interrupted: what was started is ended"
    assert ServiceState.read(tmp_path) is None


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ServiceError, match=f"port {port} of 127.0.0.1 is taken"):
            up.up(given(directory=str(tmp_path), port=port), print)
    assert ServiceState.read(tmp_path) is None


def test_two_starts_at_once_in_one_directory_are_one(tmp_path: Path) -> None:
    with contextlib.closing(FileLock(tmp_path / "up.lock")) as other:
        other.take("4711")
        with pytest.raises(
            ServiceError, match=r"process 4711 is starting the service in .*: wait until it has, or end"
        ):
            up.up(given(directory=str(tmp_path)), print)
    assert ServiceState.read(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "qwen2"}, "the checkpoint is a 'qwen2' model"),
        ({"llm_config": {"hidden_size": 32}}, "misshapen|size|shape"),
    ],
)
def test_a_checkpoint_that_can_never_be_served_is_said_before_anything_starts(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(SMALL_CHECKPOINT, model)
    config = json.loads((model / "config.json").read_text())
    for name, value in change.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, ConfigError), match=says):
        up.up(given(directory=str(tmp_path / "up"), model=model, port=0), print)
    assert ServiceState.read(tmp_path / "up") is None


def test_a_directory_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"up\.directory .*file/up cannot be made"):
        up.up(given(directory=str(tmp_path / "file" / "up")), print)
