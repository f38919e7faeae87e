"""A posted step out of the ledger, its worst samples as the search for a cause looks at them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omni_rl.consistency.attribution.evidence import SampleEvidence, TensorSeen
from omni_rl.consistency.limits import Figures
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import StepKey


@dataclass(frozen=True)
class Posted:
    """A step's worst `samples`, worst first, and the `figures` by which the whole step was judged."""

    samples: list[SampleEvidence]
    figures: Figures


def posted(ledger: Ledger, key: StepKey) -> Posted:
    """Raises `NotFoundError` if there is no such step."""
    verdict = ledger.step(key).verdict
    samples = [evidence_of(ledger.sample(key, kept["sample"], kept.get("rank")).record) for kept in verdict["worst"]]
    # A verdict is JSON, in which a figure that is not a number is null.
    figures = {
        bucket: {name: math.nan if value is None else value for name, value in found.items()}
        for bucket, found in verdict["figures"].items()
    }
    return Posted(samples, figures)


def evidence_of(record: StepRecords) -> SampleEvidence:
    """Of one record; what a framework did not post is left open."""
    (row,) = record.table.to_pylist()
    spans = row["version_spans"] or []
    return SampleEvidence(
        record.columns.record(0),
        row["temperature"] if row["temperature"] is not None else 1.0,
        tuple(dict.fromkeys(span["version"] for span in spans if span["version"])),
        row["train_version"] or "",
        tuple(tensor for number, item in enumerate(row["media"] or []) for tensor in _tensors(number, item)),
    )


def _tensors(number: int, item: Mapping[str, Any]) -> list[TensorSeen]:
    return [
        TensorSeen(item["modality"], number, seen["name"], seen["rendered"], seen["engine"], seen["train"])
        for seen in item["tensors"] or []
    ]
