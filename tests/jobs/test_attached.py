"""A job outlives deaths in the middle of its syncs, and ends where something else is wrong."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from omni_rl.api.media import MediaAnswer
from omni_rl.api.runs import AttemptAnswer, RunAnswer, RunBody
from omni_rl.api.syncs import SyncAnswer
from omni_rl.client.call import Call
from omni_rl.errors import (
    ForbiddenError,
    JournalError,
    LedgerError,
    NonFiniteWeightsError,
    OmniRLError,
    QuarantinedError,
    RayUnavailableError,
    SyncRolledBackError,
    SyncRunningError,
    TakenOverError,
    TooLargeError,
    WeightUpdateError,
)
from omni_rl.jobs import attached
from omni_rl.jobs.attached import SYNCS, AttachedRun, create_run
from omni_rl.jobs.saved import SavedSteps
from omni_rl.policies import retries
from omni_rl.policies.attach import AttachedPair
from omni_rl.train.handle import TrainerHandle
from tests.policies.coordinator import Coordinator

BODY = RunBody(run="job-1", model="small", dtype="float32")
CRASHED = "its coordinator ended before anything was decided"


class RunsCoordinator(Coordinator):
    """It has run job-1, with the attempts `begun`, of which those in `sealed` have steps."""

    def __init__(self, told: Sequence[SyncAnswer | OmniRLError], sealed: Sequence[int] = (3,), begun: int = 3) -> None:
        super().__init__(told)
        self.sealed = sealed
        self.begun = begun

    def answer(self, call: Call[Any]) -> Any:
        if call.path == "/v1/runs":
            return RunAnswer.model_construct(run="job-1", attempt=self.sealed[-1] if self.sealed else None)
        if call.path == "/v1/runs/job-1/attempts":
            numbers = range(1, self.begun + 1)
            return [AttemptAnswer.model_construct(attempt=number, first=None, last=None) for number in numbers]
        if call.path.startswith("/v1/media/"):
            return MediaAnswer.model_construct(digest="abc")
        return None


def answer(outcome: str | None, reason: str = "", **values: Any) -> SyncAnswer:
    return SyncAnswer.model_validate(
        {"sync": "3f1c", "state": "finished", "phase": "idle", "started": 1.0, "outcome": outcome, "reason": reason}
        | {"version": "run/1/2/abc"}
        | values
    )


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(attached, "LOOK_SECONDS", 0.0)


class Engineless(AttachedPair):
    """Hears of syncs, and has no engine to find again."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__("up-1", (), cast(TrainerHandle, None), coordinator)
        self.followed: list[str] = []

    def follow(self, answer: SyncAnswer) -> None:
        self.followed.append(answer.version)


@pytest.fixture
def job(tmp_path: Path) -> Callable[[Coordinator], AttachedRun]:
    return lambda coordinator: AttachedRun(Engineless(coordinator), "job-1", 1, SavedSteps("job-1", tmp_path))


Job = Callable[[Coordinator], AttachedRun]


def test_a_sync_that_was_rolled_back_for_a_death_is_asked_for_again_under_another_key(job: Job) -> None:
    coordinator = RunsCoordinator(
        [
            answer("rolled_back", CRASHED),
            SyncRolledBackError("pause: replica rollout-0: its process ended during obey; replace it"),
            QuarantinedError("replica rollout-0: no successor"),
            answer("committed"),
        ]
    )
    assert job(coordinator).sync(1) == "run/1/2/abc"
    assert len(set(coordinator.asked)) == 4


def test_a_sync_that_is_not_known_to_be_over_is_looked_at_again_under_its_own_key(job: Job) -> None:
    coordinator = RunsCoordinator(
        [
            RayUnavailableError("the bridge ended"),
            answer(None, state="running"),
            SyncRunningError("another"),
            answer("committed"),
        ]
    )
    assert job(coordinator).sync(7) == "run/1/2/abc"
    assert len(coordinator.asked) == 4
    assert len(set(coordinator.asked)) == 1


def test_no_other_job_has_the_key_of_a_sync(job: Job) -> None:
    coordinator = RunsCoordinator([answer("committed")])
    for _ in range(2):  # the first died before it had stored anything, so the second has its run and attempt
        job(coordinator).sync(0)
    assert len(set(coordinator.asked)) == 2


@pytest.mark.parametrize("full", [LedgerError("the disk is full"), JournalError("the disk is full")])
def test_a_job_outlives_a_disk_that_is_full_for_a_while(job: Job, full: OmniRLError) -> None:
    coordinator = RunsCoordinator([full, full, answer("committed")])
    assert job(coordinator).sync(7) == "run/1/2/abc"
    assert len(coordinator.asked) == 3
    assert len(set(coordinator.asked)) == 1
    coordinator = RunsCoordinator([full, answer("committed")])
    job(coordinator).learnt(7, {"loss": 0.5})
    assert coordinator.asked == [("PUT", "/v1/runs/job-1/attempts/1/steps/7/training")] * 2
    coordinator = RunsCoordinator([full, answer("committed")])
    assert create_run(Engineless(coordinator), BODY) == (4, True)
    assert coordinator.asked == [("POST", "/v1/runs")] * 2 + [("GET", "/v1/runs/job-1/attempts")]
    coordinator = RunsCoordinator([full, answer("committed")])
    assert job(coordinator)._keep(b"...", "image/png") == "abc"
    assert [asked[0] for asked in coordinator.asked] == ["PUT"] * 2


def test_a_picture_that_the_store_does_not_take_ends_no_job(job: Job) -> None:
    assert job(RunsCoordinator([TooLargeError("33 MiB are more than 32 MiB")]))._keep(b"...", "image/png") is None


def test_an_attempt_that_left_only_a_part_is_not_gone_on_with() -> None:
    assert create_run(Engineless(RunsCoordinator([answer("committed")], sealed=[], begun=0)), BODY) == (1, False)
    assert create_run(Engineless(RunsCoordinator([answer("committed")], sealed=[], begun=1)), BODY) == (2, False)
    assert create_run(Engineless(RunsCoordinator([answer("committed")], sealed=[1], begun=2)), BODY) == (3, True)


def test_a_job_of_a_ledger_that_was_taken_over_waits_for_nothing(job: Job) -> None:
    with pytest.raises(TakenOverError):
        job(RunsCoordinator([TakenOverError("another coordinator took over"), answer("committed")])).sync(7)


def test_weights_that_are_never_proven_end_the_job_by_name(job: Job) -> None:
    coordinator = RunsCoordinator([SyncRolledBackError("verify: replica rollout-0: 3 elements of mixer.D differ")])
    with pytest.raises(WeightUpdateError, match=r"sync after step 4 failed 5 times.*mixer\.D differ"):
        job(coordinator).sync(4)
    assert len(set(coordinator.asked)) == SYNCS == 5


def test_weights_that_are_not_finite_end_the_job_with_that_sentence(job: Job) -> None:
    coordinator = RunsCoordinator([NonFiniteWeightsError("layers.3.A_log: 17 NaN of 64 elements")])
    with pytest.raises(NonFiniteWeightsError, match=r"^layers\.3\.A_log: 17 NaN of 64 elements$"):
        job(coordinator).sync(4)
    assert len(coordinator.asked) == 1


def test_what_no_patience_mends_is_raised_at_once(job: Job) -> None:
    coordinator = RunsCoordinator([ForbiddenError("this takes scope sync")])
    with pytest.raises(ForbiddenError):
        job(coordinator).sync(4)
    assert len(coordinator.asked) == 1
