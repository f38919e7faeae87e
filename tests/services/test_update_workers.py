"""Updates of engines of two workers, each of which reports its half."""

import pytest
import torch
from omni_rl_services.coordinator import updates as service

from tests.services.conftest import Serve, Served
from tests.services.update_calls import (
    NORM,
    K,
    Q,
    alarms,
    announce,
    make_run,
    seal,
    share,
    tell,
    trained,
    wrong,
)

pytestmark = pytest.mark.anyio


async def test_workers_are_compared_once_all_have_told(served: Served) -> None:
    await make_run(served)
    await announce(served, 1, trained(1))
    first = await tell(served, 1, share(trained(1), 0, of=1))
    assert (first["reported"], first["equal"]) == (1, 0)
    last = await tell(served, 1, share(trained(1), 1, of=1))
    assert (last["reported"], last["equal"], last["findings"]) == (2, 3, [])


async def test_a_worker_that_an_update_passes_by_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing touched it, so it tells of nothing: it holds what it told of last."""
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    await make_run(served)
    await announce(served, 1, trained(1))
    for number in (0, 1):
        await tell(served, 1, share(trained(1), number, of=1))
    await announce(served, 2, trained(2))
    await tell(served, 4, share(trained(2), 0, of=2))
    verdict = await seal(served)
    sentence = verdict["evidence"][0]["sentence"]
    assert sentence.startswith("update 2: worker 1 of 2 has not taken ")
    assert all(name in sentence for name in (Q, K, NORM))
    assert verdict["cause"] == "stale_weights"
    assert sentence in await alarms(served)
    await announce(served, 3, trained(3))
    for number in (0, 1):
        found = await tell(served, 7, share(trained(3), number, of=3))
    assert (found["equal"], found["findings"]) == (3, [])
    assert sentence not in await alarms(served)


@pytest.mark.parametrize("known", [True, False])
async def test_a_receipt_that_comes_after_a_newer_one_of_another_worker_counts(
    served: Served, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Worker 1 took the update with worker 0, and its receipt was on its way for longer."""
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    await make_run(served)
    await announce(served, 1, trained(1))
    for number in (0, 1) if known else (0,):
        await tell(served, 0, share(trained(1), number, of=1))
    await announce(served, 2, trained(2))
    for number in (5, 9):
        await tell(served, number, share(trained(2), 0, of=2))
    await tell(served, 5, share(trained(2), 1, of=2))
    await tell(served, 3, share(trained(1), 1, of=1))  # older than what is known of it by now
    await seal(served)
    assert await wrong(served) == []


async def test_a_late_receipt_ends_what_was_assumed_of_its_worker(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    await make_run(served)
    await announce(served, 1, trained(1))
    for number in (0, 1):
        await tell(served, 0, share(trained(1), number, of=1))
    await announce(served, 2, trained(2))
    for number in (5, 9):
        await tell(served, number, share(trained(2), 0, of=2))
    await seal(served)
    (sentence,) = await wrong(served)
    assert sentence.startswith("update 2: worker 1 of 2 has not taken ")
    await tell(served, 5, share(trained(2), 1, of=2))
    await seal(served)
    assert await wrong(served) == []


async def test_a_worker_that_an_update_did_not_concern_is_not_silent_after_a_restart(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker 1's half is as it was, so that only worker 0 tells of the second update."""
    monkeypatch.setattr(service, "QUIET_SECONDS", 0.0)
    second = {name: torch.cat((value.chunk(2)[0], trained(1)[name].chunk(2)[1])) for name, value in trained(2).items()}
    async with serve() as served:
        await make_run(served)
        await announce(served, 1, trained(1))
        for number in (0, 1):
            await tell(served, 1, share(trained(1), number, of=1))
        await announce(served, 2, second)
        await tell(served, 2, share(second, 0, of=2))
    async with serve() as served:
        await announce(served, 2, second)  # again: the answer was lost
        await seal(served)
        assert await wrong(served) == []
