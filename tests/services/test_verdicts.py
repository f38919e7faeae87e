"""What is said of a step and of the run it belongs to: true reasons, one live attempt, causes from records alone."""

import math
from typing import Any

import numpy as np
import pytest

from omni_rl.kinds import KINDS
from tests.cases.world import Row, World, records
from tests.services.conftest import Serve, Served
from tests.services.posted import GATED, rest

pytestmark = pytest.mark.anyio
RUN = {"run": "math", "model": "m", "dtype": "bfloat16", "framework": "verl"}
WORLD = World(9, answers=16, tokens=64, ids=64)
ENGINE = WORLD.engine(WORLD.logits)
IDS = WORLD.sample(ENGINE)
ROLLOUT, TRAIN = WORLD.logprobs(ENGINE, IDS), WORLD.logprobs(WORLD.logits, IDS)
CLEAN = records(ROLLOUT, TRAIN, IDS)
SHIFTED = records(ROLLOUT[:, 1:], TRAIN[:, :-1], IDS[:, 1:])
EMPTY = records(ROLLOUT, TRAIN, IDS, loss_mask=list(np.zeros(TRAIN.shape, bool)))


def elsewhere(far: float) -> list[Row]:
    """Answers that other weights sampled, so far from the trainer's."""
    logits = WORLD.elsewhere(far)
    ids = WORLD.sample(logits)
    return records(WORLD.logprobs(logits, ids), WORLD.logprobs(WORLD.logits, ids), ids)


async def step(served: Served, number: int, *parts: list[Row], attempt: int = 1, run: str = "math") -> dict[str, Any]:
    """The verdict of a step that is posted and sealed."""
    at = f"/v1/runs/{run}/attempts/{attempt}/steps/{number}"
    for rank, rows in enumerate(parts):
        answer = await served.http.put(f"{at}/parts/{rank}", json={"schema": "omni_rl.step/1", "records": rows})
        assert answer.status_code == 200, answer.text
    answer = await served.http.post(f"{at}/seal", json={})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def alarms(served: Served, run: str = "math") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await served.http.get(f"/v1/runs/{run}/alarms")).json()
    return found


async def test_a_cause_comes_with_the_seal_the_step_the_alarm_and_a_check(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    verdict = await step(served, 3, SHIFTED)
    assert (verdict["severity"], verdict["cause"]) == ("pause", "token_shift")
    assert "1 token after" in verdict["sentence"]
    stored = (await served.http.get("/v1/runs/math/attempts/1/steps/3")).json()["verdict"]
    assert (stored["cause"], stored["sentence"], stored["evidence"]) == (
        verdict["cause"],
        verdict["sentence"],
        verdict["evidence"],
    )
    (alarm,) = await alarms(served)
    assert (alarm["cause"], alarm["step"]) == ("token_shift", 3)
    assert verdict["sentence"][1:] in alarm["sentence"]
    assert alarm["evidence"]["token_shift"]["result"] == "explains"


async def test_a_posted_step_is_checked_by_a_coordinator_alone(served: Served) -> None:
    served.bridge.down = "no cluster"
    await served.http.post("/v1/runs", json=RUN)
    verdict = await step(served, 3, SHIFTED)
    answer = await served.http.post("/v1/checks", json={"run": "math", "attempt": 1, "step": 3})
    assert answer.status_code == 200, answer.text
    check = answer.json()
    assert (check["cause"], check["sentence"], check["severity"]) == ("token_shift", verdict["sentence"], "pause")
    assert check["figures"] == verdict["figures"]
    assert (await served.http.get(f"/v1/checks/{check['check']}")).json() == check
    missing = await served.http.post("/v1/checks", json={"run": "math", "attempt": 1, "step": 9})
    assert missing.status_code == 404


async def test_a_calm_step_of_a_paused_run_says_that_it_is_still_paused(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await step(served, 0, SHIFTED)
    said = [(found["severity"], found["reason"]) for found in [await step(served, n, CLEAN) for n in (1, 2, 3)]]
    assert said == [
        ("pause", "still paused: calm step 1 of 3; of this step: every figure is within its limits"),
        ("pause", "still paused: calm step 2 of 3; of this step: every figure is within its limits"),
        ("ok", "every figure is within its limits"),
    ]


async def test_steps_in_which_nothing_counts_heal_nothing(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    assert (await step(served, 0, EMPTY))["severity"] == "unjudged"
    await step(served, 1, SHIFTED)
    for number in (2, 3, 4, 5):
        verdict = await step(served, number, EMPTY)
        assert (verdict["severity"], verdict["drift"]["severity"]) == ("unjudged", "pause")
        assert verdict["reason"] == "nothing was judged: no token counts, or too few to say"
    (line,) = (await served.http.get("/v1/runs/math/steps?after=4")).json()
    assert line["severity"] == "unjudged"
    assert [alarm["closed"] for alarm in await alarms(served)] == [None]


async def test_an_attempt_that_a_newer_one_replaced_moves_nothing(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    await step(served, 0, CLEAN, attempt=2)
    stale = await step(served, 7, SHIFTED, attempt=1)
    assert (stale["severity"], stale["drift"]["severity"]) == ("pause", "ok")
    assert "a newer attempt of the run is under way" in stale["reason"]
    assert await alarms(served) == []
    await step(served, 1, SHIFTED, attempt=2)
    for number in (8, 9, 10, 11):
        await step(served, number, CLEAN, attempt=1)
    assert (await served.http.get("/v1/runs/math")).json()["drift"]["severity"] == "pause"
    assert [alarm["closed"] for alarm in await alarms(served)] == [None]


async def test_a_worse_step_lets_an_open_incident_grow(served: Served) -> None:
    await served.http.post("/v1/runs", json={**RUN, "limits": {"overall": {"gen_kl_error": LOW}}})
    for number, far in enumerate((0.5, 0.5, 2.0)):
        await step(served, number, elsewhere(far))
    (found,) = (await served.http.get("/v1/incidents")).json()
    assert (found["step"], found["ended"]) == (0, None)
    assert found["what"].startswith("Step 2, ")
    assert found["figure"]["value"] > found["figure"]["limit"]
    told = [event for event in await served.coordinator.store.events(after=0, limit=500) if event.kind == "incident"]
    assert [event.data["what"] for event in told] == ["opened", "grew"]


LOW = {"warn": 0.001, "mask": 0.002, "pause": 0.01}


async def test_two_ranks_that_name_their_answers_alike_have_weights_of_their_own(served: Served) -> None:
    await served.http.post("/v1/runs", json={**RUN, "correction": {"method": "tis", "when": "always"}})
    other = [{**row, "train_logprobs": [value - 0.01 for value in row["train_logprobs"]]} for row in CLEAN]
    verdict = await step(served, 0, CLEAN, other)
    weights = {(one["rank"], one["sample"]): one["weights"] for one in verdict["sample_weights"]}
    assert len(weights) == 2 * len(CLEAN)
    for row, lower in zip(CLEAN, other, strict=True):
        name = row["sample"]
        for rank, of in ((0, row), (1, lower)):
            d = np.array(of["train_logprobs"]) - np.array(of["rollout_logprobs"])
            np.testing.assert_allclose(weights[rank, name], np.minimum(np.exp(d), 2.0), rtol=1e-5)


async def test_a_name_twice_within_a_part_is_refused(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    document = {"schema": "omni_rl.step/1", "records": [CLEAN[0], CLEAN[0]]}
    answer = await served.http.put("/v1/runs/math/attempts/1/steps/0/parts/0", json=document)
    assert answer.status_code == 422
    assert "is also the name of row 0" in answer.json()["detail"]


async def test_a_run_is_resumed_by_its_name_where_several_hold_the_gate(served: Served) -> None:
    for run in ("math", "code"):
        await served.http.post("/v1/runs", json={**GATED, "run": run})
        await step(served, 0, SHIFTED, run=run)
        assert (await rest(served, run))["drift"]["gate"] == "halted"
    refused = await served.http.post("/v1/resume")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert "math, code" in refused.json()["detail"]
    gate = (await served.http.post("/v1/resume", json={"run": "math"})).json()
    assert (gate["gate"], [hold["holder"] for hold in gate["holds"]]) == ("closed", ["run:code"])
    assert (await served.http.get("/v1/runs/code")).json()["drift"]["gate"] == "halted"
    assert (await served.http.post("/v1/resume")).json()["gate"] == "open"


async def test_what_records_prove_of_a_gated_run_asks_no_cluster(served: Served) -> None:
    await served.http.post("/v1/runs", json={**GATED, "run": "math"})
    await step(served, 0, SHIFTED)
    run = await rest(served, "math")
    assert (run["drift"]["gate"], run["drift"]["cause"]) == ("halted", "token_shift")
    assert "check" not in served.bridge.calls


async def test_what_was_seen_of_a_run_outlives_a_restart(serve: Serve) -> None:
    """A difference that grows with every step is told by the sixth, whoever judged the first three."""
    sizes = (0.0, 0.07, 0.14, 0.21, 0.28, 0.35)
    async with serve() as served:
        await served.http.post("/v1/runs", json=RUN)
        for number, far in enumerate(sizes[:3]):
            await step(served, number, elsewhere(far))
    async with serve() as served:
        for number, far in enumerate(sizes[3:], 3):
            verdict = await step(served, number, elsewhere(far))
    assert verdict["cause"] == "stale_weights"
    assert "has grown with every update" in verdict["sentence"]


async def test_raw_logprobs_name_no_cause_by_the_sign_of_the_mean(served: Served) -> None:
    z = WORLD.cut(top_p=0.9)
    ids = WORLD.sample(z)
    rollout, train = WORLD.logprobs(z, ids), WORLD.logprobs(WORLD.logits, ids)
    for run, said, cause in (("a", "processed", "sampling_support"), ("b", "raw", None), ("c", "unknown", None)):
        await served.http.post("/v1/runs", json={**RUN, "run": run})
        verdict = await step(served, 0, records(rollout, train, ids, logprobs_of=said), run=run)
        assert (verdict["cause"] if verdict["cause"] == "sampling_support" else None) == cause
    await served.http.post("/v1/runs", json={**RUN, "run": "d"})
    chosen = await step(served, 0, records(rollout, train, ids, filtered="reward"), run="d")
    assert chosen["cause"] != "sampling_support"
    odd = records(rollout, train, ids, logprobs_of="tempered")
    answer = await served.http.put(
        "/v1/runs/d/attempts/1/steps/1/parts/0", json={"schema": "omni_rl.step/1", "records": odd}
    )
    assert answer.status_code == 422
    assert "use processed, raw, unknown" in answer.json()["detail"]


async def test_prompts_that_differ_by_their_digests_are_told(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    told = records(ROLLOUT, TRAIN, IDS, rollout_prompt_digest="aa", train_prompt_digest=["bb"] + ["aa"] * 15)
    verdict = await step(served, 0, told)
    assert verdict["severity"] == "warn"
    assert "the trainer ran other prompts than the engine in 1 of 16 answers" in verdict["reason"]
    logits = ENGINE.copy()
    logits[:4] += 1.0 * WORLD.rng.standard_normal(logits[:4].shape, dtype=np.float32)
    ids = WORLD.sample(logits)
    off = records(
        WORLD.logprobs(logits, ids),
        WORLD.logprobs(WORLD.logits, ids),
        ids,
        rollout_prompt_digest="aa",
        train_prompt_digest=["bb"] * 4 + ["aa"] * 12,
    )
    assert (await step(served, 1, off))["cause"] == "prompt_mismatch"


async def test_a_lag_that_the_run_allows_is_not_told_and_a_longer_one_is(served: Served) -> None:
    spans = [[{"version": "r/1/7/aa", "start": 0, "end": 64}]] * 16
    rows = records(ROLLOUT, TRAIN, IDS, version_spans=spans, train_version="r/1/9/bb")
    for run, lag, severity in (("a", 2, "ok"), ("b", 1, "warn"), ("c", 0, "warn")):
        await served.http.post("/v1/runs", json={**RUN, "run": run, "lag": lag})
        assert (await step(served, 0, rows, run=run))["severity"] == severity, run


async def test_a_run_may_name_kinds_of_its_own_with_limits(served: Served) -> None:
    low = {"gen_kl_error": {"warn": 1e-6, "mask": 1.0, "pause": 2.0}}
    body = {**RUN, "kinds": ["math", "code"], "limits": {"code": low}}
    answer = await served.http.post("/v1/runs", json=body)
    assert answer.json()["kinds"] == [*KINDS, "math", "code"]
    rows = [{**row, "kind": "code" if n % 2 else "math"} for n, row in enumerate(CLEAN)]
    verdict = await step(served, 0, rows)
    # Clients that read the field by its old name find it there.
    assert {(breach["kind"], breach["bucket"]) for breach in verdict["breaches"]} == {("code", "code")}
    assert {"overall", "math", "code"} <= verdict["figures"].keys()
    seen = (await served.http.get("/v1/runs/math/attempts/1/steps/0")).json()
    assert seen["positions"].keys() >= {"math", "code"}
    line = (await served.http.get("/v1/runs/math/timeline", params={"kind": "code"})).json()
    assert line["steps"] == [1]
    document = {"schema": "omni_rl.step/1", "records": [{**CLEAN[0], "kind": "poetry"}]}
    refused = await served.http.put("/v1/runs/math/attempts/1/steps/1/parts/0", json=document)
    assert refused.status_code == 422
    assert f"'poetry'; known are {', '.join(KINDS)}, math, code" in refused.json()["detail"]


@pytest.mark.parametrize(
    "wrong", [{"kinds": ["overall"]}, {"kinds": ["a", "a"]}, {"kinds": ["text"]}, {"limits": {"poetry": {}}}]
)
async def test_kinds_and_limits_that_cannot_be_meant_are_refused(served: Served, wrong: dict[str, Any]) -> None:
    assert (await served.http.post("/v1/runs", json={**RUN, **wrong})).status_code == 422


async def test_the_coarser_dtype_of_both_sides_picks_the_limits(served: Served) -> None:
    for run, dtypes, severity in (
        ("a", {"dtype": "float32"}, "pause"),
        ("b", {"dtype": "float32", "train_dtype": "bfloat16"}, "ok"),
        ("c", {"dtype": "fp8", "train_dtype": "bfloat16"}, "ok"),
        ("d", {"dtype": "bfloat16", "train_dtype": "float32"}, "ok"),
    ):
        await served.http.post("/v1/runs", json={**RUN, "run": run, **dtypes})
        assert (await step(served, 0, CLEAN, run=run))["severity"] == severity, run


async def test_two_dtypes_that_the_sides_report_are_told_at_once_and_named(served: Served) -> None:
    stated = {"dtype": "bfloat16", "train_dtype": "float32"}
    for number, (sides, severity, cause) in enumerate(
        (
            ({"rollout_dtype": "bfloat16", "train_dtype": "float32"}, "warn", "rounding"),
            ({"rollout_dtype": "bfloat16", "train_dtype": "bfloat16"}, "ok", None),
            ({}, "ok", None),
        )
    ):
        run = f"run-{number}"
        await served.http.post("/v1/runs", json={**RUN, **stated, "run": run})
        verdict = await step(served, 0, [{**record, **sides} for record in elsewhere(0.01)], run=run)
        assert (verdict["severity"], verdict["cause"]) == (severity, cause)
        if cause:
            assert "the engine computes in bfloat16 and the trainer in float32" in verdict["sentence"]


async def test_a_difference_that_is_a_dtypes_own_at_every_step_is_rounding(served: Served) -> None:
    await served.http.post("/v1/runs", json={**RUN, "dtype": "float32"})
    causes = [(await step(served, number, elsewhere(0.01)))["cause"] for number in range(5)]
    assert causes == ["unknown"] * 3 + ["rounding"] * 2


async def test_a_verdict_can_be_asked_for_again_however_old_it_is(served: Served) -> None:
    await served.http.post("/v1/runs", json=RUN)
    verdict = await step(served, 0, SHIFTED)
    for number in range(1, 5):
        await step(served, number, CLEAN)
    again = await served.http.post("/v1/runs/math/attempts/1/steps/0/seal", json={})
    assert again.status_code == 200, again.text
    assert again.json() == {**verdict, "sample_weights": None}
    missing = await served.http.post("/v1/runs/math/attempts/1/steps/99/seal", json={})
    assert missing.status_code == 404


def test_the_world_is_as_far_apart_as_bfloat16_engines_are() -> None:
    assert 0.005 < float(np.abs(TRAIN - ROLLOUT).mean()) < 0.03
    assert math.isclose(float(np.exp(TRAIN - ROLLOUT).mean()), 1.0, abs_tol=0.003)
