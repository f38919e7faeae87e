"""The service on this machine as its operator has it: up, asked, hurt, recovered, down."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omni_rl.api.jobs import GrpoParameters
from omni_rl.api.runs import RunBody
from omni_rl.api.syncs import CheckBody, SyncAnswer, SyncBody
from omni_rl.client import Client, publish
from omni_rl.errors import ForbiddenError, InvalidRequestError, NonFiniteWeightsError, RayUnavailableError
from omni_rl.jobs.following import follow
from omni_rl.kinds import KINDS
from omni_rl.processes import wait_until_gone
from omni_rl.service.settings import SMALL_CHECKPOINT
from omni_rl.service.state import ServiceState, marked

pytestmark = pytest.mark.slow
REPLICAS = ["rollout-0", "rollout-1"]
PATIENCE = 120.0
# What a job does: samples from the engines that the service hosts. Prints when it asks, and when it has its answers.
SAMPLE = """
from omni_rl.policies.attach import attach
from omni_rl.policies.probe import probe_prompts
from omni_rl.rollout.types import SamplingSettings
with attach() as policies:
    prompts = policies.render(probe_prompts())
    print("asking", flush=True)
    rollouts = policies.sample(prompts, SamplingSettings(max_tokens=8, temperature=1.0, seed=1, ignore_eos=True))
    print("answered", flush=True)
    policies.update(rollouts, [1.0, -1.0, 0.5, -0.5, 0.25])
    print(policies.trainer.version(), flush=True)
"""
# Prints how many requests each engine has had since it was started.
COUNT = """
import json
from omni_rl.policies.attach import attach
def requests(engine):
    return int(repr(engine._numbers).strip("count()"))
with attach() as policies:
    print(json.dumps([engine.between_steps(requests) for engine in policies.rollouts]))
"""


class Service:
    """One that is up, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "omni_rl", *arguments, "--directory", str(self.directory), "--json"],
            capture_output=True,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith(("OMNI_RL", "RAY_"))},
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return json.loads(done.stdout)

    def says(self, *arguments: str) -> str:
        """What a person reads."""
        command = [sys.executable, "-m", "omni_rl", *arguments, "--directory", str(self.directory)]
        return subprocess.run(command, capture_output=True, text=True).stdout

    def up(self) -> Any:
        return self.run("up", "--port", "0", "--config", str(self.config))

    @property
    def weights(self) -> Path:
        """Where the operator lets weights come from."""
        return self.directory / "weights"

    @property
    def config(self) -> Path:
        path = self.directory / "up.toml"
        path.write_text(f'[up]\nreplicas = {len(REPLICAS)}\nweight_roots = ["{self.weights}"]\n')
        return path

    @property
    def state(self) -> ServiceState:
        state = ServiceState.read(self.directory)
        assert state is not None
        return state

    def client(self) -> Client:
        return Client(self.state.url, (self.directory / "tokens" / "owner").read_text())

    def synced(self) -> SyncAnswer:
        """The answer to a sync, as `omni-rl sync` gets it."""
        with self.client() as client:
            return client.sync()

    @contextlib.contextmanager
    def job(self, script: str = SAMPLE) -> Iterator[subprocess.Popen[str]]:
        """A driver with the environment of a job."""
        state = self.state
        environment = {
            **os.environ,
            "OMNI_RL_RUN": state.name,
            "OMNI_RL_URL": state.url,
            "OMNI_RL_TOKEN_FILE": str(self.directory / "tokens" / "owner"),
            "RAY_ADDRESS": state.ray_address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.directory / "ray_token"),
        }
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as job:
            try:
                yield job
            finally:
                job.kill()  # it would wait for ever behind a closed gate

    def requests(self) -> list[int]:
        """How many each engine has had."""
        with self.job(COUNT) as job:
            out, _ = job.communicate()
            found: list[int] = json.loads(out)
        return found

    def bridge(self) -> int:
        """The child of the coordinator."""
        coordinator = self.state.coordinator
        assert coordinator is not None
        (pid,) = Path(f"/proc/{coordinator.pid}/task/{coordinator.pid}/children").read_text().split()
        return int(pid)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("up"))
    try:
        service.up()
        yield service
    finally:
        name = service.state.name
        service.run("down")
        assert marked(name) == [], "down left processes"
        assert not list(Path("/dev/shm").glob(f"*{name}*")), "down left slabs"


def made(service: Service, name: str, scope: str) -> Path:
    """The file of a new token."""
    command = [sys.executable, "-m", "omni_rl", "token", "--directory", str(service.directory)]
    done = subprocess.run([*command, "--name", name, "--scope", scope], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def until(client: Client, connected: bool) -> None:
    deadline = time.monotonic() + PATIENCE
    while client.state().cluster.connected != connected:
        assert time.monotonic() < deadline, client.state().cluster.reason
        time.sleep(0.2)


def test_up_again_changes_nothing(service: Service) -> None:
    before = service.state
    assert service.up()["url"] == before.url
    assert service.state == before
    for secret in ("ray_token", "tokens/owner", "tokens.json"):
        assert (service.directory / secret).stat().st_mode & 0o077 == 0


def test_a_sync_is_answered_with_its_proof(service: Service) -> None:
    answer = service.run("sync")
    assert answer["outcome"] == "committed"
    assert answer["version"] == answer["serving"]
    assert answer["elements_proven"] == answer["elements"] > 1_000_000
    assert answer["bytes"] > 0
    assert answer["stall"] > 0
    # So few bytes never reach what a plain copy of many does.
    assert 0 < answer["bytes"] / answer["seconds"]["apply"] < answer["copy_rate"]
    assert answer["seconds"].keys() >= {"prepare", "pause", "apply", "verify", "commit", "resume"}
    assert answer["agreement"].keys() == set(KINDS)
    assert all(figures["logprob_abs_diff_mean"] < 1e-5 for figures in answer["agreement"].values())


def test_a_check_compares_by_kind_and_leg(service: Service) -> None:
    answer = service.run("check")
    assert answer["severity"] == "ok"
    assert answer["figures"].keys() == {"overall", *KINDS}
    assert answer["legs"].keys() == {"train_vs_prefill", "prefill_vs_decode", "batch_vs_alone"}


def test_weights_of_a_directory_and_of_another_process_come_the_same_way(service: Service) -> None:
    shutil.copytree(SMALL_CHECKPOINT, service.weights / "small")
    answer = service.run("sync", "--source", "directory", "--path", str(service.weights / "small"))
    assert (answer["outcome"], answer["elements_proven"]) == ("committed", answer["elements"])
    with service.client() as client:
        with pytest.raises(InvalidRequestError):
            client.sync(SyncBody(source="directory", path=str(SMALL_CHECKPOINT)))
        # The engines have the trainer's weights, under another name.
        assert client.check().severity == "ok"


def test_a_jobs_prompts_are_dealt_over_all_engines(service: Service) -> None:
    """Three steps of 64 answers, of which nothing is learnt: the tests after this one know the weights."""
    before = service.requests()
    parameters = GrpoParameters(run="dealt", steps=3, prompts=8, group=8, max_tokens=2, learning_rate=0.0)
    with service.client() as client:
        job = follow(client, client.submit(parameters).job, None)
        assert job.status == "succeeded", f"{job.message} {client.logs(job.job)[-2000:]}"
        steps = client.steps("dealt")
    assert [step.severity for step in steps] == ["ok"] * 3
    assert [now - then for now, then in zip(service.requests(), before, strict=True)] == [96, 96]


def published_state() -> dict[str, torch.Tensor]:
    """Of a trainer that is not ours."""
    state = load_file(SMALL_CHECKPOINT / "model.safetensors")
    return {name: -tensor if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def test_what_is_not_finite_is_refused_by_tensor_unless_the_sync_allows_it(service: Service) -> None:
    serving = service.synced().serving
    state = published_state()
    name = next(name for name in state if name.endswith(".A_log"))
    state[name][:2] = float("nan")
    broken = publish(state, run=service.state.name, number=6)
    what = f"{name}: 2 NaN of {state[name].numel()} elements"
    with service.client() as client:
        with pytest.raises(NonFiniteWeightsError, match=re.escape(what)):
            client.sync(SyncBody(source="published", version=broken.version))
        assert {member.version for member in client.state().cluster.members} == {serving}
        assert client.syncs(1)[0].outcome != "committed"
    answer = service.run("sync", "--source", "published", "--version", broken.version, "--allow-nonfinite")
    assert (answer["serving"], answer["allow_nonfinite"], answer["nonfinite"]) == (broken.version, True, [what])
    assert "2 NaN of" in service.says("check")
    service.synced()


def test_published_weights_are_nobodys_stale_ones_and_stay(service: Service) -> None:
    service.synced()
    published = publish(published_state(), run=service.state.name, number=7)
    assert service.run("sync", "--source", "published", "--version", published.version)["outcome"] == "committed"
    with service.client() as client:
        members = client.state().cluster.members
        assert [member.name for member in members] == [*REPLICAS, "trainer"]
        assert {member.version for member in members[:-1]} == {published.version} != {members[-1].version}
        check = client.check()
        assert (check.severity, check.cause, check.compared, check.figures) == ("unjudged", None, False, {})
        assert [(found["check"], found["result"]) for found in check.evidence] == [("weights", "clear")]
        assert "sync" not in check.sentence

        client.create_run(RunBody(run="theirs", model="theirs", dtype="float32", gated=True))
        post(client, 1, published.version, 1e-7)
        judged = client.check(CheckBody(run="theirs", attempt=1, step=1))
        assert (judged.severity, judged.compared) == ("ok", False)
        assert judged.figures["overall"]["tokens"] == 64

        # Nobody can explain this one: the policy brings the weights anew, which are the published ones.
        post(client, 2, published.version, 1.0)
        deadline = time.monotonic() + PATIENCE
        while client.run("theirs").drift.gate != "halted":
            assert time.monotonic() < deadline, client.run("theirs").drift
            time.sleep(0.2)
        newest = client.syncs(1)[0]
        assert (newest.outcome, newest.source, newest.serving) == ("committed", "published", published.version)
        members = client.state().cluster.members
        assert {member.version for member in members[:-1]} == {published.version}
        client.resume()
        client.sync()
        assert client.check().severity == "ok"


def post(client: Client, step: int, version: str, apart: float) -> None:
    """A step of a trainer that is not ours, scored with the weights that sampled it."""
    generator = np.random.default_rng(step)
    rollout = -5.0 - generator.random(64)
    record = {
        "sample": "a",
        "kind": "text",
        "prompt_tokens": 4,
        "rollout_logprobs": rollout.tolist(),
        "train_logprobs": (rollout + apart * generator.standard_normal(64)).tolist(),
        "version_spans": [{"version": version, "start": 0, "end": 64, "mixed_state": False}],
        "train_version": version,
    }
    client.put_part("theirs", 1, step, 0, [record])
    client.seal("theirs", 1, step, parts=1)


def test_a_hold_stops_generation_through_syncs_and_the_bridges_death(service: Service) -> None:
    service.run("pause", "maintenance")
    with service.job() as job, service.client() as client:
        assert job.stdout is not None
        assert job.stdout.readline() == "asking\n"
        assert client.sync().outcome == "committed"
        os.kill(service.bridge(), signal.SIGKILL)
        until(client, False)
        with pytest.raises(RayUnavailableError):
            client.check()
        until(client, True)
        gate = client.state().gate
        assert (gate.gate, [hold.holder for hold in gate.holds]) == ("closed", ["person"])
        assert service.run("check", "--no-legs")["severity"] == "ok"
        assert select.select([job.stdout], [], [], 0)[0] == [], "it was answered behind a closed gate"
        service.run("resume")
        assert job.stdout.readline() == "answered\n"
        learnt = job.stdout.readline().strip()
        assert job.wait() == 0
    assert service.synced().version == learnt


def test_a_killed_coordinator_comes_back_to_the_same_actors(service: Service) -> None:
    served = service.synced().version
    with service.client() as client:
        coordinator = service.state.coordinator
        assert coordinator is not None
        os.kill(coordinator.pid, signal.SIGKILL)
        wait_until_gone([coordinator.pid])
        token = made(service, "viewer", "read")
        service.up()
        with Client(service.state.url, token.read_text()) as viewer:
            assert viewer.whoami().scope == "read"
            with pytest.raises(ForbiddenError):
                viewer.sync()
        # Actors that were started anew would have the checkpoint's weights, the trainer for good.
        assert {member.version for member in client.state().cluster.members} == {served}


def test_without_rays_head_the_api_answers_and_says_so(service: Service) -> None:
    served = service.synced().version
    with service.client() as client:
        head = service.state.head
        assert head is not None
        os.killpg(head.pid, signal.SIGKILL)
        until(client, False)
        deadline = time.monotonic() + PATIENCE
        while "no Ray head answers" not in client.state().cluster.reason:
            assert time.monotonic() < deadline, client.state().cluster.reason
            time.sleep(0.2)
        service.up()
        engines = client.state().cluster.members[: len(REPLICAS)]
        assert [(engine.state, engine.version) for engine in engines] == [("serving", served)] * len(REPLICAS)
