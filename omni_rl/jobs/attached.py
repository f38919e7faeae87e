"""Runs a job against the service: the coordinator judges its steps, and brings its weights to the engines."""

import time
import uuid

from omni_rl.api.runs import RunBody
from omni_rl.api.syncs import SyncAnswer, SyncBody
from omni_rl.errors import NonFiniteWeightsError, RayUnavailableError, WeightUpdateError
from omni_rl.jobs.posting import Posting
from omni_rl.jobs.saved import SavedSteps
from omni_rl.policies.attach import AttachedPair
from omni_rl.policies.retries import LOOK_SECONDS, UNDONE, WAITS

SYNCS = 5
"""The most times that the sync of one step is tried. A sync that was rolled back, because a process died in its middle
or the weights were not proven, changed nothing, so that another try may succeed."""


class AttachedRun(Posting):
    """One attempt of the run `run`, judged and synced by the coordinator that hosts the policies."""

    def __init__(self, policies: AttachedPair, run: str, attempt: int, saved: SavedSteps) -> None:
        super().__init__(policies.coordinator, run, attempt, policies.decode)
        self._policies = policies
        self._saved = saved
        # Names of runs may end in numbers, and an attempt that died before its first part has its number again: without
        # this, a sync could have the key, and so the outcome, of another.
        self._keys = f"{run}-{attempt}-{uuid.uuid4().hex[:8]}"

    def save(self, following: int) -> None:
        """Save the trainer's state with which step `following` begins, and delete states that are too old."""
        self._policies.trainer.save(self._saved.path(following))
        self._saved.tidy()

    def sync(self, step: int) -> str:
        """Have the engines serve the trainer's weights, and return the version of these.

        Raises:
            WeightUpdateError: none of `SYNCS` tries succeeded.
            NonFiniteWeightsError: the trainer's weights hold NaN or infinity.
        """
        # The same key means the same sync, with the same outcome: each try needs a key of its own.
        for turn in range(1, SYNCS + 1):
            key = f"{self._keys}-{step}-{turn}"
            try:
                answer = self._sync(key)
            except NonFiniteWeightsError:
                raise  # the trainer has no other weights to try again with
            except UNDONE as error:
                failure = error
            else:
                self._policies.follow(answer)
                return answer.version
            time.sleep(LOOK_SECONDS)
        raise WeightUpdateError(f"the sync after step {step} failed {SYNCS} times, at last so: {failure}") from failure

    def _sync(self, key: str) -> SyncAnswer:
        end = time.monotonic() + WAITS[RayUnavailableError]
        while (answer := self._coordinator.sync(SyncBody(probe=False), key=key)).state == "running":
            # Its bridge died, and the successor has not settled it yet.
            if time.monotonic() >= end:
                raise RayUnavailableError(f"sync {answer.sync} is not over")
            time.sleep(LOOK_SECONDS)
        if answer.outcome != "committed":
            raise WeightUpdateError(f"sync {answer.sync} was {answer.outcome}: {answer.reason}")
        return answer


def create_run(policies: AttachedPair, body: RunBody) -> tuple[int, bool]:
    """Create the run, unless it exists, and return the number of its next attempt, and whether it has steps already."""
    has_steps = policies.coordinator.create_run(body).attempt is not None
    # An attempt that died before its first seal has left a part, which another's part must not meet.
    attempts = policies.coordinator.attempts(body.run)
    return max((each.attempt for each in attempts), default=0) + 1, has_steps
