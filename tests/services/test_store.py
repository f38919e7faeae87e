"""The ledger and the media store, awaited: how many read at once, and what is dropped and found."""

import asyncio
import threading
import time
from pathlib import Path

import pytest
from blake3 import blake3
from omni_rl_services.coordinator.settings import MediaSettings

from omni_rl.api.runs import RunBody
from omni_rl.errors import NotFoundError
from tests.services.conftest import Serve, Served
from tests.services.test_media_headers import png

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("readers", "meet"), [(4, True), (5, False)])
async def test_four_read_at_once_and_the_fifth_waits(served: Served, readers: int, meet: bool) -> None:
    """Each waits until as many are there as it takes."""
    barrier = threading.Barrier(readers, timeout=30.0 if meet else 0.05)
    found = await asyncio.gather(
        *(served.coordinator.store._read(barrier.wait) for _ in range(readers)), return_exceptions=True
    )
    met = [one for one in found if isinstance(one, int)]
    assert sorted(met) == (list(range(readers)) if meet else [])
    assert await served.coordinator.store._read(divmod, 7, 2) == (3, 1)


async def test_media_that_nobody_used_for_long_are_dropped(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = png(3, 3)
    path = f"/v1/media/{blake3(content).hexdigest()}"
    async with serve(media=MediaSettings(directory=tmp_path / "media", days=1.0)) as served:
        stored = await served.http.put(path, content=content, headers={"Content-Type": "image/png"})
        assert stored.json()["stored"] == "new"
        await served.coordinator.store.tidy_media()
        assert (await served.http.get(path)).content == content
        now = time.time()
        for later, status in ((86_000, 200), (87_000, 404)):
            monkeypatch.setattr(time, "time", lambda later=later: now + later)
            await served.coordinator.store.tidy_media()
            monkeypatch.undo()
            assert (await served.http.get(path)).status_code == status


async def test_a_run_comes_back_as_it_was_put_and_says_whether_it_is_new(served: Served) -> None:
    store = served.coordinator.store
    body = RunBody(run="math", model="m", dtype="float32", lag=2)
    for stored in ("new", "same"):
        row, how = await store.put_run(body)
        assert (row.run, how, RunBody.model_validate(row.config)) == ("math", stored, body)
    with pytest.raises(NotFoundError):
        await store.run("nobody")


async def test_events_have_numbers_that_rise_and_what_was_said(served: Served) -> None:
    store = served.coordinator.store
    last = await store.last_event()
    before = time.time()
    await store.add_event("training", "math", {"step": 3})
    await store.add_event("hold", None, {"what": "released", "reason": "so"})
    first, second = await store.events(after=last, limit=10)
    assert (first.kind, first.run, first.data) == ("training", "math", {"step": 3})
    assert (second.kind, second.run, second.data["what"]) == ("hold", None, "released")
    assert second.id > first.id > last
    assert before - 1 <= first.at <= second.at <= time.time() + 1
    assert await store.events(after=second.id, limit=10) == []
    assert await store.held_by_person() is None
    await store.add_event("hold", None, {"what": "held", "reason": "maintenance"})
    assert await store.held_by_person() == "maintenance"


async def test_a_sync_is_found_by_its_key_and_its_run(served: Served) -> None:
    key = {"Idempotency-Key": "k"}
    made = (await served.http.post("/v1/syncs?wait=true", json={}, headers=key)).json()
    store = served.coordinator.store
    assert await store.sync_by_key("digits", "k") == made["sync"]
    assert await store.sync_by_key("digits", "other") is None
    assert await store.sync_by_key("another", "k") is None
    assert await store.sync_by_key(None, "k") is None
