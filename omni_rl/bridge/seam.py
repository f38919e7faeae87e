"""Defines what the coordinator asks of the process that holds the connection to the Ray cluster.

Every method raises `RayUnavailableError` while there is no connection, and says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from omni_rl.api.jobs import JobAnswer, JobKind
from omni_rl.api.syncs import CheckBody, SyncBody
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.limits import Figures
from omni_rl.errors import RayUnavailableError
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Observer


class SyncRequest(SyncBody):
    """What a sync must bring.

    `sync` is the name that it gets, and the same `key` is the same operation. `heal` brings the served weights anew
    where they are not the trainer's: nobody asked for the trainer's weights in their place.
    """

    sync: str
    key: str | None = None
    heal: bool = False


class CheckRequest(CheckBody):
    """What a check must compare.

    `resample`: nothing is explained; the prompts of the step's samples are answered anew, and count in the figures
    beside the probe and those samples.
    """

    resample: bool = False


@dataclass(frozen=True)
class TokenLegs:
    """The legs of one answer: for each leg, by its name, the logprob of its second side less that of its first, token
    by token; a leg may have the first tokens only."""

    sample: str
    kind: str
    legs: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    `figures` are those of trainer against engine by kind; `legs` are the same by name of the leg, and `answers` token
    by token, of the step's answers that could be made again and of the probe's: empty where the search for a cause did
    not reach them. `cause` and `evidence` (one entry a check, cheap ones first; `sentence` sums them up) are None where
    nothing had to be explained.

    `compared` False: the engines' weights did not come from the trainer, whose own copy has others. The engines' bytes
    were proven, and `figures` are those of the posted step that was asked about, if one was.
    """

    version: str
    figures: Figures
    legs: Mapping[str, Figures] = field(default_factory=dict)
    cause: Cause | None = None
    sentence: str = ""
    evidence: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0
    answers: tuple[TokenLegs, ...] = ()
    compared: bool = True


@dataclass(frozen=True)
class ReplicaState:
    """One rollout replica or trainer: which version it serves or has, and how it is."""

    name: str
    role: Literal["rollout", "trainer"]
    version: str
    state: str
    detail: str = ""


@dataclass(frozen=True)
class ClusterState:
    """The state of the cluster. `connected` False: `reason` says what is missing, and `members` is what was known last.

    `slabs` says what is wrong with the weights in shared memory that engines would be brought back to; empty if nothing
    is. `trainer` names the trainer's process: another one has nothing of what this one has learnt.
    """

    connected: bool
    reason: str = ""
    address: str = ""
    run: str | None = None
    gate: Literal["open", "closed", "unknown"] = "unknown"
    members: tuple[ReplicaState, ...] = ()
    dtype: str = "float32"
    slabs: str = ""
    trainer: str = ""


@dataclass(frozen=True)
class JobRequest:
    """A job to submit. `job` is the submission id; a second submission with it changes nothing. Parameters are
    validated already."""

    job: str
    kind: JobKind
    parameters: Mapping[str, Any]


class Bridge(Protocol):
    """The calls to the cluster. One implementation talks to a supervised child process that owns Ray; tests have a
    hand-written one."""

    async def open(self, hold: str | None) -> None:
        """Begin; this call comes first. `hold` says why nothing may be generated, from the first moment on; None:
        generation may go on."""

    async def state(self) -> ClusterState:
        """Return the cluster's state. A lost connection, or a cluster that cannot be looked at, is part of the state,
        and raises nothing."""

    async def sync(self, request: SyncRequest, observe: Observer) -> SyncResult:
        """Run a weight sync to its end; `observe` is called for each phase and replica, in this event loop's thread.

        Raises what `omni_rl.sync.weight_sync.WeightSync.sync` raises.
        """

    async def check(self, request: CheckRequest) -> CheckResult:
        """Compare both policies now."""

    async def pause(self, reason: str) -> None:
        """Close the gate of every replica: generation stops between two engine steps. It may be called again."""

    async def resume(self) -> None:
        """Open the gate of every replica again. Replicas whose weights are not proven stay closed."""

    async def submit(self, request: JobRequest) -> JobAnswer: ...
    async def jobs(self) -> list[JobAnswer]:
        """Return all jobs that the cluster knows; the cost of the call grows with their number."""

    async def job(self, job: str) -> JobAnswer:
        """Return a job. Raises `NotFoundError`."""

    async def stop(self, job: str) -> JobAnswer:
        """Stop a job, and return it. Raises `NotFoundError`."""

    async def logs(self, job: str) -> str:
        """Return all that a job has printed. Raises `NotFoundError`."""

    async def close(self) -> None: ...


class NoBridge:
    """The bridge of a coordinator without a Ray cluster: it judges what other frameworks post, and can do nothing to
    them."""

    def __init__(self, reason: str = "this coordinator was started without a Ray cluster (omni-rl up starts one)"):
        self._reason = reason

    async def open(self, hold: str | None) -> None:
        return None

    async def state(self) -> ClusterState:
        return ClusterState(connected=False, reason=self._reason)

    async def close(self) -> None:
        return None

    async def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RayUnavailableError(self._reason)

    sync = check = pause = resume = submit = jobs = job = stop = logs = _refuse
