"""Checks that records are what the schema asks for: lengths that match, positions inside their answers, texts that are
not too long."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from omni_rl.counting import counted
from omni_rl.errors import RecordError
from omni_rl.kinds import MODALITIES
from omni_rl.ledger.lists import Lists, lists, numbers, present, single
from omni_rl.ledger.schema import COLUMNS, RecordLimits

CHOICES = ("moe_layers", "experts_per_token", "rollout_experts", "train_experts", "margins")
ENTROPIES = ("rollout_entropy", "train_entropy")
TOP = ("rollout_top_ids", "rollout_top_logprobs")
LOGPROBS_OF = ("processed", "raw", "unknown")
DIGEST = "^[0-9a-f]{64}$"

BELOW_ZERO = 1e-3
"""How far a float32 entropy may lie below zero, and a logprob above, by rounding."""

_MODALITIES = pa.array(MODALITIES)


def check(table: pa.Table, limits: RecordLimits) -> None:
    """Raise `RecordError`, which names the first row that is wrong, and its column. `table` has the schema's types."""
    _Check(table, limits).run()


class _Check:
    """The check of one table of N rows."""

    def __init__(self, table: pa.Table, limits: RecordLimits) -> None:
        self._table = table
        self._limits = limits
        self._columns: dict[str, pa.Array] = {name: single(table, name) for name in table.column_names}
        self._lists: dict[str, Lists] = {}

    def run(self) -> None:
        for column in COLUMNS:
            if column.required:
                self._refuse(column.name, ~present(self._columns[column.name]), lambda row: "is required")
        self._names()
        answer = self._answers()
        prompt = self._prompts(answer)
        self._numbers()
        self._entropies()
        self._top(answer)
        self._words()
        self._spans(answer)
        self._media(prompt)
        self._choices(prompt, answer)
        self._texts()

    def _names(self) -> None:
        self._bounded_text("sample", self._limits.name)
        samples = self._columns["sample"].to_pylist()
        self._refuse("sample", np.array([not name for name in samples], np.bool_), lambda row: "is empty")
        if len(set(samples)) < len(samples):
            seen: dict[str, int] = {}
            for row, name in enumerate(samples):
                if name in seen:
                    raise self._error("sample", row, f"is also the name of row {seen[name]}")
                seen[name] = row
        kinds = self._columns["kind"]
        known = (
            pc.fill_null(pc.is_in(kinds, pa.array(self._limits.kinds, pa.string())), False)
            if kinds.null_count < len(kinds)
            else kinds
        )
        strange = present(kinds) & ~numbers(known).astype(np.bool_)
        self._refuse(
            "kind", strange, lambda row: f"is {kinds[row].as_py()!r}; known are {', '.join(self._limits.kinds)}"
        )

    def _answers(self) -> NDArray[np.int64]:
        """Check every list that is as long as the answer, and return T of each row."""
        lengths = self._list("rollout_logprobs").lengths
        self._refuse(
            "rollout_logprobs",
            lengths > self._limits.tokens_per_record,
            lambda row: f"has {lengths[row]} tokens, over {self._limits.tokens_per_record}",
        )
        if (total := int(lengths.sum())) > self._limits.tokens:
            raise RecordError(f"{total} sampled tokens in one part, over {self._limits.tokens}; send several parts")
        for column in COLUMNS:
            if column.length == "T":
                self._length(column.name, lengths, "rollout_logprobs has")
        return lengths

    def _prompts(self, answer: NDArray[np.int64]) -> NDArray[np.int64]:
        """Check the prompts, and return P of each row."""
        given = self._columns["prompt_tokens"]
        ids = self._list("prompt_ids")
        prompt = numbers(pc.fill_null(given, 0)).astype(np.int64)
        self._refuse("prompt_tokens", prompt < 0, lambda row: "is negative")
        prompt = np.where(present(given), prompt, ids.lengths)
        self._length("prompt_ids", prompt, "prompt_tokens says")
        whole = prompt + answer
        self._refuse(
            "prompt_tokens",
            whole > self._limits.tokens_per_record,
            lambda row: f"and the answer are {whole[row]} tokens, over {self._limits.tokens_per_record}",
        )
        for name in ("prompt_ids", "ids"):
            values = self._list(name)
            self._refuse_value(name, values, values.numbers() < 0, "is negative")
        return prompt

    def _numbers(self) -> None:
        temperature = self._columns["temperature"]
        values = numbers(pc.fill_null(temperature, 1.0))
        self._refuse(
            "temperature",
            ~np.isfinite(values) | (values < 0),
            lambda row: f"is {values[row]}; it must be finite and not negative",
        )

    def _entropies(self) -> None:
        for name in ENTROPIES:
            values = self._list(name)
            flat = values.numbers()
            wrong = ~np.isfinite(flat) | (flat < -BELOW_ZERO)
            self._refuse_value(name, values, wrong, "is no entropy: it must be finite and not negative")

    def _top(self, answer: NDArray[np.int64]) -> None:
        given = np.stack([present(self._columns[name]) for name in TOP])
        some = given.any(axis=0)
        self._refuse(TOP[0], some & ~given.all(axis=0), lambda row: f"{' and '.join(TOP)} go together or not at all")
        rows = np.flatnonzero(some & (answer > 0))
        if len(rows):
            lengths = self._list(TOP[0]).lengths
            k = int(lengths[rows[0]] // answer[rows[0]])
            if not 1 <= k <= self._limits.top:
                raise self._error(
                    TOP[0], int(rows[0]), f"has {k} ids a token; from 1 to {self._limits.top} of them are kept"
                )
            for name in TOP:
                self._length(name, answer * k, f"its tokens times {k}, as many as the first answer has, are")
        ids, logprobs = (self._list(name) for name in TOP)
        self._refuse_value(TOP[0], ids, ids.numbers() < 0, "is negative")
        flat = logprobs.numbers()
        self._refuse_value(
            TOP[1], logprobs, np.isnan(flat) | (flat > BELOW_ZERO), "is no logprob: it must be at most 0"
        )

    def _words(self) -> None:
        said = self._columns["logprobs_of"]
        if said.null_count < len(said):
            known = pc.fill_null(pc.is_in(said, pa.array(LOGPROBS_OF, pa.string())), False)
            strange = present(said) & ~numbers(known).astype(np.bool_)
            self._refuse("logprobs_of", strange, lambda row: f"is {said[row].as_py()!r}; use {', '.join(LOGPROBS_OF)}")

    def _spans(self, answer: NDArray[np.int64]) -> None:
        spans = self._list("version_spans")
        fields = self._struct("version_spans", spans.flat, ("version", "start", "end"))
        start, end = (numbers(fields[name]).astype(np.int64) for name in ("start", "end"))
        row = np.repeat(np.arange(len(answer)), spans.lengths)
        previous = np.where(np.diff(row, prepend=-1) == 0, np.concatenate([[0], end[:-1]]), 0) if len(row) else end
        wrong = (start < previous) | (end <= start) | (end > answer[row])
        self._refuse_value("version_spans", spans, wrong, "is not in order, is empty, or ends after the answer")
        self._bounded("version_spans", spans, fields["version"], self._limits.name)
        self._refuse_value("version_spans", spans, _with_nul(fields["version"]), "has a NUL in its version")
        self._bounded_text("train_version", self._limits.name)
        for name in ("rollout_prompt_digest", "train_prompt_digest", "filtered", "rollout_dtype", "train_dtype"):
            self._bounded_text(name, self._limits.name)

    def _media(self, prompt: NDArray[np.int64]) -> None:
        media = self._list("media")
        if not len(media.flat):
            return
        limit = self._limits.media_per_record
        self._refuse("media", media.lengths > limit, lambda row: f"has {media.lengths[row]} items, over {limit}")
        fields = self._struct("media", media.flat, ("modality", "offset", "length"))
        offset, length = (numbers(fields[name]).astype(np.int64) for name in ("offset", "length"))
        row = np.repeat(np.arange(len(prompt)), media.lengths)
        outside = (offset < 0) | (length < 0) | ((offset + length > prompt[row]) & (prompt[row] > 0))
        self._refuse_value("media", media, outside, "lies outside its prompt")
        strange = ~numbers(pc.is_in(fields["modality"], _MODALITIES)).astype(np.bool_)
        self._refuse_value("media", media, strange, f"has a modality that is none of {', '.join(MODALITIES)}")
        content = pc.fill_null(fields["content"], "0" * 64)
        odd = ~numbers(pc.match_substring_regex(content, DIGEST)).astype(np.bool_)
        self._refuse_value("media", media, odd, "has a content that is no blake3 in hex")
        tensors = lists(fields["tensors"])
        self._refuse_value("media", media, tensors.lengths > limit, f"has more than {limit} tensors")
        named = self._struct("media", tensors.flat, ("name",))
        for name in ("name", "rendered", "engine", "train"):
            long = numbers(pc.fill_null(pc.binary_length(named[name]), 0)) > self._limits.name
            for wrong, why in ((long, f"over {self._limits.name} bytes"), (_with_nul(named[name]), "with a NUL")):
                if wrong.any():
                    item = tensors.row_of(int(wrong.argmax()))
                    raise self._error("media", media.row_of(item), f"has a tensor's {name} {why}")

    def _choices(self, prompt: NDArray[np.int64], answer: NDArray[np.int64]) -> None:
        given = np.stack([present(self._columns[name]) for name in CHOICES])
        some = given.any(axis=0)
        self._refuse(
            "rollout_experts",
            some & ~given.all(axis=0),
            lambda row: f"{', '.join(CHOICES)} go together or not at all",
        )
        if not some.any():
            return
        layers, chosen = (numbers(pc.fill_null(self._columns[name], 1)).astype(np.int64) for name in CHOICES[:2])
        for name, values in (("moe_layers", layers), ("experts_per_token", chosen)):
            self._refuse(name, some & ((values < 1) | (values > 4096)), lambda row: "must be 1 to 4096")
        self._refuse("prompt_tokens", some & (prompt < 1), lambda row: "must be known beside router choices")
        positions = np.maximum(prompt + answer - 1, 0)
        size = positions * layers * chosen
        limit = self._limits.values_per_record
        self._refuse("rollout_experts", some & (size > limit), lambda row: f"has {size[row]} values, over {limit}")
        for name in ("rollout_experts", "train_experts"):
            self._length(name, size, "(prompt + answer - 1) * moe_layers * experts_per_token is")
        self._length("margins", positions * layers, "(prompt + answer - 1) * moe_layers is")

    def _texts(self) -> None:
        self._bounded_text("prompt_text", self._limits.text)
        texts = self._list("token_texts")
        self._bounded("token_texts", texts, texts.flat, self._limits.text)

    def _list(self, name: str) -> Lists:
        """Return a list column that has no nulls among its values. Raises `RecordError` if it has some."""
        if name not in self._lists:
            values = lists(self._columns[name])
            if values.flat.null_count:
                self._refuse_value(name, values, ~present(values.flat), "is null")
            self._lists[name] = values
        return self._lists[name]

    def _struct(self, column: str, flat: pa.Array, required: tuple[str, ...]) -> dict[str, pa.Array]:
        fields = dict(zip((flat.type.field(i).name for i in range(flat.type.num_fields)), flat.flatten(), strict=True))
        for name in required:
            if fields[name].null_count:
                raise RecordError(f"column {column}: {name} is null in one of its items")
        return fields

    def _length(self, name: str, wanted: NDArray[np.int64], source: str) -> None:
        values = self._list(name)
        self._refuse(
            name,
            values.present & (values.lengths != wanted),
            lambda row: f"has {counted(int(values.lengths[row]), 'value')}, {source} {wanted[row]}",
        )

    def _bounded_text(self, name: str, limit: int) -> None:
        if self._columns[name].null_count == len(self._columns[name]):
            return
        sizes = numbers(pc.fill_null(pc.binary_length(self._columns[name]), 0))
        self._refuse(name, sizes > limit, lambda row: f"has {sizes[row]} bytes, over {limit}")
        self._refuse(name, _with_nul(self._columns[name]), lambda row: "has a NUL, which no database keeps")

    def _bounded(self, name: str, values: Lists, flat: pa.Array, limit: int) -> None:
        long = numbers(pc.fill_null(pc.binary_length(flat), 0)) > limit
        self._refuse_value(name, values, long, f"is longer than {limit} bytes")

    def _refuse(self, column: str, wrong: Any, why: Callable[[int], str]) -> None:
        if wrong.any():
            row = int(wrong.argmax())
            raise self._error(column, row, why(row))

    def _refuse_value(self, column: str, values: Lists, wrong: Any, why: str) -> None:
        if wrong.any():
            at = int(np.argmax(wrong))
            row = values.row_of(at)
            raise self._error(column, row, f"value {at - int(values.offsets[row])} {why}")

    def _error(self, column: str, row: int, why: str) -> RecordError:
        sample = self._columns["sample"][row].as_py()
        name = "" if sample is None else f" (sample {sample[:80]!r})"
        return RecordError(f"row {row}{name}, column {column}: {why}")


def _with_nul(texts: pa.Array) -> NDArray[np.bool_]:
    """Return which texts have a NUL: PostgreSQL takes none, in a column or within JSON."""
    found: NDArray[np.bool_] = numbers(pc.fill_null(pc.match_substring(texts, "\0"), False)).astype(np.bool_)
    return found
