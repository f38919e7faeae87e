"""Reads what the service did about a step from its API, as anyone sees it: the cause that it found, and how it
acted."""

import time
from dataclasses import dataclass
from typing import Any

from omni_rl.api.events import EventAnswer
from omni_rl.api.runs import DriftAnswer
from omni_rl.api.steps import Verdict
from omni_rl.client.blocking import Client
from omni_rl.consistency.actions import Action, Cause
from omni_rl.errors import ServiceError

LOOK_SECONDS = 0.05
REST_SECONDS = 240.0
"""The seconds for a search, a resync and a recheck; the search alone gives up after 60 s."""


@dataclass(frozen=True)
class Response:
    """The service's response to a step.

    `cause`, `sentence` and `evidence` are what an alarm of the step says; `searched`: the pair was asked for them.
    `action` is as `omni_rl.consistency.actions` has it; `halted`: generation is stopped until a person resumes it.
    `seconds` passed until the run was at rest.
    """

    cause: Cause
    sentence: str
    evidence: list[dict[str, Any]]
    searched: bool
    action: Action
    halted: bool
    seconds: float


def last_event(client: Client) -> int:
    """Return the number of the newest event, to ask for later ones."""
    events = client.event_page(limit=1)
    return events[-1].id if events else 0


def response(client: Client, verdict: Verdict, after: int) -> Response:
    """Wait until the service is done with a sealed step that is not ok, and return what it did since event `after`.

    Raises `ServiceError` if it is not done within `REST_SECONDS`.
    """
    began = time.monotonic()
    drift = _at_rest(client, verdict.run)
    took = time.monotonic() - began
    cause, sentence, evidence = Cause(verdict.cause or Cause.UNKNOWN), verdict.sentence, verdict.evidence
    # The first check asked the pair about what the records do not prove; later checks are about whether it healed.
    checks = client.checks(run=verdict.run, attempt=verdict.attempt, step=verdict.step)
    if checks:
        first = checks[-1]
        cause, sentence, evidence = Cause(first.cause or Cause.UNKNOWN), first.sentence, first.evidence
    action = _action([event for event in _since(client, after) if event.run == verdict.run], drift)
    return Response(cause, sentence, evidence, bool(checks), action, drift.gate == "halted", took)


def _at_rest(client: Client, run: str) -> DriftAnswer:
    deadline = time.monotonic() + REST_SECONDS
    while (drift := client.run(run).drift).pursuit != "nothing":
        if time.monotonic() > deadline:
            raise ServiceError(f"run {run} is {drift.pursuit} for {REST_SECONDS:g} s")
        time.sleep(LOOK_SECONDS)
    return drift


def _since(client: Client, after: int) -> list[EventAnswer]:
    found: list[EventAnswer] = []
    while page := client.event_page(after):
        found += page
        after = page[-1].id
    return found


def _action(events: list[EventAnswer], drift: DriftAnswer) -> Action:
    """Return the action by the run's transitions. A resync that did not help ends in a halt; the resync was the
    action."""
    moved = {(event.kind, event.data["after"]) for event in events if "after" in event.data}
    if ("pursuit", "resyncing") in moved:
        return Action.RESYNC
    if drift.gate == "halted":
        return Action.HALT
    return Action.MASK if drift.severity == "mask" else Action.NONE
