"""The pair's own updates on a coordinator's list: its trainer announces them, and its engines give receipts."""

import time
from pathlib import Path

import pytest

from omni_rl.api.runs import RunBody
from omni_rl.api.updates import UpdateAnswer
from omni_rl.client import Client
from omni_rl.media.samples import demo_prompts
from omni_rl.policies.local import LocalPair, started
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import SamplingSettings
from omni_rl.sabotage import syncs
from omni_rl.train.settings import TrainSettings
from tests.services.live import live

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
RUN = "pair"
PATIENCE = 60.0


def told(client: Client, number: int) -> dict[str, UpdateAnswer]:
    """What came of the trainer's update, by engine, once both have said."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = {one.engine: one for one in client.updates(RUN, 100) if one.engine is not None and one.of == number}
        if len(found) == 2 or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def learn_and_sync(pair: LocalPair, step: int) -> None:
    prompts = pair.render(demo_prompts("text", 4, step))
    answers = pair.sample(prompts, SamplingSettings(max_tokens=4, seed=step, ignore_eos=True))
    pair.update(answers, [1.0, -1.0, 0.5, -0.5])
    pair.sync()
    pair.sample(prompts, SamplingSettings(max_tokens=2, seed=step, ignore_eos=True))


STALE = next(fault for fault in syncs.FAULTS if fault.key == "mixer.D not written (vouched for)")
"""A sync that leaves one parameter of each Mamba layer as it was, and whose proof of bytes finds nothing."""


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
            pair.rollouts[1].between_steps(lambda engine: STALE.put(engine, 0))
            learn_and_sync(pair, 3)
            right, wrong = (told(client, 3)[handle.name] for handle in pair.rollouts)
            assert (right.findings, right.different) == ([], 0)
            assert "are those of update 2" in wrong.findings[0].sentence
            assert wrong.different == len(wrong.findings[0].parts) > 0
            assert all(part.endswith("mixer.D") for part in wrong.findings[0].parts)
        announced = [one for one in client.updates(RUN, 100) if one.engine is None]
        assert [one.number for one in announced] == [3, 2, 1]
