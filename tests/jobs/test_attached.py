"""A job outlives deaths in the middle of its syncs and of its samples, and ends where something else is wrong."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from omni_rl.api.syncs import SyncAnswer, SyncBody
from omni_rl.bridge import attach, patience
from omni_rl.client.blocking import Client
from omni_rl.errors import (
    EngineDeadError,
    ForbiddenError,
    OmniRLError,
    QuarantinedError,
    RayUnavailableError,
    SyncRolledBackError,
    SyncRunningError,
    WeightUpdateError,
)
from omni_rl.jobs import attached
from omni_rl.jobs.attached import CALLS, SYNCS, Attached
from omni_rl.jobs.saved import SavedSteps
from omni_rl.rollout.types import SamplingSettings

CRASHED = "its coordinator ended before anything was decided"
SAMPLING = SamplingSettings(max_tokens=2)
Told = SyncAnswer | OmniRLError


@dataclass
class Coordinator:
    """Answers syncs as it was told to, and the last answer again and again."""

    told: list[Told]
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def sync(self, body: SyncBody, *, key: str | None = None) -> SyncAnswer:
        self.asked.append((body.source, key))
        answer = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        if isinstance(answer, OmniRLError):
            raise answer
        return answer


@dataclass
class Engine:
    """Answers with its name; one that is `dead` does not."""

    name: str
    dead: bool = False
    settings: Any = None

    def sample(self, prompts: object, sampling: object) -> list[str]:
        if self.dead:
            raise EngineDeadError(f"{self.name}: its process ended during sample; replace it")
        return [self.name]


def answer(outcome: str | None, reason: str = "", **values: Any) -> SyncAnswer:
    return SyncAnswer.model_validate(
        {"sync": "3f1c", "state": "finished", "phase": "idle", "started": 1.0, "outcome": outcome, "reason": reason}
        | {"version": "run/1/2/abc"}
        | values
    )


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(attached, "LOOK_SECONDS", 0.0)


@pytest.fixture
def job(small_checkpoint: Path, tmp_path: Path) -> Callable[[Coordinator, list[Engine]], Attached]:
    def made(coordinator: Coordinator, engines: list[Engine]) -> Attached:
        engines[0].settings = SimpleNamespace(model=small_checkpoint)
        policies = attach.Policies("up-1", cast(Any, tuple(engines)), cast(Any, None), cast(Client, coordinator))
        return Attached(policies, "job-1", 1, SavedSteps("job-1", tmp_path))

    return made


Job = Callable[[Coordinator, list[Engine]], Attached]


def test_a_sync_that_was_rolled_back_for_a_death_is_asked_for_again_under_another_key(job: Job) -> None:
    coordinator = Coordinator(
        [
            answer("rolled_back", CRASHED),
            SyncRolledBackError("pause: replica rollout-0: its process ended during obey; replace it"),
            QuarantinedError("replica rollout-0: no successor"),
            answer("committed"),
        ]
    )
    assert job(coordinator, [Engine("rollout-0")]).sync(1) == "run/1/2/abc"
    assert coordinator.asked == [("trainer", key) for key in ("job-1-1-1", "job-1-1-1-2", "job-1-1-1-3", "job-1-1-1-4")]


def test_a_sync_that_is_not_known_to_be_over_is_looked_at_again_under_its_own_key(job: Job) -> None:
    coordinator = Coordinator(
        [
            RayUnavailableError("the bridge ended"),
            answer(None, state="running"),
            SyncRunningError("another"),
            answer("committed"),
        ]
    )
    assert job(coordinator, [Engine("rollout-0")]).sync(7) == "run/1/2/abc"
    assert {key for _, key in coordinator.asked} == {"job-1-1-7"}


def test_weights_that_are_never_proven_end_the_job_by_name(job: Job) -> None:
    coordinator = Coordinator([SyncRolledBackError("verify: replica rollout-0: 3 elements of mixer.D differ")])
    with pytest.raises(WeightUpdateError, match=r"sync after step 4 failed 5 times.*mixer\.D differ"):
        job(coordinator, [Engine("rollout-0")]).sync(4)
    assert len({key for _, key in coordinator.asked}) == SYNCS == 5


def test_what_no_patience_mends_is_raised_at_once(job: Job) -> None:
    coordinator = Coordinator([ForbiddenError("this takes scope sync")])
    with pytest.raises(ForbiddenError):
        job(coordinator, [Engine("rollout-0")]).sync(4)
    assert len(coordinator.asked) == 1


def test_whoever_takes_a_dead_engines_place_is_asked_for_and_answers(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[Engine, ...]] = [(), (Engine("rollout-0", dead=True),), (Engine("rollout-1"),)]
    with on_ray(monkeypatch, found):
        coordinator = Coordinator([answer("committed")])
        its = job(coordinator, [Engine("rollout-0", dead=True)])
        assert cast(list[str], its.sample([], SAMPLING)) == ["rollout-1"]
    # None was there after the first time, one that died at once after the second.
    assert [source for source, _ in coordinator.asked] == ["served"] * 3
    assert CALLS == 3


def test_an_engine_that_dies_of_the_request_itself_ends_the_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with on_ray(monkeypatch, [(Engine("rollout-0", dead=True),)] * 9) as left:
        its = job(Coordinator([answer("committed")]), [Engine("rollout-0", dead=True)])
        with pytest.raises(EngineDeadError, match="during sample"):
            its.sample([], SAMPLING)
        assert len(left) == 9 - (CALLS - 1)


def test_where_no_engine_comes_the_error_is_said_after_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "MEND_SECONDS", 0.05)
    failing = Coordinator([SyncRunningError("another"), QuarantinedError("no replica serves"), answer("committed")])
    with on_ray(monkeypatch, []), pytest.raises(EngineDeadError, match="has no rollout engine"):
        attach._found("up-1", cast(Client, failing))
    assert len(failing.asked) > 3
    assert {source for source, _ in failing.asked} == {"served"}


def test_a_job_that_starts_while_every_engine_is_dead_brings_them_in(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = Coordinator([RayUnavailableError("the bridge is starting"), answer("committed")])
    with on_ray(monkeypatch, [(), (), (Engine("rollout-0"),)]):
        (engine,) = attach._found("up-1", cast(Client, coordinator))
    assert engine.name == "rollout-0"
    assert len(coordinator.asked) == 3


@contextmanager
def on_ray(monkeypatch: pytest.MonkeyPatch, found: list[tuple[Engine, ...]]) -> Iterator[list[tuple[Engine, ...]]]:
    """The engines that Ray has, time after time; then none any more."""

    def names(all_namespaces: bool) -> list[dict[str, str]]:
        engines.clear()
        engines.update({engine.name: engine for engine in (found.pop(0) if found else ())})
        return [{"name": name, "namespace": "omni-rl-up-1"} for name in engines]

    engines: dict[str, Engine] = {}
    with monkeypatch.context() as patch:
        patch.setattr("ray.util.list_named_actors", names)
        patch.setattr("omni_rl.rollout.actor.RolloutHandle.attach", lambda name, namespace: engines[name])
        patch.setattr(attach, "_trainer", lambda run: None)
        yield found
