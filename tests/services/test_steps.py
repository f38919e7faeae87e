"""Steps through the API: parts, seal, verdict, weights, and what is seen of them later."""

import math
import threading

import numpy as np
import pyarrow as pa
import pytest

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare_step
from omni_rl.consistency.corrections import Correction, weights
from omni_rl.consistency.records import SampleRecord
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.schema import RecordLimits
from tests.services.conftest import Serve, Served
from tests.services.posted import ARROW, CALM, DRIFTED, RUN, STEP, post, sample, seal

pytestmark = pytest.mark.anyio


async def test_a_calm_step(served: Served) -> None:
    assert (await served.http.post("/v1/runs", json=RUN)).status_code == 201
    part = await post(served, CALM)
    assert (part["samples"], part["tokens"], part["stored"]) == (2, 8, "new")
    verdict = await seal(served, training={"reward": 0.5})
    assert (verdict["severity"], verdict["weights"], verdict["breaches"]) == ("ok", None, [])
    records = [
        SampleRecord(r["sample"], r["kind"], 3, np.array(r["rollout_logprobs"]), np.array(r["train_logprobs"]))
        for r in CALM
    ]
    expected = compare_step(StepColumns.of(records)).figures
    assert verdict["figures"] == expected


async def test_a_drifted_step_is_masked_with_the_corrections_weights(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    verdict = await seal(served)
    assert verdict["severity"] == "pause"
    assert verdict["reason"].startswith("image: ")
    assert verdict["worst"][0]["sample"] == "b"
    d = np.array([0.001] * 4 + [1.0] * 4)
    expected = weights(d, np.array([0, 4, 8]), np.ones(8, bool), Correction("tis"))
    given = [weight for entry in verdict["sample_weights"] for weight in entry["weights"]]
    np.testing.assert_allclose(given, expected, rtol=1e-6)
    assert verdict["weights"]["clipped_fraction"] == 0.5


async def test_weights_as_an_arrow_stream(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    answer = await served.http.post(f"{STEP}/seal", json={}, headers={"Accept": ARROW})
    assert answer.headers["content-type"] == ARROW
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table.column("sample").to_pylist() == ["a", "b"]
    np.testing.assert_allclose(table.column("weights").to_pylist()[1], [2.0] * 4)
    assert b'"severity":"pause"' in table.schema.metadata[b"omni_rl.verdict"]


async def test_ranks_are_joined_in_their_order(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, [DRIFTED[1]], rank=1)
    early = await served.http.post(f"{STEP}/seal", json={"parts": 2})
    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    assert "1 of 2 ranks" in early.json()["detail"]
    await post(served, [DRIFTED[0]], rank=0)
    verdict = await seal(served, parts=2)
    assert [entry["sample"] for entry in verdict["sample_weights"]] == ["a", "b"]


async def test_the_same_again_is_fine_and_other_content_is_a_conflict(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    first = await post(served, DRIFTED)
    body = StepRecords.of(DRIFTED).to_arrow()
    again = await served.http.put(f"{STEP}/parts/0", content=body, headers={"Content-Type": ARROW})
    assert (again.json()["stored"], again.json()["digest"]) == ("same", first["digest"])
    other = await served.http.put(f"{STEP}/parts/0", json={"schema": "omni_rl.step/1", "records": CALM})
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    verdict = await seal(served)
    assert await seal(served) == verdict
    late = await served.http.put(f"{STEP}/parts/1", json={"schema": "omni_rl.step/1", "records": CALM})
    assert late.status_code == 409
    drift = (await served.http.get("/v1/runs/digits")).json()["drift"]
    assert drift["severity"] == "pause"


async def test_a_restarted_coordinator_gives_the_same_verdict_and_goes_on_where_it_was(serve: Serve) -> None:
    async with serve() as served:
        await served.http.post("/v1/runs", json=RUN)
        await post(served, DRIFTED)
        verdict = await seal(served)
        await post(served, CALM, step=13)
    async with serve() as served:
        assert await seal(served) == verdict
        run = (await served.http.get("/v1/runs/digits")).json()
        assert (run["attempt"], run["step"], run["drift"]["severity"]) == (1, 12, "pause")
        # Its part came before the restart; the severity falls only after calm steps.
        assert (await seal(served, step=13))["severity"] == "pause"


async def test_parts_from_before_a_restart_are_never_forgotten(serve: Serve) -> None:
    async with serve() as before:
        await before.http.post("/v1/runs", json=RUN)
        await post(before, CALM, rank=0)
    async with serve() as served:
        await post(served, CALM, rank=1)
        for _ in range(2):
            answer = await served.http.post(STEP + "/seal", json={"parts": 1})
            assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        assert "2 of 1 rank have posted" in answer.json()["detail"]
        assert (await seal(served, parts=2))["samples"] == 4


async def test_logprobs_that_are_no_numbers_are_told_and_the_figures_are_those_of_the_others(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    broken = sample("a", "text", 0.0)
    broken["train_logprobs"][1] = math.nan
    body = StepRecords.of([broken]).to_arrow()
    await served.http.put(f"{STEP}/parts/0", content=body, headers={"Content-Type": ARROW})
    verdict = await seal(served)
    assert verdict["severity"] == "pause"
    assert verdict["cause"] == "nonfinite_logprobs"
    assert "1 of the trainer's logprobs is NaN (first: token 1 of a)" in verdict["sentence"]
    assert verdict["figures"]["overall"]["logprob_abs_diff_mean"] == pytest.approx(0)
    assert verdict["figures"]["overall"]["tokens"] == 3
    assert [(worst["sample"], worst["error"]) for worst in verdict["worst"]] == [("a", None)]
    assert verdict["sample_weights"][0]["weights"] == [1.0, 0.0, 1.0, 1.0]


async def test_what_is_seen_of_a_step_later(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, DRIFTED)
    verdict = await seal(served, training={"reward": 0.5})
    step = (await served.http.get(STEP)).json()
    assert step["training"] == {"reward": 0.5}
    assert step["verdict"] == {**verdict, "sample_weights": None}
    assert step["positions"]["image"][0]["first"] == 0
    kept = (await served.http.get(f"{STEP}/samples/b")).json()
    assert kept["record"]["ids"] == [0, 1, 2, 3]
    assert kept["error"] == pytest.approx(math.e)
    (line,) = (await served.http.get("/v1/runs/digits/steps")).json()
    assert (line["step"], line["severity"], line["training"]) == (12, "pause", {"reward": 0.5})
    assert (await served.http.get("/v1/runs/digits/steps?after=12")).json() == []


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/v1/runs/nobody", "nobody"),
        ("/v1/runs/digits/attempts/1/steps/99", "step 99"),
        (f"{STEP}/samples/zzz", "zzz"),
        ("/v1/runs/digits/steps?attempt=7", "attempt 7"),
    ],
)
async def test_what_is_not_there(served: Served, path: str, named: str) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    await seal(served)
    answer = await served.http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/problem+json"
    assert named in answer.json()["detail"]


async def test_a_seal_without_parts(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    answer = await served.http.post(f"{STEP}/seal", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{}", "application/json", 422, "invalid_records"),
        (b"not arrow", ARROW, 422, "invalid_records"),
        (b"a,b", "text/csv", 415, "unsupported_media_type"),
        (b"\x80\x04N.", "application/python-pickle", 415, "unsupported_media_type"),
    ],
)
async def test_bodies_that_are_refused(
    served: Served, content: bytes, content_type: str, status: int, code: str
) -> None:
    await served.http.post("/v1/runs", json=RUN)
    answer = await served.http.put(f"{STEP}/parts/0", content=content, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_records_of_no_run(served: Served) -> None:
    answer = await served.http.put(f"{STEP}/parts/0", json={"schema": "omni_rl.step/1", "records": CALM})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_the_same_run_again_is_fine_another_one_is_a_conflict(served: Served) -> None:
    assert (await served.http.post("/v1/runs", json=RUN)).status_code == 201
    assert (await served.http.post("/v1/runs", json=RUN)).status_code == 200
    other = await served.http.post("/v1/runs", json={**RUN, "dtype": "float32"})
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert [run["run"] for run in (await served.http.get("/v1/runs")).json()] == ["digits"]


async def test_a_runs_own_limits_and_correction(served: Served) -> None:
    own = {
        **RUN,
        "limits": {"image": {"gen_kl_error": {"warn": 1e-9, "mask": 1e-8, "pause": 1.0}}},
        "correction": {"method": "icepop", "when": "always"},
    }
    await served.http.post("/v1/runs", json=own)
    await post(served, CALM)
    verdict = await seal(served)
    assert (verdict["severity"], verdict["weights"]["method"]) == ("mask", "icepop")


async def test_limits_of_a_metric_that_does_not_exist(served: Served) -> None:
    bad = {**RUN, "limits": {"text": {"kl": {"warn": 1, "mask": 2, "pause": 3}}}}
    answer = await served.http.post("/v1/runs", json=bad)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "no metric 'kl'" in answer.json()["detail"]


async def test_the_timeline_keeps_a_spike(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    for step in range(40):
        await post(served, DRIFTED if step == 21 else CALM, step=step)
        await seal(served, step=step)
    query: dict[str, str | int] = {"kind": "image", "points": 4, "metric": "logprob_abs_diff_max"}
    found = (await served.http.get("/v1/runs/digits/timeline", params=query)).json()
    assert found["width"] > 1
    assert sum(found["steps"]) == 40
    (high,) = found["high"].values()
    assert max(high) == pytest.approx(1.0)
    holding = next(n for n, value in enumerate(high) if value == max(high))
    assert found["first"][holding] <= 21 <= found["last"][holding]
    each = (await served.http.get("/v1/runs/digits/timeline?kind=image&first=20&last=22")).json()
    assert (each["width"], each["first"]) == (1, [20, 21, 22])
    assert each["severity"][1] == "pause"
    refused = ["timeline?metric=kl", "timeline?points=0", "timeline?points=4097", "steps?points=0", "steps?points=4097"]
    for query_of in refused:
        assert (await served.http.get(f"/v1/runs/digits/{query_of}")).status_code == 422, query_of
    spread = (await served.http.get("/v1/runs/digits/steps?points=1&last=0")).json()
    assert [line["step"] for line in spread] == [0]


async def test_what_the_trainer_learns_comes_after_the_seal(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await post(served, CALM)
    learnt = {"training": {"kl": 0.002, "reward": 0.6}}
    early = await served.http.put(f"{STEP}/training", json=learnt)
    assert (early.status_code, early.json()["code"]) == (404, "not_found")
    verdict = await seal(served, training={"reward": 0.5})
    for _ in range(2):
        line = (await served.http.put(f"{STEP}/training", json=learnt)).json()
        assert line["training"] == {"reward": 0.6, "kl": 0.002}
    assert (await served.http.get(STEP)).json()["verdict"] == {**verdict, "sample_weights": None}
    (listed,) = (await served.http.get("/v1/runs/digits/steps")).json()
    assert listed == line
    events = (await served.http.get("/v1/events/page", params={"after": 0})).json()
    assert [event["data"]["step"] for event in events if event["kind"] == "training"] == [12, 12]
    refused = await served.http.put(f"{STEP}/training", json={"training": {"kl": "much"}})
    assert refused.status_code == 422


@pytest.mark.parametrize(("answers", "aside"), [(1, False), (1_000, True)])
async def test_much_json_is_read_while_others_are_answered(
    served: Served, monkeypatch: pytest.MonkeyPatch, answers: int, aside: bool
) -> None:
    """A hundred kilobytes of JSON take as long as megabytes of Arrow."""
    readers = []
    read = StepRecords.from_json

    def reading(body: bytes | str, limits: RecordLimits) -> StepRecords:
        readers.append(threading.get_ident())
        return read(body, limits)

    monkeypatch.setattr(StepRecords, "from_json", reading)
    await served.http.post("/v1/runs", json=RUN)
    row = {"rollout_logprobs": [-0.5] * 4, "train_logprobs": [-0.5] * 4}
    records = [{"sample": f"p{n}", **row} for n in range(answers)]
    body = {"schema": "omni_rl.step/1", "records": records}
    posted = await served.http.put("/v1/runs/digits/attempts/1/steps/12/parts/0", json=body)
    assert posted.status_code == 200
    assert [one != threading.get_ident() for one in readers] == [aside]
