"""The drill, of our own pair: a fault, and a person is woken, finds the run, and resumes it once the fault is out."""

import os
import time
from collections.abc import Iterator
from functools import partial

import pytest
from playwright.sync_api import expect

from omni_rl.rollout.types import SamplingSettings
from omni_rl.train.worker import TrainWorker
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.rig import PAIRS, Rig, prompts_of
from tests.browser import drill
from tests.browser.conftest import Open
from tests.services.receiver import Receiver, receiving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def rig(receiver: Receiver) -> Iterator[Rig]:
    with Rig(PAIRS["float32"], print, pager=drill.pager(receiver)) as rig:
        yield rig


def test_a_fault_of_our_pair_wakes_somebody_who_finds_and_ends_it(rig: Rig, receiver: Receiver, opened: Open) -> None:
    rig.begin("drill", prompts_of(5, 2))
    sampling = SamplingSettings(max_tokens=16, seed=5, ignore_eos=True)
    assert rig.step(0, sampling).calm
    page = opened(os.environ["OMNI_RL_URL"])
    expect(page.locator("#badge strong")).to_contain_text("OK")
    rig.policies.trainer.on_ranks(partial(_louder, module="vision_model.encoder.layer.1.mlp"))
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


def _louder(worker: TrainWorker, module: str) -> None:
    patches.hook(worker.model.get_submodule(module), lambda found: found * 1.5)
