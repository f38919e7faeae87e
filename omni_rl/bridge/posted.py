"""A posted step's worst samples, out of the ledger, as the search for a cause looks at them."""

from collections.abc import Mapping
from typing import Any

from omni_rl.consistency.attribution.evidence import SampleEvidence, TensorSeen
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import StepKey


def posted(ledger: Ledger, key: StepKey) -> list[SampleEvidence]:
    """Worst first. Raises `NotFoundError` if there is no such step."""
    worst = ledger.step(key).verdict["worst"]
    return [evidence_of(ledger.sample(key, kept["sample"], kept.get("rank")).record) for kept in worst]


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
