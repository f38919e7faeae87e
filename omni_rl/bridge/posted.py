"""Reads a posted step from the ledger, its worst samples as the search for a cause takes them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omni_rl.consistency.attribution.case import Case, found_in
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.evidence import Finding
from omni_rl.consistency.limits import Figures
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.posted import posted_step
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import StepKey


@dataclass(frozen=True)
class Posted:
    """A step's worst samples as a `case`, worst first, and as `rows` of the schema in the same order; and the `figures`
    by which the whole step was judged."""

    case: Case
    rows: Sequence[Mapping[str, Any]]
    figures: Figures

    @property
    def names(self) -> list[str]:
        return [record.sample for record in self.case.records]


def posted(ledger: Ledger, key: StepKey, dtype: str) -> Posted:
    """Return a posted step. Raises `NotFoundError` if there is no such step.

    The findings of the step's seal are taken from its verdict; where an older service wrote that verdict, and explained
    nothing, the worst samples are examined as those of a run of `dtype`.
    """
    verdict = ledger.step(key).verdict
    each = [(worst["sample"], worst.get("rank")) for worst in verdict["worst"]]
    several = len({rank for _, rank in each}) > 1
    names = [f"{sample} of rank {rank}" if several else sample for sample, rank in each]
    # A verdict is JSON, in which a figure that is not a number is null.
    figures = {
        kind: {name: math.nan if value is None else value for name, value in found.items()}
        for kind, found in verdict["figures"].items()
    }
    known = [Finding.of_dict(entry) for entry in verdict.get("evidence", ())]
    is_off = verdict["severity"] not in ("ok", "unjudged")
    records = [ledger.sample(key, sample, rank).record for sample, rank in each]
    return of_records(records, names, dtype, None if is_off and not known else known, figures)


def of_records(
    records: Sequence[StepRecords],
    names: Sequence[str],
    dtype: str,
    known: Sequence[Finding] | None = None,
    figures: Figures | None = None,
) -> Posted:
    """Return records of one sample each as a posted step, by names that differ.

    `known` is what the checks of records found; None: the checks run here.
    """
    rows = [record.table.to_pylist()[0] for record in records]
    if not records:
        return Posted(Case([], known or ()), [], figures or {})
    columns = StepColumns.joined([record.columns for record in records])
    step = replace(posted_step(dict(enumerate(records)), columns), samples=list(names))
    samples = [replace(record.columns.record(0), sample=name) for record, name in zip(records, names, strict=True)]
    if known is None:
        known = found_in(columns, step, Yardstick.of(dtype))
    return Posted(Case.of(step, samples, known), rows, figures or {})
