"""TRL's updates in real runs, of full weights, with experts and with LoRA: each fault is told of at its update, before
the next step is judged, and no other is."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_rl import torchvision_schemas
from omni_rl.api.runs import RunBody
from omni_rl.client import Client
from tests.agent.faults import IN_TRL
from tests.agent.trl_steps import fault_at, steps
from tests.nursery import Forked, call_main, said_by
from tests.services.live import live
from tests.watch.trl_process import ENVIRONMENT, trl_nursery

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nursery() -> Iterator[str]:
    with trl_nursery("tests.agent.trl_faults") as address:
        yield address


@pytest.mark.parametrize("kind", IN_TRL)
def test_each_fault_of_an_update_is_told_of_at_that_update(nursery: str, tmp_path: Path, kind: str) -> None:
    torchvision_schemas.install()
    from tests.watch.trl_models import write_qwen, write_qwen_moe

    faults = IN_TRL[kind]
    model = (write_qwen_moe if kind == "experts" else write_qwen)(tmp_path / "model")
    options = {"kind": kind, "model": str(model), "output": str(tmp_path)}
    with live(tmp_path) as url, Client(url) as client:
        client.create_run(RunBody(run="trl", model="tiny", dtype="float32", framework="trl"))
        environment = {**os.environ, **ENVIRONMENT, "OMNI_RL_URL": url, "OMNI_RL_AGENT": url, "OMNI_RL_RUN": "trl"}
        log = tmp_path / "run.log"
        said_by(Forked(nursery, log, call_main, "tests.agent.trl_faults", [json.dumps(options)], environment), log)
        told = [one for one in client.updates("trl", 1000) if one.engine is not None][::-1]
    assert [one.of for one in told] == list(range(1, steps(faults) + 1))  # the trainer counts its updates from 1
    for step, one in enumerate(told):
        sentences = [found.sentence for found in one.findings]
        fault = fault_at(step, list(faults.values()))
        if fault is None:
            assert (step, sentences, one.different) == (step, [], 0)
            assert one.equal > 20
        else:
            assert any(fault.said in sentence for sentence in sentences), (step, fault.said, sentences)
            assert one.findings[0].cause == fault.cause, (step, sentences)
