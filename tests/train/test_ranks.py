"""A rank that dies, hangs or fails is reported within seconds, by name, and nothing is left running."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist

from omni_rl.errors import CheckpointError, GradientError, TrainerDeadError, TrainerStoppedError
from omni_rl.processes import STOPPED_AFTER
from omni_rl.train import rendezvous
from omni_rl.train.actor import TrainerStatus
from omni_rl.train.handle import TrainerHandle
from omni_rl.train.pulse import HEALTH, Pulse
from omni_rl.train.ranks import Ranks
from omni_rl.train.rendezvous import LOOPBACK

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

TIMEOUT = 5.0


class Adder:
    """A rank that adds numbers over a real process group."""

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size

    def locate(self) -> tuple[str, int]:
        return ray.util.get_node_ip_address(), os.getpid()

    def listen(self) -> int:
        self._store, port = rendezvous.listen(LOOPBACK, TIMEOUT)
        return port

    def join(self, port: int) -> None:
        if self._rank:
            self._store = rendezvous.connect(LOOPBACK, port, TIMEOUT)
        rendezvous.join(self._rank, self._world_size, "gloo", LOOPBACK, self._store, TIMEOUT)

    def add(self, value: float) -> float:
        total = torch.tensor(value)
        dist.all_reduce(total)
        return total.item()

    def add_but_die(self, victim: int) -> float:
        if self._rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.add(1.0)

    def add_but_stop(self, victim: int) -> float:
        if self._rank == victim:
            os.kill(os.getpid(), signal.SIGSTOP)
        return self.add(1.0)

    def add_but_fail(self, victim: int) -> float:
        if self._rank == victim:
            raise ValueError("image 3 of prompt x has no features")
        return self.add(1.0)

    def fail_alone(self, victim: int) -> None:
        if self._rank == victim:
            raise CheckpointError("the disk is full")

    def fail_together(self) -> None:
        raise GradientError("not finite")


@pytest.fixture
def pids() -> list[int]:
    """Process ids of `ranks`."""
    return []


@pytest.fixture
def ranks(pids: list[int]) -> Iterator[Ranks]:
    actor: Any = ray.remote(num_cpus=0.25)(Adder)
    actors = [actor.remote(rank, 2) for rank in range(2)]
    group = Ranks(actors)
    group.locate(60.0)
    pids += [pid for _, pid in ray.get([actor.locate.remote() for actor in actors])]
    group.call("join", group.first("listen"))
    yield group
    group.close()
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_every_rank_gets_its_share(ranks: Ranks) -> None:
    assert ranks.each("add", [1.0, 2.5]) == [3.5, 3.5]
    here = ray.util.get_node_ip_address()
    assert [address for address, _ in ranks.each("locate")] == [here, here], "without shares, no rank was called"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_in_a_collective_is_named_within_seconds(ranks: Ranks, victim: int) -> None:
    started = time.monotonic()
    with pytest.raises(TrainerDeadError, match=f"process of rank {victim} died"):
        ranks.call("add_but_die", victim)
    assert time.monotonic() - started < 10
    with pytest.raises(TrainerDeadError, match="start a new one"):
        ranks.call("add", 1.0)


def test_a_rank_killed_between_calls_is_named(ranks: Ranks, pids: list[int]) -> None:
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(TrainerDeadError, match="process of rank 1 died"):
        ranks.call("add", 1.0)


def test_a_rank_that_dies_while_nobody_calls_is_told_of(ranks: Ranks, pids: list[int]) -> None:
    assert ranks.pulse.gone() == []
    os.kill(pids[1], signal.SIGKILL)
    wait_for(lambda: ranks.pulse.gone() == [1])


def test_a_silent_rank_is_given_up_after_the_timeout(ranks: Ranks) -> None:
    started = time.monotonic()
    with pytest.raises(TrainerDeadError, match="rank 0 failed"):
        ranks.call("add_but_stop", 1)
    assert TIMEOUT < time.monotonic() - started < TIMEOUT + 15


def test_a_stopped_rank_is_named_and_its_call_goes_on_when_it_does(ranks: Ranks, pids: list[int]) -> None:
    assert not ranks.pulse.look()
    with ThreadPoolExecutor() as calling, stopped(pids[1]):
        call = calling.submit(ranks.call, "add", 1.0)
        wait_for(lambda: f"rank 1 (process {pids[1]} on " in ranks.pulse.look())
        assert "rank 0" not in ranks.pulse.look()
        assert not call.done()
        os.kill(pids[1], signal.SIGCONT)
        assert call.result() == [2.0, 2.0]
    assert not ranks.pulse.look()


def test_a_rank_that_stays_stopped_ends_the_group() -> None:
    """Where no peer waits for it, nothing else would."""
    alone = Ranks([ray.remote(num_cpus=0.25)(Adder).remote(0, 1)], stopped_longest=0.5)
    alone.locate(60.0)
    with stopped(*alone.pids), pytest.raises(TrainerDeadError, match=r"rank 0 .* is stopped .*, and has been for"):
        alone.call("fail_together")


class Computer:
    """A rank that computes without an end."""

    def locate(self) -> tuple[str, int]:
        return ray.util.get_node_ip_address(), os.getpid()

    @ray.method(concurrency_group=HEALTH)  # type: ignore[untyped-decorator]
    def alive(self) -> None:
        return None

    def compute(self) -> None:
        while True:
            sum(range(1000))


def test_a_busy_rank_of_another_machine_is_told_from_a_stopped_one() -> None:
    actor: Any = ray.remote(num_cpus=0.25, concurrency_groups={HEALTH: 1})(Computer).remote()
    _, pid = ray.get(actor.locate.remote())
    pulse = Pulse(silent_after=1.5)
    pulse.follow([actor], [("another machine", pid)])
    actor.compute.remote()
    for _ in range(6):
        assert not pulse.look()
        time.sleep(0.5)
    with stopped(pid):
        wait_for(lambda: f"rank 0 (process {pid} on another machine) has answered no ping" in pulse.look())
    wait_for(lambda: not pulse.look())
    ray.kill(actor)


def test_a_rank_of_another_machine_that_dies_while_nobody_calls_is_told_of() -> None:
    actor: Any = ray.remote(num_cpus=0.25, concurrency_groups={HEALTH: 1})(Computer).remote()
    _, pid = ray.get(actor.locate.remote())
    pulse = Pulse()
    pulse.follow([actor], [("another machine", pid)])
    for _ in range(3):
        assert not pulse.look()
        assert pulse.gone() == []
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not pulse.look() and pulse.gone() == [0])


class Group:
    """A trainer's process without ranks."""

    def process(self) -> tuple[str, int]:
        return ray.util.get_node_ip_address(), os.getpid()

    def status(self) -> TrainerStatus:
        return TrainerStatus("run/1/0/abc")

    def each(self, method: str, shares: Sequence[Sequence[Any]]) -> list[Any]:
        time.sleep(1.0)
        return list(shares[0])


@pytest.mark.parametrize("waits", [True, False])
def test_whoever_waits_outlives_a_trainer_that_is_stopped_for_a_while(waits: bool) -> None:
    actor: Any = ray.remote(num_cpus=0.25, max_concurrency=4)(Group).remote()
    _, pid = ray.get(actor.process.remote())
    handle = TrainerHandle(actor, "trainer", pid, waits)
    try:
        with ThreadPoolExecutor() as calling, stopped(pid):
            call = calling.submit(handle.each, "save", ["there"])
            time.sleep(2 * STOPPED_AFTER)
            assert call.done() != waits
            os.kill(pid, signal.SIGCONT)
            if waits:
                assert call.result() == ["there"]
            else:
                with pytest.raises(TrainerStoppedError, match=f"process {pid} is stopped"):
                    call.result()
    finally:
        ray.kill(actor)


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def wait_for(condition: Callable[[], bool], seconds: float = STOPPED_AFTER + 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_rank_that_fails_before_a_collective_ends_the_group_with_its_reason(ranks: Ranks) -> None:
    with pytest.raises(TrainerDeadError, match=r"rank 1 failed with ValueError: image 3 of prompt x"):
        ranks.call("add_but_fail", 1)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_failure_outside_collectives_leaves_the_group_in_step(ranks: Ranks, victim: int) -> None:
    with pytest.raises(CheckpointError, match="the disk is full"):
        ranks.call("fail_alone", victim)
    with pytest.raises(GradientError, match="not finite"):
        ranks.call("fail_together")
    assert ranks.call("add", 1.0) == [2.0, 2.0]


def test_ranks_that_cannot_be_placed_are_reported() -> None:
    actor: Any = ray.remote(num_cpus=64)(Adder)
    with pytest.raises(TrainerDeadError, match=r"2 of 2 ranks were not started within 2 s.*cpus_per_rank"):
        Ranks([actor.remote(rank, 2) for rank in range(2)]).locate(2.0)
