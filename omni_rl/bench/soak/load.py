"""Who asks a service for something during a soak; each runs in a thread of its own until the end."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from omni_rl.api.jobs import GrpoParameters
from omni_rl.api.runs import RunBody
from omni_rl.api.syncs import CheckBody, SyncBody
from omni_rl.bench.own_service import OwnService
from omni_rl.bench.soak.measure import Calls
from omni_rl.client.blocking import Client
from omni_rl.client.retries import Retries
from omni_rl.errors import OmniRLError, SyncRunningError
from omni_rl.media.types import KINDS

PATIENT = Retries(attempts=60)
"""As a job's: it outlives a coordinator's restart."""
SAMPLES, TOKENS = 64, 32
POST_SECONDS, READ_SECONDS, SYNC_SECONDS, CHECK_SECONDS = 0.5, 0.1, 20.0, 30.0
JOB_STEPS = 8
PAGES = ("/", "/metrics", "/healthz", "/v1/runs/posted-0/alarms", "/v1/runs/posted-0/limits")


@dataclass
class Load:
    """On `service`, until `ended`. `acknowledged`: by run, the tokens of every step whose seal was answered."""

    service: OwnService
    calls: Calls
    ended: threading.Event
    seed: int
    acknowledged: dict[str, dict[int, int]] = field(default_factory=dict)
    events: list[int] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)

    def post(self, number: int) -> None:
        """A framework's ranks: a run of its own, a step at a time."""
        rng = np.random.default_rng([self.seed, number])
        run = f"posted-{number}"
        kept = self.acknowledged[run]
        with self.service.client(PATIENT) as client:
            client.create_run(RunBody(run=run, model="none", dtype="bfloat16"))
            for step in _until(self.ended, POST_SECONDS):
                records = _records(rng)
                with self.calls.timed("put part"):
                    client.put_part(run, 1, step, 0, records)
                with self.calls.timed("seal"):
                    client.seal(run, 1, step, parts=1)
                    kept[step] = SAMPLES * TOKENS

    def read(self) -> None:
        """Everything that can be looked at, in turn."""
        headers = {"Authorization": f"Bearer {self.service.token_file.read_text().strip()}"}
        with self.service.client(PATIENT) as client, httpx.Client(base_url=self.service.url, headers=headers) as http:
            for turn in _until(self.ended, READ_SECONDS):
                run = f"posted-{turn % len(self.acknowledged)}"
                last = max(self.acknowledged[run], default=None)
                looks = self._looks(client, run, last) | _pages(http)
                name = list(looks)[turn % len(looks)]
                with self.calls.timed(name):
                    looks[name]()

    def _looks(self, client: Client, run: str, last: int | None) -> dict[str, Callable[[], Any]]:
        looks: dict[str, Callable[[], Any]] = {
            "state": client.state,
            "ready": client.ready,
            "runs": client.runs,
            "run": lambda: client.run(run),
            "syncs": client.syncs,
            "sync": lambda: [client.sync_named(sync.sync) for sync in client.syncs(1)],
            "jobs": client.jobs,
            "event page": client.event_page,
            "session": client.whoami,
        }
        if self.jobs:
            looks |= {"job": lambda: client.job(self.jobs[-1]), "logs": lambda: client.logs(self.jobs[-1])}
        if last is not None:
            looks |= {
                "steps": lambda: client.steps(run, after=max(0, last - 100)),
                "timeline": lambda: client.timeline(run, points=200),
                "step": lambda: client.step(run, 1, last),
                "sample": lambda: client.sample(run, 1, last, client.step(run, 1, last).verdict.worst[0].sample),
            }
        return looks

    def follow(self) -> None:
        """The numbers of all events, as the dashboard would see them."""
        with self.service.client(PATIENT) as client:
            for event in client.events(after=0):
                self.events.append(event.id)
                if self.ended.is_set():
                    return

    def sync(self) -> None:
        """Somebody with a token, beside the job's own syncs."""
        with self.service.client(PATIENT) as client:
            for turn in _until(self.ended, SYNC_SECONDS):
                # A job's sync may be under way: then it is refused, which is an answer.
                with self.calls.timed("sync"), contextlib.suppress(SyncRunningError):
                    client.sync(SyncBody(probe=False), key=f"soak-{turn}")

    def check(self) -> None:
        with self.service.client(PATIENT) as client:
            for _ in _until(self.ended, CHECK_SECONDS):
                with self.calls.timed("check"):
                    client.check(CheckBody(legs=False))

    def learn(self) -> None:
        """One job after the other."""
        with self.service.client(PATIENT) as client:
            for turn in _until(self.ended, 1.0):
                run = f"job-{turn}"
                parameters = GrpoParameters(
                    run=run, steps=JOB_STEPS, prompts=8, group=4, max_tokens=2, learning_rate=1e-4, seed=turn
                )
                with self.calls.timed("submit"):
                    self.jobs.append(client.submit(parameters, key=run).job)
                    self._wait(client, self.jobs[-1])

    def _wait(self, client: Client, job: str) -> None:
        while not self.ended.is_set() and client.job(job).status in ("pending", "running"):
            time.sleep(0.5)


def _pages(http: httpx.Client) -> dict[str, Callable[[], Any]]:
    """What a browser and Prometheus ask for."""

    def get(path: str) -> Callable[[], Any]:
        def ask() -> None:
            try:
                http.get(path).raise_for_status()
            except httpx.HTTPError as error:
                raise OmniRLError(f"{path}: {type(error).__name__}") from error

        return ask

    return {path: get(path) for path in PAGES}


def _until(ended: threading.Event, pause: float) -> Any:
    """0, 1, 2, ... with a pause between them."""
    number = 0
    while not ended.wait(pause):
        yield number
        number += 1


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
                "train_logprobs": rollout + rng.normal(0.0, 0.01, TOKENS),
            }
        )
    return found
