"""A Ray cluster that is not there: hand-written, with a record of what it was asked."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omni_rl.api.jobs import JobAnswer
from omni_rl.bridge.seam import (
    CheckRequest,
    CheckResult,
    ClusterState,
    JobRequest,
    ReplicaState,
    SyncRequest,
    TokenLegs,
)
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.limits import Figures
from omni_rl.errors import NotFoundError, OmniRLError, RayUnavailableError
from omni_rl.ledger.sync_journal import LedgerJournal
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Observer, Phase, SyncEvent

AGREE: Figures = {
    "overall": {"tokens": 160, "logprob_abs_diff_mean": 7e-7, "logprob_abs_diff_max": 4e-6, "gen_kl_error": 5e-13},
    "image": {"tokens": 32, "logprob_abs_diff_mean": 8e-7, "logprob_abs_diff_max": 6e-6, "gen_kl_error": 6e-13},
}
PART: Figures = {
    "overall": {"tokens": 160, "logprob_abs_diff_mean": 0.2, "logprob_abs_diff_max": 3.0, "gen_kl_error": 0.9},
    "image": {"tokens": 32, "logprob_abs_diff_mean": 0.9, "logprob_abs_diff_max": 3.0, "gen_kl_error": 5.2},
}
LOST: Figures = {
    "overall": {"tokens": 160, "logprob_abs_diff_mean": math.nan, "logprob_abs_diff_max": math.nan},
    "image": {"tokens": 32, "logprob_abs_diff_mean": math.inf, "logprob_abs_diff_max": math.inf},
    "video": {"tokens": 0, "logprob_abs_diff_mean": math.nan, "logprob_abs_diff_max": math.nan},
}
THEIRS = "agreement is measured where their own trainer posts its scores"
MODULES = ("embeddings", "layers.0.mixer", "layers.1.mixer", "norm", "logits")
TOKENS = 16
PHASES = (Phase.PREPARE, Phase.PAUSE, Phase.APPLY, Phase.VERIFY, Phase.COMMIT, Phase.RESUME, Phase.IDLE)


@dataclass
class FakeBridge:
    """`calls`: what it was asked, in order. `down`: why Ray does not answer. `go`: syncs wait for it. `journal`: where
    it keeps its syncs, as a bridge does. `renamed`: other names of its model's modules. `published`: its engines have
    weights that were published. `nonfinite`: what is not finite in the next weights, where that is allowed.
    `gate_error`: why its engines do not move their gates. `run`: whose policies it hosts."""

    calls: list[str] = field(default_factory=list)
    down: str | None = None
    open_gate: bool = True
    version: str = "digits/1/0/00000000"
    figures: Figures = field(default_factory=lambda: AGREE)
    cause: Cause | None = None
    sync_error: OmniRLError | None = None
    go: asyncio.Event = field(default_factory=asyncio.Event)
    submitted: dict[str, JobAnswer] = field(default_factory=dict)
    requests: list[SyncRequest] = field(default_factory=list)
    checks: list[CheckRequest] = field(default_factory=list)
    journal: LedgerJournal | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    published: bool = False
    nonfinite: tuple[str, ...] = ()
    gate_error: OmniRLError | None = None
    run: str = "digits"

    def __post_init__(self) -> None:
        self.go.set()

    async def open(self, hold: str | None) -> None:
        self.open_gate = hold is None

    async def state(self) -> ClusterState:
        if self.down is not None:
            return ClusterState(connected=False, reason=self.down)
        members = (
            ReplicaState("rollout-0", "rollout", self.version, "serving"),
            ReplicaState("trainer", "trainer", self.version, "idle"),
        )
        gate = "open" if self.open_gate else "closed"
        return ClusterState(True, "", "127.0.0.1:6379", self.run, gate, members)  # type: ignore[arg-type]

    async def sync(self, request: SyncRequest, observe: Observer) -> SyncResult:
        self._called("sync")
        self.requests.append(request)
        try:
            for phase in PHASES:
                await self._enter(request, phase, observe)
        except OmniRLError as error:
            given_up = SyncResult(request.sync, "rolled_back", "", self.version, reason=str(error))
            await self._finish(given_up)
            raise
        if request.source == "served":
            return SyncResult(request.sync, "committed", self.version, self.version)
        self.published = request.source == "published" or (request.heal and self.published)
        if not request.heal or not self.published:
            self.version = f"digits/1/{len(self.requests)}/9f2c3c1d"
        result = SyncResult(
            sync=request.sync,
            outcome="committed",
            version=self.version,
            serving=self.version,
            tensors=168,
            bytes=2_961_408,
            elements_proven=1_480_704,
            elements=1_480_704,
            seconds={"prepare": 0.2, "apply": 0.01, "verify": 0.08},
            stall=0.12,
            agreement=self.figures if request.probe else None,
            origin="published" if self.published else "trainer",
            nonfinite=self.nonfinite,
            allow_nonfinite=request.allow_nonfinite,
        )
        await self._finish(result)
        return result

    async def _enter(self, request: SyncRequest, phase: Phase, observe: Observer) -> None:
        event = SyncEvent(request.sync, phase, "entered")
        observe(event)
        if self.journal is not None:
            if phase is Phase.PREPARE:
                epoch = await asyncio.to_thread(self.journal.next_epoch, None)
                await asyncio.to_thread(self.journal.begin, request.sync, request.key, epoch, "/slab-1", request.mode)
            self.journal.observe(event)
        if phase is Phase.APPLY:
            await self.go.wait()
            if self.sync_error is not None:
                raise self.sync_error

    async def _finish(self, result: SyncResult) -> None:
        if self.journal is not None:
            epoch = await asyncio.to_thread(self.journal.next_epoch, None)
            await asyncio.to_thread(self.journal.finish, result.sync, epoch, result.to_json())

    async def check(self, request: CheckRequest) -> CheckResult:
        self._called("check")
        self.checks.append(request)
        sentence = "" if self.cause is None else f"the {self.cause} check found it"
        if self.published:
            return CheckResult(self.version, {}, cause=self.cause, sentence=sentence or THEIRS, compared=False)
        legs = ("train_vs_prefill", "prefill_vs_decode", "batch_vs_alone") if request.legs else ()
        return CheckResult(
            self.version,
            self.figures,
            dict.fromkeys(legs, self.figures),
            self.cause,
            sentence,
            evidence=self._evidence(request),
            answers=tuple(_answer(kind, legs) for kind in ("text", "image") if legs),
        )

    def _evidence(self, request: CheckRequest) -> tuple[Mapping[str, Any], ...]:
        """As a bridge finds it: the outputs of the second layer part where a cause was found."""
        found: list[Mapping[str, Any]] = []
        if request.reference:
            reference = {"check": "reference", "result": "suspicious", "sentence": "the engine is far from float32"}
            found.append({**reference, "train_mean": 3e-7, "engine_mean": 0.9, "modalities": ["image"]})
        if request.localise:
            far = 1e-7 if self.cause is None else 0.5
            apart = [0.0, 1e-7, far, far, math.inf if self.cause is Cause.KERNEL else far]
            modules = {self.renamed.get(name, name): [d, 1e-5] for name, d in zip(MODULES, apart, strict=True)}
            result = "clear" if self.cause is None else "explains"
            found.append(
                {"check": "localisation", "result": result, "sentence": "as it is", "row": 3.0, "modules": modules}
            )
        return tuple(found)

    async def pause(self, reason: str) -> None:
        self._called("pause")
        if self.gate_error is not None:
            raise self.gate_error
        self.open_gate = False

    async def resume(self) -> None:
        self._called("resume")
        self.open_gate = True

    async def submit(self, request: JobRequest) -> JobAnswer:
        self._called("submit")
        job = JobAnswer(
            job=request.job,
            kind=request.kind,
            status="running",
            submitted=time.time(),
            parameters=dict(request.parameters),
        )
        return self.submitted.setdefault(request.job, job)

    async def jobs(self) -> list[JobAnswer]:
        self._called("jobs")
        return list(self.submitted.values())

    async def job(self, job: str) -> JobAnswer:
        self._called("job")
        return self._job(job)

    async def stop(self, job: str) -> JobAnswer:
        self._called("stop")
        self.submitted[job] = self._job(job).model_copy(update={"status": "stopped", "ended": time.time()})
        return self.submitted[job]

    async def logs(self, job: str) -> str:
        self._called("logs")
        return f"{self._job(job).job}: step 1 of 50\n"

    async def close(self) -> None:
        return None

    def _called(self, what: str) -> None:
        if self.down is not None:
            raise RayUnavailableError(self.down)
        self.calls.append(what)

    def _job(self, name: str) -> JobAnswer:
        if name not in self.submitted:
            raise NotFoundError(f"there is no job {name!r}")
        return self.submitted[name]


def _answer(kind: str, legs: Sequence[str]) -> TokenLegs:
    """Its later tokens lie further apart; one is no number."""
    d = [1e-7 * (at - TOKENS / 2) for at in range(TOKENS - 1)]
    return TokenLegs(kind, kind, dict.fromkeys(legs, (*d, math.nan)))
