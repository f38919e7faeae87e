"""What the trials amount to: recall, causes, steps, false alarms with their bound."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omni_rl.consistency.bands import NOISE
from omni_rl.sabotage.faults import FAULTS

CONFIDENCE = 0.95
PROOFS = {"verify", "versions", "media", "prompt", "weights"}
"""Checks that compare digests or bytes."""
Line = Mapping[str, Any]


def figures(trials: Sequence[Line], clean: Sequence[Line]) -> dict[str, Any]:
    """Of one dtype. Noise is what it is said to be, or the worst sample of the clean steps if that is further apart."""
    worst = max((block["worst_sample_abs_diff_mean"] for block in clean), default=0.0)
    noise = {dtype: max(worst, bands.mean) for dtype, bands in NOISE.items()}
    provable = {(fault.name, fault.moment) for fault in FAULTS if fault.proven}
    proofs = [t for t in trials if (t["fault"], t["moment"]) in provable]
    # VERIFY stops a fault before a token is sampled: there are no logprobs to see it by.
    stepped = [t for t in trials if t["steps"] != 0]
    moved = [t for t in stepped if t["abs_diff_mean"] > noise[t["dtype"]]]
    searched = [t for t in trials if t["right"] is not None]
    acted = [t for t in trials if t["action_right"] is not None]
    return {
        "trials": len(trials),
        "recall": share(bool(t["by"]) for t in trials),
        "recall_of_proof_checks": share(bool(PROOFS & set(t["by"])) for t in proofs),
        "recall_of_logprob_checks_beyond_noise": share("logprobs" in t["by"] for t in moved),
        "recall_beyond_noise": share(bool(t["by"]) for t in moved),
        "right_cause": share(t["right"] for t in searched),
        "right_action": share(t["action_right"] for t in acted),
        "healed": share(bool(t["healed"]) for t in trials),
        "steps_to_detect": dict(sorted(Counter(str(t["steps"]) for t in trials).items())),
        "search_seconds": spread([t["search_seconds"] for t in searched]),
        "confusion": confusion(trials),
        "not_noticed": [_unseen(t, noise[t["dtype"]]) for t in trials if not t["by"]],
        "wrong_cause": [
            {"fault": name(t), "called": t["cause"], "sentence": t["sentence"]} for t in searched if not t["right"]
        ],
        "not_healed": [name(t) for t in trials if not t["healed"]],
        "clean": false_alarms(clean),
    }


def _unseen(trial: Line, noise: float) -> dict[str, Any]:
    """With what it did: whether that is noise, by the worst sample's mean."""
    within = trial["abs_diff_mean"] <= noise
    reason = "it moves no logprob beyond noise, and no digest or byte" if within else "its kind's limits are wider"
    return {"fault": name(trial), "abs_diff_mean": trial["abs_diff_mean"], "noise": noise, "reason": reason}


def name(trial: Line) -> str:
    return f"{trial['fault']} ({trial['moment']}), seed {trial['seed']}"


def share(values: Iterable[bool]) -> dict[str, float]:
    """How many of how many; of none, all."""
    found = [bool(value) for value in values]
    return {"of": len(found), "yes": sum(found), "share": sum(found) / len(found) if found else 1.0}


def spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def confusion(trials: Sequence[Line]) -> dict[str, dict[str, int]]:
    """By the right cause, how often each was named; `rolled back` by a sync's proof, `not noticed`, `refused`."""
    right = {(fault.name, fault.moment): str(fault.causes[0]) for fault in FAULTS}
    table: dict[str, Counter[str]] = {}
    for trial in trials:
        row = table.setdefault(right[trial["fault"], trial["moment"]], Counter())
        row[_called(trial)] += 1
    return {cause: dict(row) for cause, row in sorted(table.items())}


def _called(trial: Line) -> str:
    if trial["cause"] is not None:
        return str(trial["cause"])
    if "verify" in trial["by"]:
        return "rolled back"
    return "refused" if trial["by"] else "not noticed"


def false_alarms(blocks: Sequence[Line]) -> dict[str, Any]:
    """Of clean steps, with the upper bound of their rate (Clopper and Pearson, 1934; one-sided)."""
    steps = sum(block["steps"] for block in blocks)
    alarms = sum(block["logprob_alarms"] + block["proof_alarms"] for block in blocks)
    if not steps:
        return {"steps": 0}
    parts = Counter[str]()
    for block in blocks:
        parts.update(block["seconds_by_part"])
    step = parts["sample"] + parts["score"]
    return {
        "steps": steps,
        "tokens": sum(block["tokens"] for block in blocks),
        "alarms": alarms,
        "rate_upper_bound": round(upper_bound(alarms, steps), 6),
        "confidence": CONFIDENCE,
        "worst_abs_diff_mean": max(block["worst_abs_diff_mean"] for block in blocks),
        "worst_sample_abs_diff_mean": max(block["worst_sample_abs_diff_mean"] for block in blocks),
        "reasons": [reason for block in blocks for reason in block["reasons"]][:10],
        "seconds_by_part": {part: round(seconds, 2) for part, seconds in parts.items()},
        "cheap_checks_of_a_step": round(parts["checks"] / step, 5),
        "audit_of_a_step": round(parts["audit"] / step, 5),
    }


def upper_bound(events: int, of: int, confidence: float = CONFIDENCE) -> float:
    """The largest rate at which so few events are not yet less likely than 1 - confidence.

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
    """Probability of `events` or fewer of `of`, by a binomial."""
    if rate >= 1:
        return 0.0
    total = 0.0
    for k in range(events + 1):
        log = math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)
        total += math.exp(log + (k * math.log(rate) if k else 0.0) + (of - k) * math.log1p(-rate))
    return total
