"""What the search for a cause begins with: a step's worst samples, and what the checks of their records found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.attribution.reported import Rescore, Values
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.evidence import Finding
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.step import PostedStep
from omni_rl.consistency.posted.verdict import judge_posted
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.yardstick import Yardstick


@dataclass(frozen=True)
class Case:
    """The worst samples of a step, and what is known of them.

    `records` are these samples, worst first, each by a name of its own, with the tokens that count. `known` is what the
    checks of the step's records found, in their order. `temperature` is what the samples were sampled at, None where
    they differ in that. `counted` bool [T] says which tokens of a sample count, by its name; without an entry all of
    them do.
    """

    records: Sequence[SampleRecord]
    known: Sequence[Finding] = ()
    temperature: float | None = 1.0
    counted: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    @classmethod
    def of(cls, step: PostedStep, records: Sequence[SampleRecord], known: Sequence[Finding]) -> "Case":
        """Return the case of a step. `records` have all tokens; `step` has these samples and may have more."""
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
        """Reduce values of all tokens, or of the first ones, to those of the tokens that count."""
        return {
            name: each[self.counted[name][: len(each)]] if name in self.counted else each
            for name, each in values.items()
        }

    def cutting(self, rescore: Rescore) -> Rescore:
        """Return a `rescore` that gives values of only the tokens that count."""
        return lambda temperature, names: self.cut(rescore(temperature, names))


def found_in(columns: StepColumns, step: PostedStep, yardstick: Yardstick) -> tuple[Finding, ...]:
    """Return what the checks of a posted step find in one that no service has sealed; nothing in one that is ok.
    `columns` and `step` are of the same records."""
    found = judge_posted(columns, step, yardstick, History()).explanation
    return () if found is None else found.findings


def _of_counted(record: SampleRecord, counted: NDArray[np.bool_]) -> SampleRecord:
    """Return a record of only the tokens that count.

    Where some do not, the choices of experts are left out, because they are by position.
    """
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
