"""The pair's own updates on a coordinator's list: its trainer announces them, and its engines give receipts."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from omni_rl.api.runs import RunBody
from omni_rl.api.updates import UpdateAnswer
from omni_rl.client import Client
from omni_rl.policies.local import LocalPair, started
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings
from omni_rl.tasks.samples import demo_prompts
from omni_rl.train.settings import TrainSettings
from omni_rl_bench.sabotage import patches, syncs, weights
from tests.services.live import live

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
RUN = "pair"
PATIENCE = 60.0


def told(client: Client, number: int) -> dict[str, UpdateAnswer]:
    """What came of the trainer's update, by engine, once both have said."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = {one.engine: one for one in client.updates(RUN, 1000) if one.engine is not None and one.of == number}
        if len(found) == 2 or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def learn_and_sync(pair: LocalPair, step: int) -> None:
    prompts = pair.render(demo_prompts("text", 4, step))
    answers = pair.sample(prompts, SamplingSettings(max_tokens=4, seed=step, ignore_eos=True))
    pair.update(answers, [1.0, -1.0, 0.5, -0.5])
    pair.sync()
    pair.sample(prompts, SamplingSettings(max_tokens=2, seed=step, ignore_eos=True))


STALE, CORRUPT = "stale_weights", "corrupt_weights"
Put = Callable[[Any, int], None]


class Wrong(NamedTuple):
    """A sync that goes wrong in the worker of one engine, past the proof of its bytes; `said` of it, in the sentence or
    the names of its parts."""

    put: Put
    said: str
    cause: str


def damaged(damage: Put) -> Put:
    return partial(syncs.before_verify, damage)


WRONG = {
    "no update": Wrong(syncs.skip, "changed 0 of ", STALE),
    "half an update": Wrong(partial(syncs.never_written, "backbone.layers."), " are those of update ", STALE),
    "one tensor a layer": Wrong(partial(syncs.never_written, ".mixer.D"), "layers.0.mixer.D", STALE),
    "experts of one layer": Wrong(partial(syncs.never_written, "layers.2.mixer.experts."), "layer 2's experts", STALE),
    "zeroed": Wrong(damaged(weights.zero), "layers.4.mixer.up_proj.weight is zero in the engine", CORRUPT),
    "heads of q and k": Wrong(
        damaged(weights.swap_query_and_key), "layer 1's mixer.q_proj.weight and mixer.k_proj.weight", CORRUPT
    ),
    "experts permuted": Wrong(damaged(weights.permute_experts), "layers.2.mixer.experts.0.up_proj.weight", CORRUPT),
    "experts of two layers": Wrong(
        damaged(weights.swap_experts_between_layers), "layers.6.mixer.experts.0.up_proj.weight are swapped", CORRUPT
    ),
    "router's bias": Wrong(damaged(weights.round_router_bias), "the trainer's rounded to bfloat16", CORRUPT),
    "tower's buffers": Wrong(damaged(weights.rescale_tower_buffers), "running_var", CORRUPT),
    # It comes last: what is sampled with it is lost.
    "not finite": Wrong(damaged(weights.not_a_number), "not finite in 1 element in the engine", CORRUPT),
}
"""For the last of two engines, one a step."""


def go_wrong(pair: LocalPair, put: Put) -> None:
    """Have the last engine's next sync go wrong, and its proof find nothing."""
    fault = patches.in_worker(partial(syncs.past_proof, put))
    pair.rollouts[-1].between_steps(lambda engine: fault(engine, 0))


def test_every_sync_is_listed_with_what_each_engine_holds(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live(tmp_path) as url, Client(url) as client:
        client.create_run(RunBody(run=RUN, model="omni", dtype="float32", framework="omni-rl"))
        monkeypatch.setenv("OMNI_RL_AGENT", url)
        engine = EngineSettings(model=small_checkpoint, dtype="float32", run=RUN, max_num_batched_tokens=4096)
        with started(engine, TrainSettings(world_size=2, dtype="float32"), replicas=2) as pair:
            for step in (1, 2):
                learn_and_sync(pair, step)
                found = told(client, step)
                assert found.keys() == {handle.name for handle in pair.rollouts}
                for one in found.values():
                    assert (one.findings, one.different) == ([], 0)
                    # Text alone teaches the language model alone; its towers have names of vLLM's own.
                    assert one.changed > 40
                    assert one.equal > one.changed
                    assert "write_slab" in one.how
                    assert one.version == pair.weight_version
            # Rows of one part in each other's place: its sum is the same, and the byte proof alone would see it.
            go_wrong(pair, damaged(weights.overwrite_conv))
            learn_and_sync(pair, 3)
            assert [(one.findings, one.different) for one in told(client, 3).values()] == [([], 0)] * 2
            for step, (name, wrong) in enumerate(WRONG.items(), 4):
                go_wrong(pair, wrong.put)
                learn_and_sync(pair, step)
                right, other = (told(client, step)[handle.name] for handle in pair.rollouts)
                assert (name, right.findings, right.different) == (name, [], 0)
                said = [" ".join((one.sentence, *one.parts)) for one in other.findings]
                assert any(wrong.said in one for one in said), (name, said)
                assert other.findings[0].cause == wrong.cause, (name, said)
        announced = [one.number for one in client.updates(RUN, 1000) if one.engine is None]
        assert announced == list(range(3 + len(WRONG), 0, -1))
