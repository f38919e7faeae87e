"""The service's policies as a job's loop sees them."""

import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from omni_rl.api.runs import RunBody
from omni_rl.api.syncs import SyncAnswer, SyncBody
from omni_rl.client.sealed import Sealed
from omni_rl.errors import NonFiniteWeightsError, RayUnavailableError, WeightUpdateError
from omni_rl.jobs.policies import Answers
from omni_rl.jobs.records import keep_media, media_entries, record_of
from omni_rl.jobs.saved import SavedSteps
from omni_rl.media.types import MediaItem, Prompt, RenderedPrompt
from omni_rl.policies.attach import AttachedPair
from omni_rl.policies.patience import LOOK_SECONDS, UNDONE, patiently
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.train.settings import Objective
from omni_rl.train.targets import Targets
from omni_rl.train.types import Score, StepStats

SYNCS = 5
"""How often a step's weights are brought: a sync that was rolled back, for a death in its middle or for weights that
were not proven, changed nothing."""


class Attached:
    """Of the coordinator's run `run`, in its attempt `attempt`."""

    def __init__(self, policies: AttachedPair, run: str, attempt: int, saved: SavedSteps) -> None:
        self._policies = policies
        self._saved = saved
        self._run = run
        self._attempt = attempt
        self._media: dict[tuple[tuple[tuple[str, str], ...], ...], list[str]] = {}

    def render(self, prompts: Sequence[Prompt]) -> list[RenderedPrompt]:
        return self._policies.render(prompts)

    def sample(self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings) -> list[Rollout]:
        return self._policies.sample(prompts, sampling)

    def score(self, rollouts: Sequence[Rollout], snapshot: str | None = None, *, replay: bool = False) -> list[Score]:
        return self._policies.score(rollouts, snapshot, replay=replay)

    def take_snapshot(self, name: str) -> None:
        self._policies.trainer.take_snapshot(name)

    def drop_snapshot(self, name: str) -> None:
        self._policies.trainer.drop_snapshot(name)

    def update(
        self, rollouts: Sequence[Rollout], targets: Sequence[float | Targets], objective: Objective
    ) -> StepStats:
        return self._policies.update(rollouts, targets, objective)

    def decode(self, ids: NDArray[np.int64]) -> str:
        return self._policies.decode(ids)

    def judge(self, step: int, answers: Answers, training: Mapping[str, float]) -> Sealed:
        records = []
        each = zip(answers.prompts, answers.rollouts, answers.scores, answers.rewards, strict=True)
        for prompt, rollout, score, reward in each:
            media = media_entries(rollout, score, self._kept(prompt, rollout.prompt.items))
            records.append(record_of(prompt, rollout, score, reward, media, self.decode))
        client = self._policies.coordinator
        client.put_part(self._run, self._attempt, step, 0, records)
        return client.seal(self._run, self._attempt, step, parts=1, training=training)

    def learnt(self, step: int, training: Mapping[str, float]) -> None:
        self._policies.coordinator.add_training(self._run, self._attempt, step, training)

    def end(self) -> None:
        """Say that the run is over, so that nobody waits for its next step."""
        self._policies.coordinator.end_run(self._run)

    def save(self, following: int) -> None:
        self._policies.trainer.save(self._saved.path(following))
        self._saved.tidy()

    def sync(self, step: int) -> str:
        """Serve the trainer's weights; the version. Raises `WeightUpdateError` where no try went through, and
        `NonFiniteWeightsError` where the trainer's weights hold NaN or infinity."""
        # The same key is the same sync, with the same end: each try has its own.
        for turn in range(1, SYNCS + 1):
            key = f"{self._run}-{self._attempt}-{step}" + (f"-{turn}" if turn > 1 else "")
            try:
                answer = patiently(partial(self._sync, key))
            except NonFiniteWeightsError:
                raise  # the trainer has no others to try again with
            except UNDONE as error:
                failure = error
            else:
                self._policies.follow(answer)
                return answer.version
            time.sleep(LOOK_SECONDS)
        raise WeightUpdateError(f"the sync after step {step} failed {SYNCS} times, at last so: {failure}") from failure

    def _sync(self, key: str) -> SyncAnswer:
        answer = self._policies.coordinator.sync(SyncBody(probe=False), key=key)
        if answer.state == "running":  # a bridge died over it, and its successor has not settled it yet
            raise RayUnavailableError(f"sync {answer.sync} is not over")
        if answer.outcome != "committed":
            raise WeightUpdateError(f"sync {answer.sync} was {answer.outcome}: {answer.reason}")
        return answer

    def _kept(self, prompt: Prompt, items: Sequence[MediaItem]) -> list[str]:
        """Digests of a prompt's media in the store, where they are put once a job: prompts come again and again."""
        seen = tuple(tuple(sorted(item.digests.items())) for item in items)
        if seen not in self._media:
            self._media[seen] = keep_media(prompt, items, self._keep)
        return self._media[seen]

    def _keep(self, content: bytes, kind: str) -> str:
        return self._policies.coordinator.put_media(content, kind).digest


def create_run(policies: AttachedPair, body: RunBody) -> int:
    """Make the run, or find it as it is; returns the number of its next attempt."""
    answer = policies.coordinator.create_run(body)
    return (answer.attempt or 0) + 1
