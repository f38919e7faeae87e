"""Remembers what the service acknowledged during a soak, and finds what of that is missing afterwards."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from omni_rl.api.steps import StepLine, Verdict
from omni_rl.api.syncs import CheckAnswer, SyncAnswer
from omni_rl.client.blocking import Client
from omni_rl.errors import NotFoundError
from omni_rl.kinds import OVERALL

PAGE = 10_000
FIGURE = "logprob_abs_diff_mean"
T = TypeVar("T")
StepFacts = tuple[int, str, float | None]
"""A step's tokens, its severity, and the figure of all tokens."""


@dataclass
class Acknowledged:
    """What the service acknowledged. Each entry is made after its answer came, by one thread alone, and never changed.

    `posted` is the last step of each run that was tried. `steps` are by run and number, `syncs` by name (outcome and
    version), `checks` by number (version and severity), `media` by digest.
    """

    posted: dict[str, int] = field(default_factory=dict)
    steps: dict[str, dict[int, StepFacts]] = field(default_factory=dict)
    syncs: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    checks: dict[int, tuple[str, str]] = field(default_factory=dict)
    media: dict[str, bytes] = field(default_factory=dict)

    def step(self, verdict: Verdict) -> None:
        figure = verdict.figures[OVERALL].get(FIGURE)
        self.steps[verdict.run][verdict.step] = (verdict.tokens, verdict.severity, figure)

    def sync(self, answer: SyncAnswer) -> None:
        if answer.state == "finished":
            self.syncs[answer.sync] = (answer.outcome, answer.version)

    def check(self, answer: CheckAnswer) -> None:
        self.checks[answer.check] = (answer.version, answer.severity)

    def counts(self) -> dict[str, int]:
        return {
            "steps": sum(len(kept) for kept in self.steps.values()),
            "syncs": len(self.syncs),
            "checks": len(self.checks),
            "media": len(self.media),
        }

    def lost(self, client: Client) -> list[str]:
        """Return the names of what is missing, or is not what was acknowledged."""
        return [*self._lost_steps(client), *self._lost_others(client)]

    def twice(self, client: Client) -> list[str]:
        """Return the names of what is there more than once, or was never posted."""
        found = []
        for run, last in self.posted.items():
            there = Counter(line.step for line in client.steps(run, limit=PAGE))
            found += [f"step {run}/{step}" for step, count in there.items() if count > 1 or step > last]
        syncs = Counter(sync.sync for sync in client.syncs(PAGE))
        return found + [f"sync {name}" for name, count in syncs.items() if count > 1]

    def _lost_steps(self, client: Client) -> Iterator[str]:
        for run, kept in self.steps.items():
            there = {line.step: _facts(line) for line in client.steps(run, limit=PAGE)}
            yield from (f"step {run}/{step}" for step, facts in kept.items() if there.get(step) != facts)

    def _lost_others(self, client: Client) -> Iterator[str]:
        yield from _differing("sync", self.syncs, lambda name: _outcome(client.sync_named(name)))
        yield from _differing("check", self.checks, lambda number: _severity(client.check_numbered(number)))
        yield from _differing("media", self.media, client.media)


def _differing(what: str, kept: Mapping[T, object], ask: Callable[[T], object]) -> Iterator[str]:
    for name, facts in kept.items():
        try:
            same = ask(name) == facts
        except NotFoundError:
            same = False
        if not same:
            yield f"{what} {name}"


def _facts(line: StepLine) -> StepFacts:
    return line.tokens, line.severity, line.figures.get(FIGURE)


def _outcome(answer: SyncAnswer) -> tuple[str | None, str]:
    return answer.outcome, answer.version


def _severity(answer: CheckAnswer) -> tuple[str, str]:
    return answer.version, answer.severity
