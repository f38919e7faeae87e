"""How parts are taken in and sealed: in which thread, from memory or the ledger, and within how much memory."""

import asyncio
import json
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from omni_rl_services.coordinator.memory import Room
from omni_rl_services.coordinator.recent import RecentParts
from omni_rl_services.coordinator.routes import steps as routes
from omni_rl_services.coordinator.settings import MIB, Bounds
from omni_rl_services.coordinator.steps import SealedStep

from omni_rl.api.steps import SealBody, Verdict
from omni_rl.errors import ConflictError, TooManyError
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import StepKey
from tests.services.conftest import Serve, Served
from tests.services.posted import ARROW, CALM, DRIFTED, RUN, STEP, post, sample, seal
from tests.services.test_telemetry import samples

pytestmark = pytest.mark.anyio
KEY = StepKey("digits", 1, 12)


@pytest.mark.parametrize(("size", "aside"), [(0, False), (2**19, False), (2**19 + 1, True)])
async def test_more_than_half_a_mebibyte_is_worked_on_in_a_thread_of_its_own(
    served: Served, size: int, aside: bool
) -> None:
    thread = await served.coordinator.steps.workers.run(size, threading.get_ident)
    assert (thread != threading.get_ident()) is aside
    assert await served.coordinator.steps.workers.run(size, divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize("arrow", [False, True])
async def test_a_byte_of_json_counts_for_sixteen_of_arrow(
    served: Served, monkeypatch: pytest.MonkeyPatch, arrow: bool
) -> None:
    sizes: list[int] = []
    work = served.coordinator.steps.workers.run

    async def noting(size: int, function: Any, *arguments: Any) -> Any:
        sizes.append(size)
        return await work(size, function, *arguments)

    monkeypatch.setattr(served.coordinator.steps.workers, "run", noting)
    await served.http.post("/v1/runs", json=RUN)
    body = StepRecords.of(CALM).to_arrow() if arrow else json.dumps({"schema": "omni_rl.step/1", "records": CALM})
    headers = {"Content-Type": f"{ARROW if arrow else 'Application/JSON'}; charset=utf-8"}
    assert (await served.http.put(f"{STEP}/parts/0", content=body, headers=headers)).status_code == 200
    assert sizes == [len(body) if arrow else 16 * len(body)]


@pytest.mark.parametrize(
    ("kind", "says"), [(None, "not as nothing"), ("text/csv", "not as text/csv"), ("application/jsonl", "jsonl")]
)
async def test_records_of_another_content_type_are_refused(served: Served, kind: str | None, says: str) -> None:
    await served.http.post("/v1/runs", json=RUN)
    headers = {} if kind is None else {"Content-Type": kind}
    answer = await served.http.put(f"{STEP}/parts/0", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert says in answer.json()["detail"]


async def test_what_is_taken_in_is_counted_once(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    for _ in range(3):
        part = await post(served, CALM, rank=3)
        assert (part["run"], part["attempt"], part["step"], part["rank"]) == ("digits", 1, 12, 3)
        assert (part["samples"], part["tokens"]) == (2, 8)
    await seal(served)
    found = samples((await served.http.get("/metrics")).text)
    assert found["omni_rl_ingested_tokens_total", ()] == 8
    stored = {"new": 1.0, "same": 2.0}
    for name, count in stored.items():
        assert found["omni_rl_ingested_parts_total", (("stored", name),)] == count
    assert found["omni_rl_sealed_steps_total", (("severity", "ok"),)] == 1
    assert found["omni_rl_seal_seconds_count", ()] == 1


async def test_a_seal_that_comes_again_is_counted_and_told_of_once(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    first = await seal(served)
    again = await seal(served)
    assert again == first
    assert first["sample_weights"] is not None
    found = samples((await served.http.get("/metrics")).text)
    assert found["omni_rl_sealed_steps_total", (("severity", "pause"),)] == 1
    events = [one for one in (await served.http.get("/v1/events/page")).json() if one["kind"] == "step"]
    assert [one["data"]["tokens"] for one in events] == [8]
    assert events[0]["data"]["severity"] == "pause"
    assert (events[0]["data"]["attempt"], events[0]["data"]["step"]) == (1, 12)
    assert events[0]["data"]["reason"] == first["reason"]


async def test_parts_that_were_all_posted_here_are_not_read_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    store = served.coordinator.store
    for name in ("parts", "records"):
        known = getattr(store, name)

        async def noting(key: StepKey, name: str = name, known: Any = known) -> Any:
            read.append(name)
            return await known(key)

        monkeypatch.setattr(store, name, noting)
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    await seal(served, parts=1)
    assert read == []
    await post(served, CALM, step=13)
    await seal(served, step=13)
    assert read == ["parts"], "how many ranks there are is in the ledger alone"
    await post(served, CALM, step=14)
    served.coordinator.steps._recent.forget(KEY._replace(step=14))
    await seal(served, step=14, parts=1)
    assert read == ["parts", "parts", "records"]
    await seal(served, step=14, parts=1)
    assert read[3:] == ["parts", "records"]


async def test_a_part_that_comes_while_its_step_is_judged_is_a_conflict_and_the_next_seal_has_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = served.coordinator.store
    write, meanwhile = store.seal, [CALM]

    async def sealing(step: Any) -> Any:
        if meanwhile:
            await post(served, meanwhile.pop(), rank=1)
        return await write(step)

    monkeypatch.setattr(store, "seal", sealing)
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    answer = await served.http.post(f"{STEP}/seal", json={"parts": 1})
    assert (answer.status_code, answer.json()["code"]) == (409, ConflictError.code)
    assert served.coordinator.steps._recent.of(KEY) == {}
    assert (await seal(served, parts=2))["samples"] == 4


async def test_a_steps_tokens_beyond_all_memory_are_told_with_what_would_do(serve: Serve) -> None:
    """Half of 64 MiB is for judging: 262,144 tokens of 128 bytes."""
    async with serve(bounds=Bounds(memory=64 * MIB)) as served:
        steps = served.coordinator.steps
        steps._fits(KEY, 262_144, 20 * 262_144)
        with pytest.raises(Exception, match="give the coordinator more") as refused:
            steps._fits(KEY, 262_145, 20 * 262_145)
        assert str(refused.value) == (
            "step 12 of digits, attempt 1 has 262,145 tokens and 5 MiB of records, and there is memory to judge "
            "262,144 tokens, or fewer with texts and router choices: give the coordinator more (bounds.memory = 65 "
            "MiB), or post its answers as several steps"
        )
        # Beyond 20 bytes of a token, a byte of records takes two.
        steps._fits(KEY, 100, 2000 + (32 * MIB - 12_800) // 2)
        with pytest.raises(Exception, match="give the coordinator more"):
            steps._fits(KEY, 100, 2000 + (32 * MIB - 12_800) // 2 + 1)


async def test_a_step_that_finds_no_memory_in_time_is_refused_for_now(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omni_rl_services.coordinator.memory.WAIT_SECONDS", 0.01)
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    async with served.coordinator.steps._judging.taken(2**60):
        answer = await served.http.post(f"{STEP}/seal", json={})
    assert (answer.status_code, answer.json()["code"]) == (429, TooManyError.code)
    assert answer.headers["retry-after"] == "1"
    assert (await seal(served))["severity"] == "ok"


async def test_memory_is_held_as_long_as_it_is_used_and_never_more_than_there_is() -> None:
    room = Room(10)
    async with room.taken(4), room.taken(6):
        waiting = asyncio.create_task(hold(room, 1))
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
    async with room.taken(11):
        assert room._free == 0
    assert room._free == 10
    with pytest.raises(KeyError):
        async with room.taken(3):
            raise KeyError("whoever had it failed")
    assert (room._free, room.is_waited_for) == (10, False)


async def hold(room: Room, size: int) -> None:
    async with room.taken(size):
        pass


def test_parts_in_memory_are_those_of_the_latest_steps_in_the_order_of_ranks() -> None:
    records = StepRecords.of(CALM)
    each = 48 * 1024 + records.nbytes
    recent = RecentParts(2 * each)
    recent.put(KEY, 3, records)
    recent.put(KEY, 1, records)
    assert list(recent.of(KEY)) == [1, 3]
    recent.put(KEY._replace(step=13), 0, records)
    assert (recent.of(KEY), list(recent.of(KEY._replace(step=13)))) == ({}, [0])
    recent.put(KEY._replace(step=14), 0, records)
    recent.forget(KEY._replace(step=13))
    recent.forget(KEY._replace(step=13))
    recent.put(KEY._replace(step=15), 0, records)
    assert [step for step in range(12, 16) if recent.of(KEY._replace(step=step))] == [14, 15]


@pytest.mark.parametrize(("most", "status"), [(8, 200), (7, 413)])
async def test_weights_of_many_tokens_come_as_a_stream_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch, most: int, status: int
) -> None:
    monkeypatch.setattr(routes, "MAX_JSON_WEIGHTS", most)
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    answer = await served.http.post(f"{STEP}/seal", json={})
    assert answer.status_code == status
    if status == 413:
        assert answer.json()["detail"] == (
            "weights of 8 tokens are too many for JSON; the step is sealed: ask again with Accept: "
            "application/vnd.apache.arrow.stream"
        )
    stream = await served.http.post(f"{STEP}/seal", json={}, headers={"Accept": f"{ARROW}, */*"})
    table = pa.ipc.open_stream(stream.content).read_all()
    assert (table.column("rank").to_pylist(), table.num_rows) == ([0, 0], 2)
    verdict = Verdict.model_validate_json(table.schema.metadata[b"omni_rl.verdict"])
    assert (verdict.severity, verdict.sample_weights) == ("pause", None)


async def test_a_step_of_many_tokens_without_weights_is_answered_as_json(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MAX_JSON_WEIGHTS", 1)
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    assert (await seal(served))["sample_weights"] is None
    stream = await served.http.post(f"{STEP}/seal", json={}, headers={"Accept": ARROW})
    assert pa.ipc.open_stream(stream.content).read_all().column("weights").to_pylist() == [None, None]


async def test_as_many_of_the_worst_samples_are_stored_as_are_asked_for(serve: Serve) -> None:
    rows = [sample(f"s{number}", "text", number / 1000) for number in range(4)]
    for most in (0, 2):
        async with serve(worst_samples=most) as served:
            await served.http.post("/v1/runs", json=RUN)
            await post(served, rows, step=most)
            verdict = await seal(served, step=most)
            assert [one["sample"] for one in verdict["worst"]] == ["s3", "s2", "s1", "s0"][:most]
            last = await served.http.get(f"/v1/runs/digits/attempts/1/steps/{most}/samples/s0")
            assert last.status_code == 404


async def test_figures_that_the_trainer_tells_late_go_to_the_line_of_their_step_alone(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    await seal(served)
    run = served.coordinator._runs.newest()[0]
    before = run.line
    for training in ({"kl": 0.1}, {"reward": None}):
        await served.http.put(f"{STEP}/training", json={"training": training})
        assert run.line == before
    await served.http.put(f"{STEP}/training", json={"training": {"reward": 0.5}})
    assert [reward for _, reward, _ in run.line.recent] == [0.5]


async def test_a_step_of_an_older_attempt_is_in_no_metric_of_the_run(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    path = "/v1/runs/digits/attempts/{}/steps/{}"
    for attempt, step in ((2, 5), (1, 9)):
        at = path.format(attempt, step)
        await served.http.put(f"{at}/parts/0", json={"schema": "omni_rl.step/1", "records": CALM})
        assert (await served.http.post(f"{at}/seal", json={})).status_code == 200
    found = samples((await served.http.get("/metrics")).text)
    run = (("run", "digits"),)
    assert (found["omni_rl_attempt", run], found["omni_rl_step", run]) == (2, 5)
    line = (await served.http.get("/v1/runs/digits")).json()
    assert (line["attempt"], line["step"]) == (2, 5)


@pytest.mark.parametrize(("tokens", "status"), [(500_000, 200), (500_001, 413)])
async def test_half_a_million_weights_may_come_as_json(
    served: Served, monkeypatch: pytest.MonkeyPatch, tokens: int, status: int
) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    run = served.coordinator._runs.newest()[0]
    sealed = await served.coordinator.steps.seal(run, KEY, SealBody())
    # As many tokens as that, in answers that take no time to be written.
    columns: Any = SimpleNamespace(tokens=tokens, nbytes=0, offsets=np.array([0]), samples=[])

    async def seal_many(*_: object) -> SealedStep:
        return replace(sealed, columns=columns, ranks=np.empty(0, np.int64))

    monkeypatch.setattr(served.coordinator.steps, "seal", seal_many)
    assert (await served.http.post(f"{STEP}/seal", json={})).status_code == status
