"""A case judged from its records, without a service: by limits, by what every step is looked at for, and explained."""

from dataclasses import dataclass

from omni_rl.consistency.figures import Grouping, reduce
from omni_rl.consistency.limits import OVERALL, Severity, judge, limits_for
from omni_rl.consistency.posted.explain import explain
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.look import Look, Terms, look
from omni_rl.consistency.posted.step import PostedStep
from omni_rl.ledger.posted import posted_step
from omni_rl.ledger.records import StepRecords
from tests.cases.world import Row

NOISE = {"float32": 1e-5, "bfloat16": 0.05}


@dataclass
class Judged:
    severity: Severity
    cause: str | None
    sentence: str
    seen: Look


class Judge:
    """Of one run's steps, one after the other."""

    def __init__(self, dtype: str = "bfloat16", terms: Terms | None = None) -> None:
        self.history = History()
        self.limits = limits_for(dtype)
        self.terms = terms or Terms(NOISE[dtype])

    def rows(self, *parts: list[Row]) -> Judged:
        """Records of each rank, as they are posted."""
        return self.step(posted_step({rank: StepRecords.of(rows) for rank, rows in enumerate(parts)}))

    def step(self, step: PostedStep) -> Judged:
        seen = look(step, self.terms, self.history)
        of_size = self._by_size(step)
        severity = max(of_size, seen.severity)
        found = explain(step, self.terms, self.history, seen) if severity > Severity.OK else None
        clean = of_size == Severity.OK and seen.clean
        self.history = self.history.after(
            (step.size, seen.error), seen.means.get(OVERALL), step.tokens, seen.tests, clean=clean
        )
        return Judged(severity, None if found is None else str(found.cause), found.sentence if found else "", seen)

    def _by_size(self, step: PostedStep) -> Severity:
        if not step.tokens:
            return Severity.OK
        at = step.judged
        (figures,) = reduce(step.rollout[at], step.train[at], [Grouping.whole(step.lengths)])
        return judge({OVERALL: vars(figures.metrics(0, 0, 0))}, self.limits).severity
