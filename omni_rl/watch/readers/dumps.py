"""Reads files of a run as steps: which reader a file needs, and which step of which rank it holds."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omni_rl.consistency.posted.step import LogprobsOf
from omni_rl.errors import RecordError
from omni_rl.ledger.records import StepRecords
from omni_rl.watch.readers import nemo_rl, tables
from omni_rl.watch.readers.lines import STANDARD_INPUT, objects, read_bytes

SUFFIXES = (".arrow", ".json", ".jsonl", ".parquet")
"""The suffixes of files that are read in a directory."""
OF_TABLES = (".arrow", ".parquet")
OF_NEMO_RL = "train_data_step*.jsonl"
STEP, RANK, LAST = re.compile(r"step[-_.]?(\d+)"), re.compile(r"rank[-_.]?(\d+)"), re.compile(r"(\d+)\D*$")


@dataclass(frozen=True)
class DumpedStep:
    """A step's records by rank, the files that they are from, and `notes` on how the files were read."""

    step: int
    parts: Mapping[int, StepRecords]
    files: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    step: int
    rank: int
    records: StepRecords
    file: Path
    note: str = ""


def read_steps(
    paths: Sequence[Path], *, kind: str = "text", logprobs_of: LogprobsOf | None = None
) -> Iterator[DumpedStep]:
    """Yield the steps of files, of the files in directories and of standard input (`-`), in order of their numbers.

    A step's number is what its records say, or else its file's name (`train_data_step12.jsonl`, `rank0-step12.parquet`,
    `12.jsonl`), or else the place in the order given, among the files of its rank. `kind` and `logprobs_of` are for
    NeMo RL's files, which do not say.

    Raises:
        RecordError: A file is missing, damaged, or of no format that is known; or a step has two parts of a rank.
    """
    steps: dict[int, dict[int, _Part]] = {}
    files = Counter(_files(paths))
    if twice := next((path for path, count in files.items() if count > 1), None):
        raise RecordError(f"{twice} is given twice")
    places = Counter[int]()
    for path in files:
        rank = int(named[1]) if (named := RANK.search(path.name)) else 0
        for part in _parts(path, places[rank], rank, kind, logprobs_of):
            others = steps.setdefault(part.step, {})
            if part.rank in others:
                raise RecordError(
                    f"step {part.step} of rank {part.rank} is in {others[part.rank].file} and in {path}: have names or "
                    "columns (step, rank) tell them apart"
                )
            others[part.rank] = part
        places[rank] += 1
    for step, parts in sorted(steps.items()):
        ordered = [part for _, part in sorted(parts.items())]
        yield DumpedStep(
            step,
            {part.rank: part.records for part in ordered},
            tuple(dict.fromkeys(part.file for part in ordered)),
            tuple(dict.fromkeys(part.note for part in ordered if part.note)),
        )


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield STANDARD_INPUT if path == Path("-") else path
            continue
        found = sorted(path.glob(OF_NEMO_RL)) or sorted(one for one in path.iterdir() if one.suffix in SUFFIXES)
        if not found:
            below = next((one.parent for one in sorted(path.rglob(OF_NEMO_RL))), None)
            raise RecordError(
                f"{path} has no {OF_NEMO_RL}, nor any file of {', '.join(SUFFIXES)}"
                + (f"; {below} has" if below else "")
            )
        yield from found


def _parts(path: Path, place: int, rank: int, kind: str, logprobs_of: LogprobsOf | None) -> Iterator[_Part]:
    """Yield a file's parts; where neither its records nor its name say the step, that is `place`. `rank` is what its
    name says."""
    content = read_bytes(path)
    # The rank's number is not the step's, wherever it stands in the name.
    named = STEP.search(path.name) or LAST.search(RANK.sub("", path.stem))
    otherwise = (int(named[1]) if named else place, rank)
    found: Iterator[tuple[tables.Place, StepRecords]]
    if tables.is_table(content):
        found = tables.read_table(path, content)
    elif path.suffix in OF_TABLES:
        raise RecordError(f"{path}: neither Parquet nor Arrow, as its name says it is; was the file cut off?")
    elif (document := _document(content)) is not None:
        found = tables.read_document(path, document)
    else:
        located = list(objects(path, content))
        if _is_nemo_rl(path, located[0][1]):
            rows = nemo_rl.rows_of(located)
            records = nemo_rl.records(path, rows, kind=kind, logprobs_of=logprobs_of)
            note = "" if nemo_rl.is_masked(rows) else nemo_rl.UNMASKED
            yield _Part(*otherwise, records, path, note)
            return
        found = tables.read_rows(path, located)
    for (step, rank_of_row), records in found:
        yield _Part(
            otherwise[0] if step is None else step, otherwise[1] if rank_of_row is None else rank_of_row, records, path
        )


def _document(content: bytes) -> Mapping[str, object] | None:
    """Return one JSON document of records; None for lines of them."""
    if b'"records"' not in content:
        return None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) and "records" in document else None


def _is_nemo_rl(path: Path, row: Mapping[str, object]) -> bool:
    return path.match(OF_NEMO_RL) or "generation_logprobs" in row
