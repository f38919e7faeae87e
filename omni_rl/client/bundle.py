"""Writes a failing sample to one file, with its record, its media and a check, so that it can be examined elsewhere."""

import json
import os
import zipfile
from pathlib import Path

from omni_rl.api.syncs import CheckBody
from omni_rl.client.blocking import Client
from omni_rl.errors import ConfigError, NotFoundError

RECORD, CHECK, MEDIA = "sample.json", "check.json", "media"


def bundle(client: Client, run: str, attempt: int, step: int, sample: str | None, out: Path, *, check: bool) -> Path:
    """Write `out`, a zip: `sample.json` (ids, logprobs of both sides, versions, digests of every media tensor),
    `media/DIGEST` (those media that the store still has) and, if asked for, `check.json` (legs, reference and the
    profile by module as of now). Without `sample`, the step's worst one is written.

    Raises:
        NotFoundError: There is no such step or sample, or no sample of the step was stored.
        ConfigError: `out` exists, or its folder is not there or cannot be written to; nothing was asked.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; name another file")
    if not (out.parent.is_dir() and os.access(out.parent, os.W_OK | os.X_OK)):
        raise ConfigError(f"{out.parent} is no folder that can be written to; make it, or name another file")
    if sample is None:
        worst = client.step(run, attempt, step).verdict.worst
        if not worst:
            raise NotFoundError(f"no sample of step {step} of {run} was stored")
        sample = worst[0].sample
    found = client.sample(run, attempt, step, sample)
    body = CheckBody(run=run, attempt=attempt, step=step, reference=True, localise=True)
    checked = client.check(body) if check else None
    media = {}
    for digest in dict.fromkeys(item["content"] for item in found.record.get("media") or [] if item["content"]):
        try:
            media[digest] = client.media(digest)
        except NotFoundError:
            continue  # too old, or not stored on purpose: the record has its digest
    # Nothing is asked any more once the file is there: half a file would be in the way of the next try.
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(RECORD, found.model_dump_json(indent=1))
        for digest, content in media.items():
            file.writestr(f"{MEDIA}/{digest}", content)
        if checked is not None:
            file.writestr(CHECK, json.dumps(checked.model_dump(mode="json"), indent=1))
    return out
