"""Computes the trials' figures: what was noticed, causes, actions, healing; and false alarms with their bound."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omni_rl_bench.sabotage.faults import FAULTS

CONFIDENCE = 0.95
Line = Mapping[str, Any]


def figures(trials: Sequence[Line], clean: Sequence[Line]) -> dict[str, Any]:
    """Return the figures of one pair. A cause is right or wrong where one was looked for: a sync that VERIFY refuses
    names tensors."""
    noticed = [t for t in trials if t["by"]]
    searched = [t for t in noticed if t["right"] is not None]
    acted = [t for t in noticed if t["action_right"] is not None]
    mended = [t for t in noticed if t["healed"] is not None]
    return {
        "trials": len(trials),
        "noticed": share(bool(t["by"]) for t in trials),
        "noticed_by": dict(sorted(Counter(t["by"] or "nobody" for t in trials).items())),
        "right_cause": share(t["right"] for t in searched),
        "right_cause_by_the_records": share(
            t["sealed_cause"] in right_causes(t) for t in searched if t["sealed_cause"]
        ),
        "right_action": share(t["action_right"] for t in acted),
        "healed": share(t["healed"] for t in mended),
        "steps_to_detect": dict(sorted(Counter(str(t["steps"]) for t in trials).items())),
        "judge_seconds": spread([t["seconds"]["judge"] for t in trials if "judge" in t["seconds"]]),
        "response_seconds": spread([t["seconds"]["response"] for t in trials if "response" in t["seconds"]]),
        "confusion": confusion(trials),
        "not_noticed": [{"fault": name(t), "abs_diff_mean": t["abs_diff_mean"]} for t in trials if not t["by"]],
        "wrong_cause": [
            {"fault": name(t), "called": t["cause"], "sentence": t["sentence"]} for t in searched if not t["right"]
        ],
        "wrong_action": [{"fault": name(t), "action": t["action"]} for t in acted if not t["action_right"]],
        "not_healed": [name(t) for t in mended if not t["healed"]],
        "trouble": [{"fault": name(t), "trouble": t["trouble"]} for t in trials if t["trouble"]],
        "clean": false_alarms(clean),
    }


def right_causes(trial: Line) -> tuple[str, ...]:
    """Return what the trial's fault may be called, the best name first."""
    (fault,) = (fault for fault in FAULTS if (fault.name, fault.moment) == (trial["fault"], trial["moment"]))
    return tuple(map(str, fault.causes))


def name(trial: Line) -> str:
    return f"{trial['fault']} ({trial['moment']}), seed {trial['seed']}"


def share(values: Iterable[bool]) -> dict[str, float]:
    """Return how many of how many are true; the share of no values is 1."""
    found = [bool(value) for value in values]
    return {"of": len(found), "yes": sum(found), "share": sum(found) / len(found) if found else 1.0}


def spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def confusion(trials: Sequence[Line]) -> dict[str, dict[str, int]]:
    """Return how often each cause was named, by the right cause; `rolled back` by a sync's proof, `not noticed`,
    `refused`.

    A fault that has several right names is in the row of the one that it got.
    """
    table: dict[str, Counter[str]] = {}
    for trial in trials:
        called, right = _called(trial), right_causes(trial)
        row = table.setdefault(called if called in right else right[0], Counter())
        row[called] += 1
    return {cause: dict(row) for cause, row in sorted(table.items())}


def _called(trial: Line) -> str:
    if trial["cause"] is not None:
        return str(trial["cause"])
    return {"verify": "rolled back", "refused": "refused"}.get(trial["by"], "not noticed")


def false_alarms(blocks: Sequence[Line]) -> dict[str, Any]:
    """Return the false alarms of clean steps, with the upper bound of their rate (Clopper and Pearson, 1934;
    one-sided)."""
    steps = sum(block["steps"] for block in blocks)
    if not steps:
        return {"steps": 0}
    alarms = sum(block["alarms"] for block in blocks)
    parts = Counter[str]()
    for block in blocks:
        parts.update(block["seconds_by_part"])
    return {
        "steps": steps,
        "steps_by_shape": dict(_steps_by_shape(blocks)),
        "tokens": sum(block["tokens"] for block in blocks),
        "alarms": alarms,
        "paused": sum(block["paused"] for block in blocks),
        "unjudged": sum(block["unjudged"] for block in blocks),
        "rate_upper_bound": round(upper_bound(alarms, steps), 6),
        "confidence": CONFIDENCE,
        "worst_abs_diff_mean": max(block["worst_abs_diff_mean"] for block in blocks),
        "reasons": [reason for block in blocks for reason in block["reasons"]][:10],
        "seconds_by_part": {part: round(seconds, 2) for part, seconds in parts.items()},
    }


def _steps_by_shape(blocks: Sequence[Line]) -> Counter[str]:
    found = Counter[str]()
    for block in blocks:
        found[block["shape"]] += block["steps"]
    return found


def upper_bound(events: int, of: int, confidence: float = CONFIDENCE) -> float:
    """Return the largest rate at which so few events are not yet less likely than 1 - confidence.

    Without an event it is 1 - (1 - confidence)^(1/of), about 3/of: the rule of three.
    """
    if events >= of:
        return 1.0
    low, high = events / of, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(events, of, middle) > 1 - confidence else (low, middle)
    return high


def _at_most(events: int, of: int, rate: float) -> float:
    """Return the probability of `events` or fewer of `of`, by a binomial."""
    if rate >= 1:
        return 0.0
    total = 0.0
    for k in range(events + 1):
        log = math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
        total += math.exp(log + (k * math.log(rate) if k else 0.0) + (of - k) * math.log1p(-rate))
    return total
