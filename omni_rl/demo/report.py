"""Writes the report that a run leaves behind, `report.json`."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omni_rl.consistency.comparison import Comparison
from omni_rl.consistency.limits import Severity
from omni_rl.consistency.posted.verdict import JudgedStep
from omni_rl.consistency.shown import number_or_none
from omni_rl.policies.types import Placed

SCHEMA = 1


@dataclass(frozen=True)
class StepReport:
    """The report of one step.

    `with_flips` is `overall` with the tokens that router flips leave out of it, or None if there are none. `breaches`
    says, in one sentence each, why the two policies do not agree. `seconds` has the duration of each phase.
    """

    step: int
    weight_version: str
    verdict: Literal["agree", "disagree"]
    reward: float
    overall: Comparison
    by_modality: dict[str, Comparison]
    with_flips: Comparison | None
    breaches: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, step: int, weight_version: str, reward: float, judged: JudgedStep) -> "StepReport":
        """Make the report of a judged step. The verdict is "agree" if both sides had the same weights and the same
        media, and the service would find nothing in the step to look at."""
        comparison, judgement = judged.comparison, judged.judgement
        found = [*(str(breach) for breach in judgement.breaches), *(one.sentence for one in judgement.concerns)]
        if not found and judgement.severity is not Severity.OK:
            found.append(judgement.reason)
        return cls(
            step=step,
            weight_version=weight_version,
            verdict="disagree" if found else "agree",
            reward=reward,
            overall=comparison.overall,
            by_modality=dict(comparison.by_kind),
            with_flips=comparison.with_flips,
            breaches=tuple(found),
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "weight_version": self.weight_version,
            "verdict": self.verdict,
            "reward": self.reward,
            "overall": _metrics(self.overall),
            "by_modality": {kind: _metrics(comparison) for kind, comparison in self.by_modality.items()},
            "with_flips": None if self.with_flips is None else _metrics(self.with_flips),
            "breaches": list(self.breaches),
            "flips": [vars(flip) for flip in self.overall.flips],
            "seconds": {phase: round(value, 3) for phase, value in self.seconds.items()},
        }


@dataclass
class Report:
    """The report of a run, which is filled step by step."""

    dtype: str
    seed: int
    engine: dict[str, str]
    train: dict[str, Any]
    parameters: int
    steps: list[StepReport] = field(default_factory=list)
    legs: dict[str, Comparison] = field(default_factory=dict)
    actors: list[Placed] = field(default_factory=list)

    @property
    def agreed(self) -> bool:
        """Whether every step agreed; False before the first step."""
        return bool(self.steps) and all(step.verdict == "agree" for step in self.steps)

    @property
    def breaches(self) -> list[str]:
        """The breaches of all steps, each with its step's number."""
        return [f"step {step.step}: {breach}" for step in self.steps for breach in step.breaches]

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "dtype": self.dtype,
            "seed": self.seed,
            "engine": self.engine,
            "train": self.train,
            "parameters": self.parameters,
            "actors": [vars(placed) for placed in self.actors],
            "verdict": "agree" if self.agreed else "disagree",
            "breaches": self.breaches,
            "steps": [step.as_dict() for step in self.steps],
            "legs": {leg: _metrics(comparison) for leg, comparison in self.legs.items()},
        }

    def write(self, directory: Path) -> Path:
        """Write `report.json` atomically, so that a reader never sees half of it, and return its path."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "report.json"
        partial = directory / f".report.{os.getpid()}.json"
        partial.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")
        partial.replace(path)
        return path


def _metrics(comparison: Comparison) -> dict[str, float | None]:
    """Return a comparison's metrics, with None for NaN and infinity, which JSON does not have."""
    return {name: number_or_none(value) for name, value in comparison.metrics.report().items()}
