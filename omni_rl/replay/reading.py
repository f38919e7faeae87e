"""Reads a bundle. It comes from elsewhere, so it is read member by member into memory, and checked before anything
starts."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from pydantic import ValidationError

from omni_rl.api.steps import SampleAnswer
from omni_rl.client.bundle import MEDIA, RECORD
from omni_rl.errors import ConfigError, RecordError
from omni_rl.kinds import Modality
from omni_rl.ledger.records import StepRecords
from omni_rl.media.formats import FORMATS, marked
from omni_rl.media.prompts import named, plain
from omni_rl.media.types import Prompt
from omni_rl.settings import describe

RECORD_BYTES = 256 * 2**20
"""The most bytes of a record. One of 30,000 tokens with its router choices, as JSON, is a third of it."""
MEDIA_BYTES = 256 * 2**20
"""The most bytes of all media together; a coordinator takes an eighth of it for one item."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The methods of compression that are read. The others unpack a block at a time, however small the piece that is asked
for."""


@dataclass(frozen=True)
class RecordedItem:
    """A media item of the record. `rendered` has the digest of each tensor as it was rendered then, None if not
    posted."""

    modality: Modality
    index: int
    offset: int
    length: int
    rendered: Mapping[str, str | None]


@dataclass(frozen=True)
class Bundle:
    """What a replay needs of a bundle. Shapes: P prompt tokens, T sampled tokens.

    `prompt_ids` is int64 [P]; `ids` int64 [T], and `texts` [T] are their texts; both logprobs are float64 [T], at
    `temperature`. `prompt` has the media as they were stored. `sampled_under` and `scored_with` name weight versions,
    empty if not posted.
    """

    sample: str
    step: str
    prompt: Prompt
    prompt_ids: NDArray[np.int64]
    media: tuple[RecordedItem, ...]
    ids: NDArray[np.int64]
    texts: tuple[str, ...]
    temperature: float
    rollout_logprobs: NDArray[np.float64]
    train_logprobs: NDArray[np.float64]
    sampled_under: tuple[str, ...]
    scored_with: str


def read_bundle(path: Path) -> Bundle:
    """Read a bundle that `omni-rl bundle` wrote.

    Raises:
        ConfigError: the file is no such zip, or lacks what a replay needs; the message names it.
        MediaError: a media item cannot be decoded.
        PromptError: placeholders and media do not match.
    """
    try:
        with zipfile.ZipFile(path) as file:
            answer = _answer(_member(file, RECORD, RECORD_BYTES))
            row = _row(answer)
            contents = _contents(file, row["media"] or [])
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: {error}") from None
    items = _items(row["media"] or [])
    return Bundle(
        sample=row["sample"],
        step=f"{answer.run}/{answer.attempt}/{answer.step}",
        prompt=_prompt(row["sample"], row["prompt_text"], items, contents),
        prompt_ids=np.array(row["prompt_ids"], np.int64),
        media=items,
        ids=np.array(row["ids"], np.int64),
        texts=tuple(text or "" for text in row["token_texts"] or [""] * len(row["ids"])),
        temperature=1.0 if row["temperature"] is None else row["temperature"],
        rollout_logprobs=np.array(row["rollout_logprobs"], np.float64),
        train_logprobs=np.array(row["train_logprobs"], np.float64),
        sampled_under=tuple(dict.fromkeys(span["version"] or "" for span in row["version_spans"] or [])),
        scored_with=row["train_version"] or "",
    )


def _member(file: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Return a member's bytes. Raises `ConfigError` if there are more than `most`, whatever the member's header
    says."""
    try:
        member = file.getinfo(name)
    except KeyError:
        raise ConfigError(f"there is no {name} in it; omni-rl bundle writes one") from None
    if member.compress_type not in METHODS:
        raise ConfigError(f"{name} is compressed by method {member.compress_type}; omni-rl bundle deflates")
    with file.open(member) as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise ConfigError(f"{name} has over {most} bytes unpacked, which are not taken")
    return data


def _answer(data: bytes) -> SampleAnswer:
    try:
        return SampleAnswer.model_validate_json(data)
    except ValidationError as error:
        raise ConfigError(f"{RECORD} is no sample: {describe(error)[:500]}") from None


def _row(answer: SampleAnswer) -> dict[str, Any]:
    """Return the record as a row, checked against the published schema."""
    try:
        (row,) = StepRecords.of([answer.record]).table.to_pylist()
    except RecordError as error:
        raise ConfigError(f"{RECORD}: {error}") from None
    lacking = [name for name in ("prompt_text", "prompt_ids", "ids") if not row[name]]
    if lacking:
        raise ConfigError(f"{RECORD} has no {', '.join(lacking)}: nothing to render or to score was posted")
    found: dict[str, Any] = row
    return found


def _contents(file: zipfile.ZipFile, media: list[dict[str, Any]]) -> list[bytes]:
    """Return the bytes of each media item, in the record's order."""
    found: dict[str, bytes] = {}
    left = MEDIA_BYTES
    for number, item in enumerate(media):
        name, digest = f"media item {number} ({item['modality']})", item["content"]
        if not digest:
            raise ConfigError(f"{name}: its bytes were not kept, only their digests; the prompt cannot be rendered")
        if digest in found:
            continue
        if f"{MEDIA}/{digest}" not in file.NameToInfo:
            raise ConfigError(f"{name}: {MEDIA}/{digest} is not in the bundle; the media store had dropped it")
        found[digest] = _member(file, f"{MEDIA}/{digest}", left)
        left -= len(found[digest])
        if blake3(found[digest]).hexdigest() != digest:
            raise ConfigError(f"{name}: {MEDIA}/{digest} has other bytes than its name says; the bundle is damaged")
    return [found[item["content"]] for item in media]


def _items(media: list[dict[str, Any]]) -> tuple[RecordedItem, ...]:
    seen: dict[str, int] = {}
    items = []
    for item in media:
        index = seen[item["modality"]] = seen.get(item["modality"], -1) + 1
        rendered = {tensor["name"]: tensor["rendered"] for tensor in item["tensors"] or []}
        items.append(RecordedItem(item["modality"], index, item["offset"], item["length"], rendered))
    return tuple(items)


def _prompt(sample: str, text: str, items: tuple[RecordedItem, ...], contents: list[bytes]) -> Prompt:
    kinds = marked(text)
    if [FORMATS[kind].modality for kind in kinds] != [item.modality for item in items]:
        kinds = [item.modality for item in items]  # `plain` says what does not match
    media: dict[str, Any] = {}
    for kind, data in zip(kinds, contents, strict=True):
        known = FORMATS[kind]
        read = media.get(known.field, ())
        with named(sample, kind, len(read)):
            media[known.field] = (*read, known.read(data))
    return plain(Prompt(sample, text, **media))
