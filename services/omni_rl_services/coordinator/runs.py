"""Runs as the coordinator holds them: how each is judged, and where its drift stands. Each has one writer."""

import asyncio
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from omni_rl.api.runs import Activity, DriftAnswer, RunAnswer, RunBody
from omni_rl.consistency.corrections import Correction
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.need import need_of
from omni_rl.consistency.policy import Drift, DriftPolicy, Outcome
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.ledger.types import NewEvent, NewState, SortKeys
from omni_rl_services.coordinator.lines import Line

# What the ledger has of a run may have more fields, or fewer: older versions wrote it.
_DRIFT, _LINE, _HISTORY = TypeAdapter(Drift), TypeAdapter(Line), TypeAdapter(History)


@dataclass
class LiveRun:
    """A run. `turn` is held by whoever changes `drift`, `line` or `activity`, from the judgement to the row in the
    ledger. `silent_after` is the seconds without a step after which the run is silent."""

    body: RunBody
    created: float
    policy: DriftPolicy
    yardstick: Yardstick
    correction: Correction
    silent_after: float
    drift: Drift = field(default_factory=Drift)
    history: History = field(default_factory=History)
    latest: tuple[int, int] | None = None
    line: Line = field(default_factory=Line)
    activity: Activity = "waiting"
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _told: tuple[object, RunAnswer] | None = None

    @classmethod
    def of(cls, body: RunBody, created: float, settle: int, silent_after: float = math.inf) -> "LiveRun":
        policy = DriftPolicy(settle=settle, gated=body.gated)
        correction = body.correction.correction()
        after = body.silent_after or silent_after
        return cls(body, created, policy, body.judged_by(), correction, after)

    @property
    def name(self) -> str:
        return self.body.run

    @property
    def holder(self) -> str:
        """The name under which the run's drift holds the gate."""
        return f"run:{self.name}"

    @property
    def at_rest(self) -> bool:
        """Whether all there is to know of the run is in the ledger, and nobody is at work on it."""
        drift = self.drift
        return drift.gate == "open" and drift.pursuit == "nothing" and not drift.alarming and not self.turn.locked()

    def is_live(self, attempt: int) -> bool:
        """Return whether an attempt is the latest: an older one's steps are judged, and change nothing about the
        run."""
        return self.latest is None or attempt >= self.latest[0]

    def history_of(self, attempt: int) -> History:
        """Return what the attempt's earlier steps showed: nothing for a new attempt."""
        return self.history if self.latest is not None and attempt == self.latest[0] else History()

    @property
    def sealed(self) -> float | None:
        """When the run's latest step was sealed, in Unix seconds."""
        return self.line.sealed

    def after(
        self,
        *,
        drift: Drift | None = None,
        history: History | None = None,
        activity: Activity | None = None,
        line: Line | None = None,
        **told: Any,
    ) -> NewState:
        """Return what the ledger is to store of where the run stands once these have changed, with the events and
        incidents in `told`."""
        drift, line, activity = drift or self.drift, line or self.line, activity or self.activity
        state = {
            **asdict(drift),
            "history": asdict(history or self.history),
            "activity": activity,
            "line": asdict(line),
        }
        due = None if activity != "live" or line.sealed is None else line.sealed + self.silent_after
        return NewState(state, SortKeys(int(need_of(drift, activity, line.own)), line.sealed, due), **told)

    def take_up(self, state: dict[str, Any]) -> None:
        """Restore the drift, the activity, the line and the history from the ledger's state."""
        self.drift = _DRIFT.validate_python(state)
        self.activity = state.get("activity", self.activity)
        if (line := state.get("line")) is not None:
            self.line = _LINE.validate_python(line)
        if (history := state.get("history")) is not None:
            self.history = _HISTORY.validate_python(history)

    def weighs(self, severity: Severity) -> bool:
        """Return whether a step of this severity gets weights."""
        if self.body.correction.method == "none":
            return False
        return severity >= Severity.MASK or self.body.correction.when == "always"

    def attempt(self, wanted: int | None) -> int | None:
        """Return the attempt that is wanted, or else the latest; None before the first step."""
        if wanted is not None:
            return wanted
        return None if self.latest is None else self.latest[0]

    def answer(self) -> RunAnswer:
        """Return the run as the API has it. The answer is made again only if the run has changed: every state lists a
        hundred runs, most of which are at rest."""
        now = (self.drift, self.line, self.activity)
        if self._told is None or self._told[0] != now:
            self._told = now, self._answer()
        return self._told[1]

    def _answer(self) -> RunAnswer:
        attempt, step = self.latest or (None, None)
        return RunAnswer(
            run=self.name,
            created=self.created,
            config=self.body,
            drift=drift_answer(self.drift),
            attempt=attempt,
            step=step,
            sealed=self.sealed,
            activity=self.activity,
            kinds=self.body.every_kind,
        )


def drift_answer(drift: Drift) -> DriftAnswer:
    return DriftAnswer(severity=drift.severity.label, gate=drift.gate, pursuit=drift.pursuit, cause=drift.cause)


def transition_events(run: str, outcome: Outcome, **where: Any) -> tuple[NewEvent, ...]:
    """Return an event for each transition."""
    return tuple(
        NewEvent(change.what, {**where, "before": change.before, "after": change.after, "reason": change.reason}, run)
        for change in outcome.transitions
    )
