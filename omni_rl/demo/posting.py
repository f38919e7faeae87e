"""The demo's steps as any framework would post them: records, media and training figures, through the client."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from omni_rl.api.runs import RunBody
from omni_rl.api.steps import Verdict
from omni_rl.client.blocking import Client
from omni_rl.config import DemoSettings
from omni_rl.demo.run import LocalPolicies, Played
from omni_rl.jobs.records import keep_media, media_entries, record_of
from omni_rl.media.types import Prompt
from omni_rl.rollout.types import Rollout
from omni_rl.train.types import Score

ATTEMPT = 1


class Posting:
    """Posts each step of a run and seals it."""

    def __init__(self, client: Client, run: str, settings: DemoSettings) -> None:
        self._client = client
        self._run = run
        client.create_run(RunBody(run=run, model=settings.model.name, dtype=settings.dtype))

    def keep(self, played: Played, policies: LocalPolicies) -> None:
        records = [
            record_of(prompt, rollout, score, reward, self._media(prompt, rollout, score), policies.decode)
            for prompt, rollout, score, reward in zip(
                played.prompts, played.rollouts, played.scores, played.rewards, strict=True
            )
        ]
        self.check(played.step, records, {"reward": float(np.mean(played.rewards))})

    def check(self, step: int, records: Sequence[dict[str, Any]], training: dict[str, float]) -> Verdict:
        """Records go in, a verdict comes out."""
        self._client.put_part(self._run, ATTEMPT, step, 0, records)
        return self._client.seal(self._run, ATTEMPT, step, parts=1, training=training).verdict

    def end(self) -> None:
        """Say that the run is over, so that nobody waits for its next step."""
        self._client.end_run(self._run)

    def _media(self, prompt: Prompt, rollout: Rollout, score: Score) -> list[dict[str, Any]]:
        """Its bytes go to the media store."""
        contents = keep_media(
            prompt, rollout.prompt.items, lambda data, kind: self._client.put_media(data, kind).digest
        )
        return media_entries(rollout, score, contents)
