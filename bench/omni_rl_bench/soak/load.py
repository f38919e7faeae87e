"""Gives a service work during a soak; each caller runs in a thread of its own until the end."""

import contextlib
import io
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from omni_rl.api.jobs import GrpoParameters, PpoParameters
from omni_rl.api.runs import RunBody
from omni_rl.api.syncs import CheckBody, SyncBody
from omni_rl.client.blocking import Client
from omni_rl.client.retries import Retries
from omni_rl.errors import NotFoundError, RayUnavailableError, SyncRunningError
from omni_rl.kinds import KINDS
from omni_rl_bench.own_service import OwnService
from omni_rl_bench.soak.acknowledged import Acknowledged
from omni_rl_bench.soak.callers import Callers
from omni_rl_bench.soak.measure import Calls

PATIENT = Retries(attempts=60)
"""Retries as a job's: they outlive a coordinator's restart."""
SAMPLES, TOKENS = 64, 32
POST_SECONDS, MEDIA_SECONDS, SYNC_SECONDS, CHECK_SECONDS, PAUSE_SECONDS = 0.5, 5.0, 20.0, 30.0, 45.0
HELD_SECONDS = 1.0
JOB_STEPS = 8
SYNCS = 10_000
"""More syncs than a soak has."""


@dataclass(frozen=True)
class Job:
    """A job that was submitted for `run`; both times by the monotonic clock."""

    run: str
    began: float
    status: str = "running"
    ended: float = float("inf")


@dataclass
class Load:
    """The callers of `service`, and what they saw.

    `events` are the numbers of events, as they came. `stopped` are jobs that were ended on purpose. `replaced` has by
    sync the Unix second at which engines got successors, or got none, and why.
    """

    service: OwnService
    seed: int
    began: float = field(default_factory=time.time)
    calls: Calls = field(default_factory=Calls)
    callers: Callers = field(default_factory=Callers)
    acknowledged: Acknowledged = field(default_factory=Acknowledged)
    events: list[int] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    replaced: dict[str, tuple[float, dict[str, str]]] = field(default_factory=dict)

    def post(self, run: str) -> None:
        """Post as a framework's ranks do: a run of its own, a step at a time."""
        rng = np.random.default_rng([self.seed, *run.encode()])
        with self.service.client(PATIENT) as client:
            client.create_run(RunBody(run=run, model="none", dtype="bfloat16"))
            for step in until(self.callers.ended, POST_SECONDS):
                records = _records(rng)
                self.acknowledged.posted[run] = step
                with self.calls.timed("put part"):
                    client.put_part(run, 1, step, 0, records)
                with self.calls.timed("seal"):
                    self.acknowledged.step(client.seal(run, 1, step, parts=1).verdict)

    def keep(self) -> None:
        """Upload pictures of samples, no two the same."""
        rng = np.random.default_rng(self.seed)
        with self.service.client(PATIENT) as client:
            for _ in until(self.callers.ended, MEDIA_SECONDS):
                content = _picture(rng)
                with self.calls.timed("put media"):
                    self.acknowledged.media[client.put_media(content, "image/png").digest] = content

    def follow(self) -> None:
        """Follow all events, as the dashboard does."""
        with self.service.client(PATIENT) as client:
            for event in client.events(after=0):
                self.events.append(event.id)
                if event.kind == "sync_ended" and event.data["outcome"] == "committed":
                    self._lost(event.data["sync"], event.at, event.data["replaced"], event.data["out"])
                if self.callers.ended.is_set():
                    return

    def past(self, client: Client) -> None:
        """Take in the syncs of the ledger: the event of a sync that was rolled back says less."""
        for sync in client.syncs(SYNCS):
            self._lost(sync.sync, sync.finished or sync.started, sync.replaced, sync.out)

    def _lost(self, sync: str, at: float, replaced: Mapping[str, str], out: Mapping[str, str]) -> None:
        if lost := {**replaced, **out}:
            self.replaced[sync] = at, lost

    def last_event(self) -> None:
        """Cause an event after the end was called: a follower of events learns of the end with the next one, and in a
        service without load there may be none."""
        with self.service.client(PATIENT) as client:
            # Pausing and resuming are events even where no engine follows them.
            with self.calls.timed("last event"):
                client.pause("soak")
            with self.calls.timed("last event"):
                client.resume()

    def sync(self) -> None:
        """Sync as somebody with a token, beside the job's own syncs."""
        with self.service.client(PATIENT) as client:
            for turn in until(self.callers.ended, SYNC_SECONDS):
                # While a job's sync is under way this one is refused, which is an answer.
                with self.calls.timed("sync"), contextlib.suppress(SyncRunningError):
                    self.acknowledged.sync(client.sync(SyncBody(probe=False), key=f"soak-{turn}"))

    def check(self) -> None:
        with self.service.client(PATIENT) as client:
            for _ in until(self.callers.ended, CHECK_SECONDS):
                with self.calls.timed("check"):
                    self.acknowledged.check(client.check(CheckBody(legs=False)))

    def pause(self) -> None:
        """Stop generation for a moment, as a person does."""
        with self.service.client(PATIENT) as client:
            for _ in until(self.callers.ended, PAUSE_SECONDS):
                with self.calls.timed("pause"):
                    client.pause("soak")
                time.sleep(HELD_SECONDS)
                with self.calls.timed("resume"):
                    client.resume()

    def learn(self) -> None:
        """Run one job after the other, GRPO and PPO in turn; the last one is waited for."""
        with self.service.client(PATIENT) as client:
            for turn in until(self.callers.ended, 1.0):
                self._submit(client, turn)
                for name, job in self.jobs.items():
                    if job.status == "running":
                        self.jobs[name] = _ended(client, name, job)

    def _submit(self, client: Client, turn: int) -> None:
        """Submit a job until that is answered: one whose answer was lost may run, and the same key is the same job."""
        run, known = f"job-{turn}", len(self.jobs)
        while len(self.jobs) == known and not self.callers.ended.wait(1.0):
            with self.calls.timed("submit"):
                self.jobs[client.submit(_parameters(run, turn), key=run).job] = Job(run, time.monotonic())

    def stop_job(self, client: Client) -> bool:
        """End the job that was submitted last; return whether there was one."""
        if not self.jobs:
            return False
        newest = next(reversed(self.jobs))
        self.stopped.add(newest)
        client.stop_job(newest)
        return True


def _ended(client: Client, name: str, job: Job) -> Job:
    """Return the job when it has ended."""
    while (status := _status(client, name)) in ("pending", "running"):
        time.sleep(0.5)
    return replace(job, status=status, ended=time.monotonic())


def _status(client: Client, job: str) -> str:
    try:
        return client.job(job).status
    except RayUnavailableError:  # the state cannot be told now; the job goes on
        return "running"
    except NotFoundError:  # Ray's head, which knew the job, died
        return "lost"


def until(ended: threading.Event, pause: float) -> Iterator[int]:
    """Yield 0, 1, 2, ... with a pause before each."""
    number = 0
    while not ended.wait(pause):
        yield number
        number += 1


def _parameters(run: str, turn: int) -> GrpoParameters | PpoParameters:
    common: dict[str, Any] = {
        "run": run,
        "steps": JOB_STEPS,
        "prompts": 8,
        "max_tokens": 2,
        "learning_rate": 1e-4,
        "seed": turn,
    }
    # GRPO's answers are sampled while a sync brings other weights: each of their tokens has to name its version.
    return (
        GrpoParameters(group=4, max_staleness=1, **common) if turn % 2 == 0 else PpoParameters(minibatches=2, **common)
    )


def _picture(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def _records(rng: np.random.Generator) -> list[dict[str, Any]]:
    found = []
    for sample in range(SAMPLES):
        rollout = -rng.exponential(1.0, TOKENS)
        found.append(
            {
                "sample": f"s{sample}",
                "kind": KINDS[sample % len(KINDS)],
                "prompt_tokens": 8,
                "ids": rng.integers(0, 131_072, TOKENS),
                "rollout_logprobs": rollout,
                "train_logprobs": np.minimum(rollout + rng.normal(0.0, 0.01, TOKENS), 0.0),
            }
        )
    return found
