"""A dozen faults put into a live service: noticed, named, answered and healed; and clean steps beside them. Before all,
the drill of our own pair: a person is woken, finds the run, and resumes it once the fault is out."""

import os
import time
from collections.abc import Iterator
from functools import partial

import pytest
from playwright.sync_api import expect

from omni_rl.api.syncs import CheckBody
from omni_rl.kinds import KINDS
from omni_rl.rollout.types import SamplingSettings
from omni_rl.train.worker import TrainWorker
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.fault import Fault
from omni_rl_bench.sabotage.faults import FAULTS
from omni_rl_bench.sabotage.response import last_event, response
from omni_rl_bench.sabotage.rig import PAIRS, Rig, prompts_of
from omni_rl_bench.sabotage.suite import REPLICAS
from omni_rl_bench.sabotage.trial import BY_HAND, ROLLBACK, run_trial
from tests.browser import drill
from tests.browser.conftest import Open, browser, context, opened
from tests.services.receiver import Receiver, receiving

pytestmark = pytest.mark.slow
__all__ = ["browser", "context", "opened"]  # fixtures
SEED = 3
LIVE = (
    "sync skipped (before VERIFY)",
    "one replica stale (vouched for)",
    "one bit flipped (after VERIFY)",
    "encoder cache stale (before VERIFY)",
    "normalised twice (from then on)",
    "video reversed (from then on)",
    "placeholder off by one (from then on)",
    "top-p, untold (from then on)",
    "temperature 0.6, ignored (from then on)",
    "all logprobs of another request (from then on)",
    "mask late by one (from then on)",
    "one NaN, engine (from then on)",
)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def rig(receiver: Receiver) -> Iterator[Rig]:
    with Rig(PAIRS["float32"], print, replicas=REPLICAS, pager=drill.pager(receiver)) as rig:
        yield rig


# The first test: of others' incidents it would be woken, too.
def test_a_fault_of_our_pair_wakes_somebody_who_finds_and_ends_it(rig: Rig, receiver: Receiver, opened: Open) -> None:
    rig.begin("drill", prompts_of(5, 2))
    sampling = SamplingSettings(max_tokens=16, seed=5, ignore_eos=True)
    assert rig.step(0, sampling).calm
    page = opened(os.environ["OMNI_RL_URL"])
    expect(page.locator("#badge strong")).to_contain_text("OK")
    rig.policies.trainer.on_ranks(partial(_louder, module="vision_model.encoder.layer.1.mlp", by=1.5))
    try:
        rollouts = rig.sample(sampling)
        scores = rig.policies.score(rollouts)
        before, sealed = len(receiver.got), time.time()
        rig.judge(1, rollouts, scores)
        told = drill.told(receiver, before, sealed)
        assert told.json["incident"]["run"] == "drill"
        drill.found_on_top(page, "drill")
        story = drill.story(page, "drill")
        story.get_by_role("button", name="Acknowledge").click()
        expect(story).to_contain_text("local has it in hand")
        # Once the search for the cause is over.
        expect(page.locator("#badge strong")).to_have_text("■ HALTED", timeout=240_000)
    finally:
        rig.take_out()
    story.get_by_role("button", name="Resume this run").click()
    page.locator("dialog").get_by_role("button", name="Resume").click()
    expect(page.locator("#badge strong")).to_have_text("● OK")
    (incident,) = rig.client.incidents(run="drill")
    assert incident.acknowledged is not None
    assert (incident.acknowledged.by, incident.ended is not None) == ("local", True)
    assert rig.step(2, sampling).calm


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.key in LIVE], ids=lambda fault: fault.key)
def test_a_fault_is_noticed_named_answered_and_healed(rig: Rig, fault: Fault) -> None:
    trial = run_trial(rig, fault, SEED)
    assert trial.noticed
    assert trial.trouble == ""
    if trial.by == "verify":
        assert trial.action == ROLLBACK
    else:
        assert trial.cause in {str(cause) for cause in fault.causes}, trial.sentence
        assert trial.action_right, trial.action
        assert trial.action == BY_HAND or trial.severity != "ok"
    assert trial.healed


def test_a_clean_step_is_ok_and_a_clean_pair_agrees_module_by_module(rig: Rig) -> None:
    rig.begin("clean", prompts_of(4, 2))
    step = rig.step(0, SamplingSettings(max_tokens=16, seed=4, ignore_eos=True))
    assert step.calm
    assert step.verdict.severity == "ok"
    found = rig.client.check(CheckBody(legs=False, localise=True))
    assert found.severity == "ok"
    assert found.cause is None
    seen = [entry["modules"] for entry in found.evidence if entry["check"] == "localisation"]
    assert len(seen) == len(KINDS)
    for modules in seen:
        assert {"embeddings", "layers.0.mixer", "norm"} <= set(modules)
        assert list(modules)[-1] == "logits"
        assert all(apart <= band for apart, band in modules.values())


@pytest.mark.parametrize(
    ("module", "shown"),
    [("vision_model.encoder.layer.1.mlp", "vision.layers.1.mlp"), ("sound_encoder.layers.0", "sound.layers.0")],
)
def test_a_block_of_a_tower_that_differs_is_found_by_its_name(rig: Rig, module: str, shown: str) -> None:
    rig.begin(f"tower-{shown.replace('.', '-')}", prompts_of(5, 2))
    rig.policies.trainer.on_ranks(partial(_louder, module=module, by=1.01))
    before = last_event(rig.client)
    try:
        step = rig.step(0, SamplingSettings(max_tokens=16, seed=5, ignore_eos=True))
        found = response(rig.client, step.verdict, before)
    finally:
        rig.take_out()
        rig.client.resume(step.verdict.run)
    by_check = {entry["check"]: entry for entry in found.evidence}
    assert by_check["localisation"]["layers"] == [shown]
    assert by_check["reference"]["engine_mean"] < 1e-5 < by_check["reference"]["train_mean"]


def _louder(worker: TrainWorker, module: str, by: float) -> None:
    patches.hook(worker.model.get_submodule(module), lambda found: found * by)
