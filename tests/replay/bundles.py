"""Bundles as `omni-rl bundle` writes them, of records that are at hand."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from omni_rl.api.steps import SampleAnswer
from omni_rl.jobs.records import keep_media, media_entries, record_of
from omni_rl.ledger.records import StepRecords
from omni_rl.media.types import Prompt
from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score


def write(path: Path, record: Mapping[str, Any], contents: Mapping[str, bytes]) -> Path:
    """Of a record as JSON has it, and the bytes of its media by digest."""
    answer = SampleAnswer(
        run="digits", attempt=1, step=12, sample=record["sample"], kind=record["kind"], error=1.5, record=dict(record)
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("sample.json", json.dumps(answer.model_dump(mode="json")))
        for digest, data in contents.items():
            file.writestr(f"media/{digest}", data)
    return path


def write_played(path: Path, prompt: Prompt, rollout: Rollout, score: Score) -> Path:
    """Of what a job would post about one answer."""
    contents: dict[str, bytes] = {}

    def keep(data: bytes, kind: str) -> str:
        digest = blake3(data).hexdigest()
        contents[digest] = data
        return digest

    media = media_entries(rollout, score, keep_media(prompt, keep))
    posted = record_of(prompt, rollout, score, None, media, lambda ids: " ".join(map(str, ids)))
    (record,) = StepRecords.of([posted]).to_json()["records"]
    return write(path, record, contents)
