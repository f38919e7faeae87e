"""A failing sample in one file, so that it can be looked into elsewhere: its record, its media, and a check."""

import json
import zipfile
from pathlib import Path

from omni_rl.api.syncs import CheckBody
from omni_rl.client.blocking import Client
from omni_rl.errors import ConfigError, NotFoundError

RECORD, CHECK, MEDIA = "sample.json", "check.json", "media"


def bundle(client: Client, run: str, attempt: int, step: int, sample: str | None, out: Path, *, check: bool) -> Path:
    """Write `out`, a zip: `sample.json` (ids, logprobs of both sides, versions, digests of every media tensor),
    `media/DIGEST` (what the store still has of them) and, if asked for, `check.json` (legs, reference and the profile
    by module as of now). Without `sample`: the step's worst one.

    Raises:
        NotFoundError: there is no such step or sample, or the step kept none.
        ConfigError: `out` exists.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; name another file")
    if sample is None:
        worst = client.step(run, attempt, step).verdict.worst
        if not worst:
            raise NotFoundError(f"step {step} of {run} kept no sample")
        sample = worst[0].sample
    found = client.sample(run, attempt, step, sample)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(RECORD, found.model_dump_json(indent=1))
        for digest in dict.fromkeys(item["content"] for item in found.record.get("media") or [] if item["content"]):
            try:
                file.writestr(f"{MEDIA}/{digest}", client.media(digest))
            except NotFoundError:
                continue  # too old, or kept out on purpose: its digests are in the record
        if check:
            body = CheckBody(run=run, attempt=attempt, step=step, reference=True, localise=True)
            file.writestr(CHECK, json.dumps(client.check(body).model_dump(mode="json"), indent=1))
    return out
