"""A service that is started again, in whole or in part, is the one that it was."""

from pathlib import Path

import pytest

from omni_rl.config import load
from omni_rl.errors import ServiceError
from omni_rl.processes import life
from omni_rl.service import up
from omni_rl.service.settings import UpSettings
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
