"""Defines the state of the coordinator itself: sessions, gate, cluster, health."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, StringConstraints

from omni_rl.api.base import NO_NUL, Answer, Body, Name, example
from omni_rl.api.incidents import IncidentAnswer
from omni_rl.api.runs import RunAnswer
from omni_rl.consistency.need import NeedName


class Scope(StrEnum):
    """What a token allows; each scope includes the ones before it. read: look. sync: post steps, sync, check. admin:
    jobs, pause, resume."""

    READ = "read"
    SYNC = "sync"
    ADMIN = "admin"

    def covers(self, needed: "Scope") -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(needed)


class SessionBody(Body):
    """A token, to be exchanged for a session cookie."""

    token: SecretStr = Field(max_length=256, json_schema_extra={"pattern": NO_NUL})

    model_config = example(token="orl_…")  # noqa: S106 - no token


class SessionAnswer(Answer):
    """Who is asking, and what they may do. `open`: there are no tokens, everyone on this machine may do anything."""

    name: str
    scope: Scope
    open: bool

    model_config = example(name="ann", scope="sync", open=False)


class PauseBody(Body):
    """Why generation must stop; everyone sees it."""

    reason: Annotated[str, StringConstraints(pattern=NO_NUL, min_length=1, max_length=512)]

    model_config = example(reason="the node is taken down for maintenance")


class ResumeBody(Body):
    """What must go on; if nothing is given: what a person stopped, and the one run whose drift holds the gate."""

    run: Name | None = Field(default=None, description="End this run's hold alone.")

    model_config = example(run="digits-grpo")


class Hold(Answer):
    """One reason why the gate is closed. `holder` is `person`, or the run whose drift closed it."""

    holder: str
    reason: str
    since: float = Field(description="Unix seconds.")


class GateAnswer(Answer):
    """The gate: generation goes on while nothing holds it. `confirmed`: every replica has confirmed it."""

    gate: Literal["open", "closed"]
    confirmed: bool
    holds: list[Hold]

    model_config = example(
        gate="closed",
        confirmed=True,
        holds=[{"holder": "person", "reason": "maintenance, by ann", "since": 1795500000.0}],
    )


class MemberAnswer(Answer):
    """One rollout replica or trainer."""

    name: str
    role: Literal["rollout", "trainer"]
    version: str
    state: str
    detail: str = ""


class ClusterAnswer(Answer):
    """What the Ray cluster reports of itself; if it is not connected, `reason`, and what was known last."""

    expected: bool = Field(
        default=True, description="False: the coordinator was started alone, and judges what others post."
    )
    connected: bool
    reason: str
    address: str
    run: Name | None
    members: list[MemberAnswer]


class AlarmAnswer(Answer):
    """An incident of kind drift or update as version 0.1 reported it; `IncidentAnswer` says more. `closed` is when it
    was over, null while it is not."""

    alarm: int
    run: str
    attempt: int | None
    step: int | None
    severity: str
    cause: str | None
    sentence: str
    action: str = Field(default="", description="What was done.")
    evidence: dict[str, Any] = Field(default_factory=dict, description="What was found, by the name of the check.")
    opened: float
    closed: float | None


class StateAnswer(Answer):
    """Everything that the head of the dashboard shows."""

    version: str = Field(description="The version of omni-rl.")
    started: float
    gate: GateAnswer
    cluster: ClusterAnswer
    sync: str | None = Field(description="The sync under way; null where there is none.")
    runs: list[RunAnswer]
    needs: dict[NeedName, int] = Field(default_factory=dict, description="How many runs there are of each need.")
    incidents: list[IncidentAnswer] = Field(
        default_factory=list, description="The incidents that are not over, the worst first, at most 100."
    )
    alarms: list[AlarmAnswer] = Field(description="Those of these incidents that version 0.1 called alarms.")


class ReadyAnswer(Answer):
    """Whether the ledger answers, and every actor of the cluster where one is expected."""

    ready: bool
    reason: str = ""

    model_config = example(ready=True, reason="")
