"""What workers on other hosts are told, so that they have an agent too."""

import os
from typing import Any

import pytest

from omni_rl.agent.settings import CARRIED, AgentSettings
from omni_rl.client.settings import ClientSettings


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
