"""Posts a loop's steps as any framework would: records, media and training figures, through the client."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omni_rl.api.steps import Verdict
from omni_rl.client.blocking import Client
from omni_rl.client.sealed import Sealed
from omni_rl.errors import MediaError, TooLargeError
from omni_rl.jobs.records import Decode, keep_media, media_entries, record_of
from omni_rl.jobs.run import StepAnswers, Weights
from omni_rl.media.types import MediaItem, Prompt

logger = logging.getLogger(__name__)


class Posting:
    """Posts each step of the run `run`, in its attempt `attempt`, to the coordinator, which judges it."""

    def __init__(self, coordinator: Client, run: str, attempt: int, decode: Decode) -> None:
        self._coordinator = coordinator
        self._run = run
        self._attempt = attempt
        self._decode = decode
        self._media: dict[tuple[tuple[tuple[str, str], ...], ...], list[str | None]] = {}

    def judge(self, step: int, answers: StepAnswers, training: Mapping[str, float]) -> tuple[Verdict, Weights | None]:
        records = []
        each = zip(answers.prompts, answers.rollouts, answers.scores, answers.rewards, strict=True)
        for prompt, rollout, score, reward in each:
            media = media_entries(rollout, score, self._kept(prompt, rollout.prompt.items))
            records.append(record_of(prompt, rollout, score, reward, media, self._decode))
        sealed = self.seal(step, records, training)
        return sealed.verdict, sealed.weights

    def seal(self, step: int, records: Sequence[Mapping[str, Any]], training: Mapping[str, float]) -> Sealed:
        """Post a step's records, have the coordinator judge them, and return its verdict and the tokens' weights."""
        where = self._run, self._attempt, step
        self._coordinator.put_part(*where, 0, records)
        return self._coordinator.seal(*where, parts=1, training=training)

    def learnt(self, step: int, training: Mapping[str, float]) -> None:
        self._coordinator.add_training(self._run, self._attempt, step, training)

    def end(self) -> None:
        """Say that the run is over, so that nobody waits for its next step."""
        self._coordinator.end_run(self._run)

    def _kept(self, prompt: Prompt, items: Sequence[MediaItem]) -> list[str | None]:
        """Return the digests of a prompt's media in the media store. They are put there once a run, because prompts
        come again and again."""
        seen = tuple(tuple(sorted(item.digests.items())) for item in items)
        if seen not in self._media:
            self._media[seen] = keep_media(prompt, self._keep)
        return self._media[seen]

    def _keep(self, content: bytes, kind: str) -> str | None:
        try:
            return self._coordinator.put_media(content, kind).digest
        except (TooLargeError, MediaError) as error:  # people see it on the page; no verdict needs it
            logger.warning("a medium of a prompt is not kept for the page: %s", error)
            return None
