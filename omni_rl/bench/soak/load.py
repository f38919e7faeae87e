"""Who gives a service work during a soak; each runs in a thread of its own until the end."""

import contextlib
import io
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from omni_rl.api.jobs import GrpoParameters, PpoParameters
from omni_rl.api.runs import RunBody
from omni_rl.api.syncs import CheckBody, SyncBody
from omni_rl.bench.own_service import OwnService
from omni_rl.bench.soak.acknowledged import Acknowledged
from omni_rl.bench.soak.callers import Callers
from omni_rl.bench.soak.measure import Calls
from omni_rl.client.blocking import Client
from omni_rl.client.retries import Retries
from omni_rl.errors import RayUnavailableError, SyncRunningError
from omni_rl.kinds import KINDS

PATIENT = Retries(attempts=60)
"""As a job's: it outlives a coordinator's restart."""
SAMPLES, TOKENS = 64, 32
POST_SECONDS, MEDIA_SECONDS, SYNC_SECONDS, CHECK_SECONDS, PAUSE_SECONDS = 0.5, 5.0, 20.0, 30.0, 45.0
HELD_SECONDS = 1.0
JOB_STEPS = 8
SYNCS = 10_000
"""All of a soak."""


@dataclass
class Load:
    """On `service`. `events`: their numbers, as they came. `stopped`: jobs that were ended on purpose. `replaced`: by
    sync, at which Unix second which engines got successors, or got none, and why."""

    service: OwnService
    seed: int
    began: float = field(default_factory=time.time)
    calls: Calls = field(default_factory=Calls)
    callers: Callers = field(default_factory=Callers)
    acknowledged: Acknowledged = field(default_factory=Acknowledged)
    events: list[int] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)
    replaced: dict[str, tuple[float, dict[str, str]]] = field(default_factory=dict)

    def post(self, run: str) -> None:
        """A framework's ranks: a run of its own, a step at a time."""
        rng = np.random.default_rng([self.seed, *run.encode()])
        with self.service.client(PATIENT) as client:
            client.create_run(RunBody(run=run, model="none", dtype="bfloat16"))
            for step in until(self.callers.ended, POST_SECONDS):
                records = _records(rng)
                with self.calls.timed("put part"):
                    client.put_part(run, 1, step, 0, records)
                with self.calls.timed("seal"):
                    self.acknowledged.step(client.seal(run, 1, step, parts=1).verdict)

    def keep(self) -> None:
        """Pictures of samples, no two the same."""
        rng = np.random.default_rng(self.seed)
        with self.service.client(PATIENT) as client:
            for _ in until(self.callers.ended, MEDIA_SECONDS):
                content = _picture(rng)
                with self.calls.timed("put media"):
                    self.acknowledged.media[client.put_media(content, "image/png").digest] = content

    def follow(self) -> None:
        """All events, as the dashboard would see them."""
        with self.service.client(PATIENT) as client:
            for event in client.events(after=0):
                self.events.append(event.id)
                if event.kind == "sync_ended" and event.data["outcome"] == "committed":
                    self._lost(event.data["sync"], event.at, event.data["replaced"], event.data["out"])
                if self.callers.ended.is_set():
                    return

    def past(self, client: Client) -> None:
        """Take in the syncs of the ledger: an event of one that was rolled back says less."""
        for sync in client.syncs(SYNCS):
            self._lost(sync.sync, sync.finished or sync.started, sync.replaced, sync.out)

    def _lost(self, sync: str, at: float, replaced: Mapping[str, str], out: Mapping[str, str]) -> None:
        if lost := {**replaced, **out}:
            self.replaced[sync] = at, lost

    def last_event(self) -> None:
        """One after the end was called: who follows events learns of the end with the next one, and in a service
        without load there may be none."""
        with self.service.client(PATIENT) as client:
            client.pause("soak")
            client.resume()

    def sync(self) -> None:
        """Somebody with a token, beside the job's own syncs."""
        with self.service.client(PATIENT) as client:
            for turn in until(self.callers.ended, SYNC_SECONDS):
                # A job's sync may be under way: then it is refused, which is an answer.
                with self.calls.timed("sync"), contextlib.suppress(SyncRunningError):
                    self.acknowledged.sync(client.sync(SyncBody(probe=False), key=f"soak-{turn}"))

    def check(self) -> None:
        with self.service.client(PATIENT) as client:
            for _ in until(self.callers.ended, CHECK_SECONDS):
                with self.calls.timed("check"):
                    self.acknowledged.check(client.check(CheckBody(legs=False)))

    def pause(self) -> None:
        """A person who holds generation for a moment."""
        with self.service.client(PATIENT) as client:
            for _ in until(self.callers.ended, PAUSE_SECONDS):
                with self.calls.timed("pause"):
                    client.pause("soak")
                time.sleep(HELD_SECONDS)
                with self.calls.timed("resume"):
                    client.resume()

    def learn(self) -> None:
        """One job after the other, GRPO and PPO in turn; the last one is waited for."""
        with self.service.client(PATIENT) as client:
            for turn in until(self.callers.ended, 1.0):
                run = f"job-{turn}"
                with self.calls.timed("submit"):
                    self.jobs.append(client.submit(_parameters(run, turn), key=run).job)
                while self.jobs and _runs(client, self.jobs[-1]):
                    time.sleep(0.5)

    def stop_job(self, client: Client) -> bool:
        """End the job that was submitted last; whether there is one."""
        if not self.jobs:
            return False
        self.stopped.add(self.jobs[-1])
        client.stop_job(self.jobs[-1])
        return True


def _runs(client: Client, job: str) -> bool:
    try:
        return client.job(job).status in ("pending", "running")
    except RayUnavailableError:  # nobody can say; the job goes on
        return True


def until(ended: threading.Event, pause: float) -> Iterator[int]:
    """0, 1, 2, ... with a pause before each."""
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
    return GrpoParameters(group=4, **common) if turn % 2 == 0 else PpoParameters(minibatches=2, **common)


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
