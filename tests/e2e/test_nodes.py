"""The demo on several Ray nodes of this machine, each a host of its own; and what is left when one of them is lost."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import ray

from omni_rl.config import DemoSettings
from omni_rl.demo.environment import DemoEnvironment
from omni_rl.demo.pair import demo_pair
from omni_rl.errors import SyncRolledBackError, TrainerDeadError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import LedgerJournal
from omni_rl.policies.local import LocalPair
from omni_rl.policies.settings import NodesSettings
from omni_rl.processes import wait_until_gone
from omni_rl.sync.ownership import PREFIX, SHARED_MEMORY
from omni_rl.sync.states import Decision

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HOME = "127.0.0.2"
"""The driver's node, and the first rank's."""
SMALL = DemoSettings(prompts_per_kind=1, max_tokens=8, replicas=2, nodes=NodesSettings(count=5))
"""Two nodes have a rank each. Of the others three are lost, one after the other, and Ray puts an engine where least is.
"""
LONG, SOON = 1000, 1.0
"""Tokens of an answer that takes long enough for a node to be lost meanwhile, after so many seconds."""


def test_the_demo_agrees_on_several_nodes(tmp_path: Path) -> None:
    """One replica shares the trainer's host; the other gets the same weights through the object store."""
    command = [sys.executable, "-m", "omni_rl", "demo", "--json", "--steps", "3", "--out", str(tmp_path)]
    command += ["--replicas", "2", "--nodes", "2"]
    small = {"OMNI_RL_DEMO__PROMPTS_PER_KIND": "2", "OMNI_RL_DEMO__MAX_TOKENS": "16"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | small)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [step["verdict"] for step in report["steps"]] == ["agree"] * 3
    assert len({step["weight_version"] for step in report["steps"]}) == 3
    at = {actor["name"]: actor["node"] for actor in report["actors"]}
    assert set(at) == {"rank-0", "rank-1", "rollout-0", "rollout-1"}
    assert at["rank-0"] == HOME != at["rank-1"]
    assert at["rollout-0"] != at["rollout-1"]
    through = {actor["node"]: actor["transport"] for actor in report["actors"] if actor["transport"]}
    assert through == {node: "slab" if node == HOME else "object_store" for node in through}
    assert len(set(at.values())) == 2


class Struck(LedgerJournal):
    """Calls `strike` before it writes what a sync does at `moment`."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger, "nodes")
        self.moment = ""
        self.strike: Callable[[], None] = lambda: None

    def prepared(self, sync: str, epoch: int, version: str) -> None:
        self._at("prepared")
        super().prepared(sync, epoch, version)

    def decide(self, sync: str, epoch: int, decision: Decision) -> Decision:
        self._at("decide")
        return super().decide(sync, epoch, decision)

    def _at(self, moment: str) -> None:
        if moment == self.moment:
            self.moment = ""
            self.strike()


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Struck]:
    path = tmp_path_factory.mktemp("nodes") / "ledger.db"
    with Ledger.open(f"sqlite:///{path}") as ledger, contextlib.closing(Struck(ledger)) as journal:
        yield journal


@pytest.fixture(scope="module")
def pair(journal: Struck) -> Iterator[LocalPair]:
    """One pair for all losses; each test leaves it whole, on the nodes that are left, but for the last one."""
    with demo_pair(SMALL, journal) as pair:
        yield pair
    assert not list(SHARED_MEMORY.glob(f"{PREFIX}{pair.settings.run}*"))


@pytest.mark.parametrize("moment", ["prepared", "decide"])
def test_a_node_that_is_lost_in_a_sync_leaves_nothing_half_done(journal: Struck, pair: LocalPair, moment: str) -> None:
    """The node is lost before its engine is paused, or when the engine has proven the weights."""
    learn(pair)
    pair.sync()
    before = pair.weight_version
    learn(pair)
    lost = only_engines(pair)
    journal.moment, journal.strike = moment, lambda: kill_node(lost)
    if moment == "decide":
        pair.sync()
    else:
        with pytest.raises(SyncRolledBackError):
            pair.sync()
    serving = all_serve(pair, without=lost)
    assert serving == (before if moment != "decide" else str(pair.trainer.version()))
    pair.sync()
    assert all_serve(pair, without=lost) == str(pair.trainer.version())
    learn(pair)


# The last test with this pair.
def test_a_node_that_is_lost_in_a_step_is_made_up_for_or_told(pair: LocalPair) -> None:
    learn(pair)
    pair.sync()
    before = pair.weight_version
    lost = only_engines(pair)
    asked = DemoEnvironment(SMALL.model_copy(update={"max_tokens": LONG})).asked(2)
    strike = threading.Timer(SOON, kill_node, [lost])
    strike.start()
    answers = pair.sample(pair.render(asked.prompts), asked.sampling)
    strike.join()
    assert [len(answer.ids) for answer in answers] == [LONG] * len(asked.prompts)
    assert {span.version for answer in answers for span in answer.version_spans} == {before}
    assert all_serve(pair, without=lost) == before
    # A rank cannot be made up for: what it had of the optimiser's state is lost.
    kill_node(pair.trainer.built.addresses[1])
    with pytest.raises(TrainerDeadError, match="rank"):
        pair.score(answers)


def learn(pair: LocalPair) -> None:
    """A step, without its sync."""
    asked = DemoEnvironment(SMALL).asked(0)
    rollouts = pair.sample(pair.render(asked.prompts), asked.sampling)
    assert {span.version for rollout in rollouts for span in rollout.version_spans} == {pair.weight_version}
    pair.update(rollouts, [1.0, -1.0, 1.0, -1.0, 1.0])


def all_serve(pair: LocalPair, *, without: str) -> str:
    """The one version that every engine serves with an open gate, none of them at the lost address."""
    statuses = [handle.status() for handle in pair.rollouts]
    assert [(status.standing, status.held) for status in statuses] == [("serving", None)] * len(statuses)
    assert without not in [handle.address for handle in pair.rollouts]
    (version,) = {status.holds for status in statuses}
    assert version is not None
    return version


def only_engines(pair: LocalPair) -> str:
    """Address of a node that has an engine and no rank."""
    return next(handle.address for handle in pair.rollouts if handle.address not in pair.trainer.built.addresses)


def kill_node(address: str) -> None:
    """Everything on it at once, as a power cut would."""
    (node,) = (node for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == address)
    (raylet,) = (pid for pid, words in commands() if f"--raylet_socket_name={node['RayletSocketName']}" in words)
    doomed = [raylet, *children(raylet)]
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_gone(doomed[1:])


def commands() -> Iterator[tuple[int, Sequence[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_text().split("\0")


def children(parent: int) -> list[int]:
    found = (Path(f"/proc/{parent}/task") / str(parent) / "children").read_text()
    return [int(pid) for pid in found.split()]
