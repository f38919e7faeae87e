"""A job's run: the coordinator judges its steps, and brings its weights to the engines."""

import time
from functools import partial

from omni_rl.api.runs import RunBody
from omni_rl.api.syncs import SyncAnswer, SyncBody
from omni_rl.errors import NonFiniteWeightsError, RayUnavailableError, WeightUpdateError
from omni_rl.jobs.posting import Posting
from omni_rl.jobs.saved import SavedSteps
from omni_rl.policies.attach import AttachedPair
from omni_rl.policies.retries import LOOK_SECONDS, UNDONE, retried

SYNCS = 5
"""How often a step's weights are brought: a sync that was rolled back, for a death in its middle or for weights that
were not proven, changed nothing."""


class AttachedRun(Posting):
    """The run `run` of the coordinator that hosts the policies, in its attempt `attempt`."""

    def __init__(self, policies: AttachedPair, run: str, attempt: int, saved: SavedSteps) -> None:
        super().__init__(policies.coordinator, run, attempt, policies.decode)
        self._policies = policies
        self._saved = saved

    def save(self, following: int) -> None:
        """Keep the state with which step `following` begins."""
        self._policies.trainer.save(self._saved.path(following))
        self._saved.tidy()

    def sync(self, step: int) -> str:
        """Serve the trainer's weights; the version. Raises `WeightUpdateError` where no try went through, and
        `NonFiniteWeightsError` where the trainer's weights hold NaN or infinity."""
        # The same key is the same sync, with the same end: each try has its own.
        for turn in range(1, SYNCS + 1):
            key = f"{self._run}-{self._attempt}-{step}" + (f"-{turn}" if turn > 1 else "")
            try:
                answer = retried(partial(self._sync, key))
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
        answer = self._coordinator.sync(SyncBody(probe=False), key=key)
        if answer.state == "running":  # a bridge died over it, and its successor has not settled it yet
            raise RayUnavailableError(f"sync {answer.sync} is not over")
        if answer.outcome != "committed":
            raise WeightUpdateError(f"sync {answer.sync} was {answer.outcome}: {answer.reason}")
        return answer


def create_run(policies: AttachedPair, body: RunBody) -> int:
    """Make the run, or find it as it is; returns the number of its next attempt."""
    answer = retried(lambda: policies.coordinator.create_run(body))
    return (answer.attempt or 0) + 1
