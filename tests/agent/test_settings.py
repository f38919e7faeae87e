"""What workers on other hosts, and actors of Ray's, are told so that they have an agent too."""

import os
from typing import Any

import pytest

from omni_rl.agent.settings import CARRIED, AgentSettings, for_actor
from omni_rl.client.settings import ClientSettings
from omni_rl.watch.place import run_name


class Recording(dict[str, str]):
    """An environment that knows which of its variables were asked for."""

    def __init__(self, **variables: str) -> None:
        super().__init__(variables)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def test_whatever_an_agent_and_its_client_read_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Recording(OMNI_RL_AGENT="1", OMNI_RL_RUN="mine")
    monkeypatch.setattr(os, "environ", environment)
    assert AgentSettings.from_environment() is not None
    ClientSettings.of(None, None)
    assert environment.asked == set(CARRIED)


def test_an_agent_and_the_watcher_of_its_run_post_under_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_RL_AGENT", "1")
    for name in ("team/exp 1", "long/" + "name" * 20, "実験", "digits-"):
        monkeypatch.setenv("OMNI_RL_RUN", name)
        settings = AgentSettings.from_environment()
        assert settings is not None
        assert settings.run == run_name(None)


def test_an_actor_is_told_of_its_run_and_never_of_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "OMNI_RL_AGENT": "1",
        "OMNI_RL_RUN": "another",
        "OMNI_RL_URL": "http://coordinator:8400",
        "OMNI_RL_TOKEN": "secret",
        "OMNI_RL_TOKEN_FILE": "/run/token",
        "OMNI_RL_CA_FILE": "/run/authority",
    }.items():
        monkeypatch.setenv(name, value)
    assert for_actor("mine", "rollout-1") == {
        "OMNI_RL_AGENT": "1",
        "OMNI_RL_RUN": "mine",
        "OMNI_RL_AGENT_ENGINE": "rollout-1",
        "OMNI_RL_URL": "http://coordinator:8400",
        "OMNI_RL_TOKEN_FILE": "/run/token",
        "OMNI_RL_CA_FILE": "/run/authority",
    }


@pytest.mark.parametrize("asked", [None, "", "0"])
def test_nobody_who_asks_for_no_agent_changes_an_actors_environment(
    monkeypatch: pytest.MonkeyPatch, asked: str | None
) -> None:
    monkeypatch.setenv("OMNI_RL_URL", "http://coordinator:8400")
    if asked is None:
        monkeypatch.delenv("OMNI_RL_AGENT", raising=False)
    else:
        monkeypatch.setenv("OMNI_RL_AGENT", asked)
    assert for_actor("mine") == {}
