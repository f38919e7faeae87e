"""A job finds the service's engines, outlives their deaths, and knows them again after a sync."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from omni_rl.api.syncs import SyncAnswer, SyncBody
from omni_rl.errors import (
    EngineDeadError,
    QuarantinedError,
    RayUnavailableError,
    ReplicaDeadError,
    SyncRunningError,
    TakenOverError,
)
from omni_rl.media.types import RenderedPrompt
from omni_rl.policies import attach, retries
from omni_rl.policies.attach import AttachedPair
from omni_rl.policies.dealing import ASKED
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.types import SamplingSettings
from tests.policies.coordinator import Coordinator

TRAINER = "the trainer that the job began with"
SAMPLING = SamplingSettings(max_tokens=2)
PROMPTS = [RenderedPrompt(str(number), "text", np.array([number])) for number in range(4)]


@dataclass(eq=False)
class Engine:
    """Answers with its name; one that is `dead` does not, which nobody knows before it is asked."""

    name: str
    dead: bool = False
    usable: bool = True

    def sample(self, prompts: Sequence[RenderedPrompt], sampling: object, places: Sequence[int]) -> list[str]:
        if self.dead:
            self.usable = False
            raise EngineDeadError(f"{self.name}: its process ended during sample; replace it")
        return [self.name] * len(prompts)


def committed(**values: Any) -> SyncAnswer:
    return SyncAnswer.model_validate(
        {"sync": "3f1c", "state": "finished", "phase": "idle", "started": 1.0, "outcome": "committed"} | values
    )


def attached(coordinator: Coordinator, *engines: Engine) -> AttachedPair:
    return AttachedPair("up-1", cast(Any, engines), cast(Any, TRAINER), coordinator)


def sampled(pair: AttachedPair) -> list[str]:
    return cast(list[str], pair.sample(PROMPTS, SAMPLING))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "LOOK_SECONDS", 0.0)


def test_a_living_engine_answers_for_a_dead_one_and_nobody_waits_for_a_successor() -> None:
    coordinator = Coordinator([committed()])
    assert sampled(attached(coordinator, Engine("rollout-0", dead=True), Engine("rollout-1"))) == ["rollout-1"] * 4
    assert coordinator.asked == []


def test_whoever_takes_a_dead_engines_place_is_asked_for_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[Engine, ...]] = [(), (Engine("rollout-0", dead=True),), (Engine("rollout-1"),)]
    with on_ray(monkeypatch, found):
        coordinator = Coordinator([committed()])
        pair = attached(coordinator, Engine("rollout-0", dead=True))
        assert sampled(pair) == ["rollout-1"] * 4
    assert pair.trainer == cast(Any, TRAINER)
    # None was there after the first time, one that died at once after the second.
    assert [asked[2] for asked in coordinator.asked] == ["served"] * 3
    assert ASKED == 3


def test_an_engine_that_dies_of_the_request_itself_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_ray(monkeypatch, [(Engine("rollout-0", dead=True),) for _ in range(9)]) as left:
        pair = attached(Coordinator([committed()]), Engine("rollout-0", dead=True))
        with pytest.raises(EngineDeadError, match="during sample"):
            sampled(pair)
        assert len(left) == 9 - (ASKED - 1)


def test_where_no_engine_comes_the_error_is_said_after_the_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "REPLACE_SECONDS", 0.05)
    failing = Coordinator([SyncRunningError("another"), QuarantinedError("no replica serves"), committed()])
    with on_ray(monkeypatch, []), pytest.raises(EngineDeadError, match="has no rollout engine"):
        attach._found("up-1", failing)
    assert len(failing.asked) > 3
    assert {asked[2] for asked in failing.asked} == {"served"}


def test_a_coordinator_that_keeps_nothing_any_more_is_not_asked_again() -> None:
    coordinator = Coordinator([TakenOverError("another keeps the ledger")])
    with pytest.raises(TakenOverError):
        next(retries.replacements(lambda: coordinator.sync(SyncBody())))
    assert len(coordinator.asked) == 1


def test_a_job_that_starts_while_every_engine_is_dead_brings_them_in(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = Coordinator([RayUnavailableError("the bridge is starting"), committed()])
    with on_ray(monkeypatch, [(), (), (Engine("rollout-0"),)]):
        (engine,) = attach._found("up-1", coordinator)
    assert engine.name == "rollout-0"
    assert len(coordinator.asked) == 3


@pytest.mark.parametrize(
    ("known", "answer"),
    [
        ((Engine("rollout-0"), Engine("rollout-1", usable=False)), committed()),  # another sync replaced it
        ((Engine("rollout-0"),), committed()),  # it was missing when the job attached
        ((Engine("rollout-0"), Engine("rollout-1")), committed(replaced={"rollout-1": "its process ended"})),
    ],
    ids=["dead", "missing", "replaced"],
)
def test_after_a_sync_every_engine_that_serves_is_known(
    known: tuple[Engine, ...], answer: SyncAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = Engine("rollout-0"), Engine("rollout-1")
    pair = attached(Coordinator([answer]), *known)
    with on_ray(monkeypatch, [serving, serving]):
        pair.follow(answer)
    assert pair.rollouts == cast(Any, serving)
    assert pair.trainer == cast(Any, TRAINER), "another has not learnt what this one has"


def test_after_a_sync_those_that_answer_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"rollout-0": Engine("rollout-0")}

    def one(name: str, namespace: str) -> Engine:
        if name not in found:
            raise ReplicaDeadError(f"{name}: its process does not answer")
        return found[name]

    monkeypatch.setattr(attach, "engines", lambda namespace: ["rollout-0", "rollout-1"])
    monkeypatch.setattr(RolloutHandle, "attach", one)
    pair = attached(Coordinator([committed()]), Engine("rollout-0", dead=True), Engine("rollout-1"))
    pair.follow(committed(replaced={"rollout-0": "it died"}))
    assert pair.rollouts == cast(Any, tuple(found.values()))
    found.clear()
    with pytest.raises(EngineDeadError, match="has no rollout engine"):
        pair.follow(committed(replaced={"rollout-0": "it died"}))


def test_an_engine_that_is_out_gets_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Engine("rollout-0"), Engine("rollout-1")
    pair = attached(Coordinator([committed()]), *there)
    with on_ray(monkeypatch, [there, there]):
        pair.follow(committed(out={"rollout-0": "its weights are not proven"}))
    assert sampled(pair) == ["rollout-1"] * 4


def test_where_nothing_changed_nobody_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Engine("rollout-0"), Engine("rollout-1")
    pair = attached(Coordinator([committed()]), *there)
    with on_ray(monkeypatch, [there]):
        pair.follow(committed())
    assert pair.rollouts == cast(Any, there)


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
        patch.setattr("omni_rl.rollout.handle.RolloutHandle.attach", lambda name, namespace: engines[name])
        patch.setattr(attach, "_trainer", lambda run: "the one that took its place")
        yield found
