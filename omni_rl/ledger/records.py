"""A step's records of one rank: checked once, then stored, sent and reduced as columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omni_rl.consistency.columns import Choices, StepColumns
from omni_rl.ledger.checks import check
from omni_rl.ledger.content import content_digest
from omni_rl.ledger.lists import lists, numbers, single
from omni_rl.ledger.schema import RecordLimits
from omni_rl.ledger.wire import pack, read_arrow, read_json, read_trusted, table_of, to_json, write_arrow
from omni_rl.once import once

LIMITS = RecordLimits()


class StepRecords:
    """Records that follow the published schema (`omni_rl.ledger.schema`).

    Constructors raise `RecordError`, which names the row and the column. `table` has every column of the schema.
    """

    def __init__(self, table: pa.Table, payload: bytes | None = None) -> None:
        """Wrap a table that was checked; use a class method for one that was not."""
        self.table = table
        self._payload = payload

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], limits: RecordLimits = LIMITS) -> "StepRecords":
        """Return the records that `records` give, each as a mapping from column to value; lists of numbers may be numpy
        arrays."""
        return cls._checked(table_of(records, limits), limits)

    @staticmethod
    def stream(records: Sequence[Mapping[str, Any]], limits: RecordLimits = LIMITS) -> bytes:
        """Return the records as an Arrow IPC stream, for a reader that checks it; arguments as for `of`."""
        return write_arrow(table_of(records, limits))

    @classmethod
    def from_arrow(cls, body: bytes, limits: RecordLimits = LIMITS) -> "StepRecords":
        """Return the records of an Arrow IPC stream."""
        return cls._checked(read_arrow(body, limits), limits, body)

    @classmethod
    def from_json(cls, body: bytes | str, limits: RecordLimits = LIMITS) -> "StepRecords":
        """Return the records of a document in the JSON form."""
        return cls._checked(read_json(body, limits), limits)

    @classmethod
    def from_payload(cls, payload: bytes) -> "StepRecords":
        """Return the records of a `payload` that was in the ledger."""
        return cls(read_trusted(payload), payload)

    @classmethod
    def _checked(cls, table: pa.Table, limits: RecordLimits, payload: bytes | None = None) -> "StepRecords":
        check(table, limits)
        return cls(table, payload)

    def __len__(self) -> int:
        return len(self.table)

    @once
    def tokens(self) -> int:
        """The number of sampled tokens."""
        return len(single(self.table, "rollout_logprobs").flatten())

    @once
    def nbytes(self) -> int:
        """The records' bytes in memory."""
        return int(self.table.nbytes)

    @once
    def digest(self) -> str:
        """The digest of the records' content, however they were sent."""
        return content_digest(self.table)

    @property
    def payload(self) -> bytes:
        """An Arrow stream that gives these records again: the one that they came as, if they came as one."""
        return self._payload if self._payload is not None else write_arrow(self.table)

    def to_arrow(self) -> bytes:
        """Return the records as an Arrow IPC stream of the schema."""
        return write_arrow(self.table)

    def packed(self) -> bytes:
        """Return the records compressed, for the ledger: a payload of this form is taken from no client."""
        return pack(self.table)

    def to_json(self) -> dict[str, Any]:
        """Return the records as a JSON document; a number that is not finite is null there."""
        return to_json(self.table)

    def row(self, number: int) -> "StepRecords":
        """Return one record alone."""
        return StepRecords(self.table.slice(number, 1))

    def at_place(self, place: int) -> "StepRecords":
        """Return the stored sample at that place of its step. These records are all that was stored of the step, or, in
        ledgers of older versions, that sample alone."""
        return self.row(place) if len(self) > 1 else self

    @once
    def samples(self) -> list[str]:
        """The name of each record's sample."""
        names: list[str] = single(self.table, "sample").to_pylist()
        return names

    @once
    def kinds(self) -> list[str]:
        """The kind of each record's prompt."""
        kinds: list[str] = pc.fill_null(single(self.table, "kind"), "text").to_pylist()
        return kinds

    @once
    def columns(self) -> StepColumns:
        """The columns from which the figures are reduced; views where the types allow."""
        rollout, train = (lists(single(self.table, name)) for name in ("rollout_logprobs", "train_logprobs"))
        ids = lists(single(self.table, "prompt_ids"))
        given = single(self.table, "prompt_tokens")
        prompt = numbers(pc.fill_null(given, 0)).astype(np.int64)
        if given.null_count:
            prompt = np.where(given.is_valid().to_numpy(zero_copy_only=False), prompt, ids.lengths)
        return StepColumns(
            self.samples,
            self.kinds,
            prompt,
            rollout.offsets,
            rollout.numbers(),
            train.numbers(),
            self._loss_mask(rollout.offsets),
            self._choices(),
            self._mixed_state(rollout.offsets),
        )

    def _loss_mask(self, offsets: Any) -> Any:
        column = single(self.table, "loss_mask")
        if column.null_count == len(column):
            return None
        mask = lists(column)
        result = np.ones(int(offsets[-1]), np.bool_)
        result[np.repeat(mask.present, np.diff(offsets))] = mask.numbers()
        return result

    def _mixed_state(self, offsets: Any) -> Any:
        """Return which tokens lie in version spans that say `mixed_state`, or None if there are none."""
        spans = lists(single(self.table, "version_spans"))
        says, starts, ends = (spans.flat.field(name) for name in ("mixed_state", "start", "end"))
        mixed = np.flatnonzero(pc.fill_null(says, False).to_numpy(zero_copy_only=False))
        if not len(mixed):
            return None
        first = np.repeat(offsets[:-1], spans.lengths)[mixed]
        result = np.zeros(int(offsets[-1]), np.bool_)
        for at, start, end in zip(first, numbers(starts)[mixed], numbers(ends)[mixed], strict=True):
            result[at + start : at + end] = True
        return result

    def _choices(self) -> dict[int, Choices]:
        columns = {name: single(self.table, name) for name in ("rollout_experts", "train_experts", "margins")}
        rows = np.flatnonzero(columns["margins"].is_valid().to_numpy(zero_copy_only=False))
        if not len(rows):
            return {}
        layers, chosen = (single(self.table, name).to_pylist() for name in ("moe_layers", "experts_per_token"))
        of = [(column.numbers(), column.offsets.tolist()) for column in map(lists, columns.values())]
        result = {}
        for row in rows.tolist():
            rollout, train, margins = (values[offsets[row] : offsets[row + 1]] for values, offsets in of)
            shape = (-1, layers[row], chosen[row])
            result[row] = Choices(rollout.reshape(shape), train.reshape(shape), margins.reshape(shape[:2]))
        return result
