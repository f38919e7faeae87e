"""What the search for a cause begins with: a step, its worst samples, and what their records tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.attribution.evidence import Finding
from omni_rl.consistency.attribution.reported import Rescore, Values
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.look import Terms
from omni_rl.consistency.posted.step import PostedStep
from omni_rl.consistency.posted.verdict import judge_posted
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.yardstick import Yardstick


@dataclass(frozen=True)
class Case:
    """`records`: the worst samples of a step, worst first, each by a name of its own, of the tokens that count.
    `known`: what the checks of its records found, in their order. `temperature`: what the samples were sampled at, None
    where that differs. `counted` bool [T]: which tokens of a sample count, by its name; without an entry all
    of them do."""

    records: Sequence[SampleRecord]
    known: Sequence[Finding] = ()
    temperature: float | None = 1.0
    counted: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    @classmethod
    def of(cls, step: PostedStep, records: Sequence[SampleRecord], known: Sequence[Finding]) -> "Case":
        """`records` of all tokens; `step` of these, and it may have more samples than they are."""
        starts = dict(zip(step.samples, zip(step.offsets[:-1], step.offsets[1:], strict=True), strict=True))
        masks = {record.sample: step.counted[slice(*starts[record.sample])] for record in records}
        temperatures = set(step.temperatures.tolist())
        return cls(
            [_of_counted(record, masks[record.sample]) for record in records],
            known,
            temperatures.pop() if len(temperatures) == 1 else None,
            {name: mask for name, mask in masks.items() if not mask.all()},
        )

    def cut(self, values: Values) -> Values:
        """Values of all tokens, or of the first ones, to those of the tokens that count."""
        return {
            name: each[self.counted[name][: len(each)]] if name in self.counted else each
            for name, each in values.items()
        }

    def cutting(self, rescore: Rescore) -> Rescore:
        """The same of what rescoring gives."""
        return lambda temperature, names: self.cut(rescore(temperature, names))


def found_in(columns: StepColumns, step: PostedStep, yardstick: Yardstick, terms: Terms) -> tuple[Finding, ...]:
    """What the checks of a posted step find in one that no service has sealed; nothing in one that is ok. `columns` and
    `step` are of the same records."""
    found = judge_posted(columns, step, yardstick, terms, History()).explanation
    return () if found is None else found.findings


def _of_counted(record: SampleRecord, counted: NDArray[np.bool_]) -> SampleRecord:
    """Where tokens do not count, choices of experts, which are by position, are left out with them."""
    if counted.all():
        return record
    return replace(
        record,
        rollout_logprobs=record.rollout_logprobs[counted],
        train_logprobs=record.train_logprobs[counted],
        rollout_experts=None,
        train_experts=None,
        margins=None,
    )
