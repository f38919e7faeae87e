"""Looks at a service during a soak: reads everything in turn, as people, browsers and Prometheus do."""

from collections.abc import Callable
from typing import Any

import httpx

from omni_rl.client.blocking import Client
from omni_rl.errors import OmniRLError
from omni_rl_bench.soak.load import PATIENT, Load, until

PAUSE_SECONDS = 0.1
LIMIT = 10
"""How many entries of a list are asked for. Answers that grow with a run would take longer towards its end, whatever
the service does."""
PAGES = ("/", "/metrics", "/healthz", "/v1/runs/{run}/alarms", "/v1/runs/{run}/limits")
"""The routes that the client has no method for."""


def read(load: Load) -> None:
    """Read until the load has ended."""
    token = load.service.token_file.read_text().strip()
    headers = {"Authorization": f"Bearer {token}"}
    address = load.service.url
    with (
        load.service.client(PATIENT) as client,
        httpx.Client(base_url=address, headers=headers, trust_env=False) as http,
    ):
        for turn in until(load.callers.ended, PAUSE_SECONDS):
            runs = list(load.acknowledged.steps)
            looks = _looks(load, client, http, token, runs[turn % len(runs)])
            name = list(looks)[turn % len(looks)]
            with load.calls.timed(name):
                looks[name]()


def _looks(load: Load, client: Client, http: httpx.Client, token: str, run: str) -> dict[str, Callable[[], Any]]:
    """Return the calls by name; those of a step, a job or a check from the moment that there is one."""
    kept = load.acknowledged
    looks: dict[str, Callable[[], Any]] = {page: _page(http, "GET", page.format(run=run)) for page in PAGES}
    looks |= {
        "state": client.state,
        "ready": client.ready,
        "runs": lambda: client.runs(LIMIT),
        "run": lambda: client.run(run),
        "syncs": lambda: client.syncs(LIMIT),
        "sync named": lambda: [client.sync_named(sync.sync) for sync in client.syncs(1)],
        "checks": lambda: client.checks(LIMIT),
        "jobs": lambda: client.jobs(LIMIT),
        "event page": lambda: client.event_page(limit=LIMIT),
        "session": client.whoami,
        "log in": _page(http, "POST", "/v1/session", json={"token": token}),
        "log out": _page(http, "DELETE", "/v1/session"),
    }
    if load.jobs:
        newest = next(reversed(load.jobs))
        looks |= {"job": lambda: client.job(newest), "logs": lambda: client.logs(newest)}
    if kept.checks:
        looks["check numbered"] = lambda: client.check_numbered(max(kept.checks))
    if kept.media:
        looks["media"] = lambda: client.media(next(reversed(kept.media)))
    last = max(kept.steps[run], default=None)
    if last is not None:
        looks |= {
            "steps": lambda: client.steps(run, after=max(0, last - LIMIT)),
            "timeline": lambda: client.timeline(run, first=max(0, last - 10 * LIMIT), points=LIMIT),
            "step": lambda: client.step(run, 1, last),
            "sample": lambda: client.sample(run, 1, last, client.step(run, 1, last).verdict.worst[0].sample),
        }
    return looks


def _page(http: httpx.Client, method: str, path: str, **sent: Any) -> Callable[[], Any]:
    def ask() -> None:
        try:
            http.request(method, path, **sent).raise_for_status()
        except httpx.HTTPError as error:
            raise OmniRLError(f"{method} {path}: {type(error).__name__}") from error

    return ask
