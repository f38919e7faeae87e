"""The agent's settings, from its environment; nothing heavy is imported here."""

import os
import re
import socket
from dataclasses import dataclass

from omni_rl.errors import ConfigError
from omni_rl.run_names import fitting_run_name

AGENT = "OMNI_RL_AGENT"
"""The variable with the coordinator's address, or 1 for the one that OMNI_RL_URL names; unset or 0: no agent."""
_NONE = ("", "0")
RUN = "OMNI_RL_RUN"
ENGINE_NAME = "OMNI_RL_AGENT_ENGINE"
EVERY = "OMNI_RL_AGENT_EVERY"
SHOWN = (AGENT, RUN, ENGINE_NAME, EVERY, "OMNI_RL_URL", "OMNI_RL_TOKEN_FILE", "OMNI_RL_CA_FILE")
CARRIED = (*SHOWN, "OMNI_RL_TOKEN")
"""The variables that workers on other hosts need as well. Ray shows everybody the variables that an actor is started
with: `SHOWN` are those that are no secret."""
_UNUSABLE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class AgentSettings:
    """The settings of an agent.

    `url` is the coordinator's address; None: the one that OMNI_RL_URL names. `run` is the run's name as the coordinator
    takes it. `engine` is the engine's name; empty: it is made of host and start. `every` is the number of model
    executions after which the weights are fingerprinted though nothing is known to have touched them; 0: never.
    """

    url: str | None
    run: str
    engine: str = ""
    every: int = 1000

    @classmethod
    def from_environment(cls) -> "AgentSettings | None":
        """Read the settings; None where no agent is asked for. Raises `ConfigError` for values that are not valid."""
        asked = os.environ.get(AGENT, "")
        if asked in _NONE:
            return None
        if asked != "1" and not asked.startswith(("http://", "https://")):
            raise ConfigError(f"{AGENT}={asked} is neither 1 nor the address of a coordinator")
        run = os.environ.get(RUN, "")
        if not run:
            raise ConfigError(f"{AGENT} is set, but {RUN} does not say of which run the engine is")
        every = os.environ.get(EVERY, "1000")
        if not every.isdecimal():
            raise ConfigError(f"{EVERY}={every} is no number")
        return cls(None if asked == "1" else asked, fitting_run_name(run), os.environ.get(ENGINE_NAME, ""), int(every))

    def name_of(self, start: str, replica: int) -> str:
        """Return the engine's name: what was set, or its host and this start of it; with the number of its
        data-parallel replica, if that is not the first."""
        name = self.engine or f"{socket.gethostname()}-{start}"
        return _UNUSABLE.sub("-", f"{name}-{replica}" if replica else name)[-64:].lstrip("._-")


def for_actor(run: str, engine: str = "") -> dict[str, str]:
    """Return the variables that give a Ray actor an agent of `run`, as an engine of that name; none where this process
    is asked for no agent."""
    if os.environ.get(AGENT, "") in _NONE:
        return {}
    carried = {name: os.environ[name] for name in SHOWN if name in os.environ}
    return {**carried, RUN: run, **({ENGINE_NAME: engine} if engine else {})}
