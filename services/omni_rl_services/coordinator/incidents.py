"""What a run's steps and the search for a cause show that a person has to look at, as incidents."""

from collections.abc import Mapping, Sequence
from typing import Any

from omni_rl.api.steps import Verdict
from omni_rl.consistency.incidents import figure_of, headline
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.policy import Drift, Outcome
from omni_rl.ledger.types import IncidentEnd, NewIncident, StepKey
from omni_rl_services.coordinator.judging import Judged
from omni_rl_services.coordinator.runs import LiveRun
from omni_rl_services.coordinator.verdicts import done_about


def is_worth(drift: Drift) -> bool:
    """Return whether a drift is an incident: steps are masked or generation is stopped. A drift at WARN is none."""
    return drift.severity >= Severity.MASK or drift.gate == "halted"


def severity_of(drift: Drift) -> int:
    """Return an incident's severity. A run that waits for a person is as urgent as one whose figures are at their
    worst."""
    return int(Severity.PAUSE if drift.gate == "halted" else drift.severity)


def seen_at(run: LiveRun, key: StepKey, judged: Judged, drift: Drift, verdict: Verdict) -> tuple[NewIncident, ...]:
    """Return what a judged step, after which the run stands at `drift`, shows of an incident."""
    judgement = judged.judgement
    if not is_worth(drift) or judgement.severity <= Severity.WARN:
        return ()
    kinds = [kind for kind in run.body.every_kind if judged.comparison.figures.get(kind, _NONE)["tokens"]]
    return (
        NewIncident(
            severity_of(drift),
            headline(key.step, judgement, kinds, run.line.good),
            verdict.cause,
            done_about(drift, run.body.gated),
            by_check(verdict.evidence),
            why=sentence(verdict.sentence),
            figure=figure_of(judgement),
            excess=judgement.excess,
            good=run.line.good,
        ),
    )


_NONE = {"tokens": 0}


def over_at(run: LiveRun, drift: Drift, reason: str) -> tuple[IncidentEnd, ...]:
    """Return the incidents that end with a live step after which the run stands at `drift`."""
    ends = []
    if is_worth(run.drift) and not is_worth(drift):
        ends.append(IncidentEnd("drift", reason))
    if run.activity == "silent":
        ends.append(IncidentEnd("silence", "a step came"))
    return tuple(ends)


def pursued(
    run: LiveRun, outcome: Outcome, evidence: Mapping[str, Any]
) -> tuple[tuple[NewIncident, ...], tuple[IncidentEnd, ...]]:
    """Return what opens, grows or ends between two steps: the cause was found, something was done about it, or it is
    over."""
    before, after = run.drift, outcome.drift
    reason = "; ".join(dict.fromkeys(change.reason for change in outcome.transitions))
    if not is_worth(after):
        return (), (IncidentEnd("drift", reason),) if is_worth(before) else ()
    cause = None if after.cause is None else str(after.cause)
    news = after.cause != before.cause or (after.gate == "halted" and before.gate != "halted")
    return (
        NewIncident(
            severity_of(after),
            sentence(reason),
            cause,
            done_about(after, run.body.gated),
            evidence,
            why=sentence(reason.removeprefix(f"{cause}: ")) if news else "",
            attributed=True,
        ),
    ), ()


def sentence(text: str) -> str:
    """Return a text with a capital at its begin and a full stop at its end; "" if it is empty."""
    text = text.strip()
    return "" if not text else f"{text[0].upper()}{text[1:]}{'' if text[-1] in '.?!' else '.'}"


def by_check(findings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what each check found, by the check's name."""
    return {entry["check"]: {name: value for name, value in entry.items() if name != "check"} for entry in findings}
