"""How much memory clients can make the coordinator take: as much as it was given, and a clear word beyond."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from omni_rl_services.coordinator.memory import Room, available, budget
from omni_rl_services.coordinator.recent import RecentParts
from omni_rl_services.coordinator.settings import Bounds

from omni_rl.api.runs import RunBody
from omni_rl.client import AsyncClient, Client
from omni_rl.errors import TooLargeError
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import StepKey
from omni_rl.watch.table import step_rows
from tests.services.live import live

MIB = 1 << 20
LEAST = 64 * MIB


def described(run: str) -> RunBody:
    return RunBody(run=run, model="m", dtype="bfloat16", framework="mine")


def part(tokens: int, *, answers: int = 16, off: float = 0.0, seed: int = 0) -> StepRecords:
    rng = np.random.default_rng(seed)
    train = -rng.exponential(1, (answers, tokens // answers))
    return StepRecords.of(
        step_rows({"rollout_logprobs": train - off * rng.random(train.shape), "train_logprobs": train})
    )


def test_a_step_with_more_tokens_than_can_be_judged_is_refused_when_it_is_posted(tmp_path: Path) -> None:
    fits = budget(LEAST).step_tokens // 2
    with live(tmp_path, bounds=Bounds(memory=LEAST)) as url, Client(url) as client:
        client.create_run(described("math"))
        first = part(fits)
        client.put_part("math", 1, 0, 0, first)
        with pytest.raises(TooLargeError, match=r"bounds\.memory = \d+ MiB"):
            client.put_part("math", 1, 0, 1, part(2 * fits, seed=1))
        client.put_part("math", 1, 0, 0, first)
        client.put_part("math", 1, 0, 1, part(fits - 16, seed=1))
        assert client.seal("math", 1, 0, parts=2).verdict.severity == "ok"


def test_texts_count_for_what_they_take(tmp_path: Path) -> None:
    """The parts have few tokens beside megabytes of prompts: each fits, and not all of them together."""
    with live(tmp_path, bounds=Bounds(memory=LEAST)) as url, Client(url) as client:
        client.create_run(described("math"))
        texts = [{"sample": f"p{n}/0", "prompt_text": "x" * (MIB - 1)} for n in range(10)]
        values = {"rollout_logprobs": [-1.0], "train_logprobs": [-1.0]}
        client.put_part("math", 1, 0, 0, StepRecords.of([{**text, **values} for text in texts]))
        with pytest.raises(TooLargeError, match=r"20 MiB of records.*bounds\.memory = \d+ MiB"):
            client.put_part("math", 1, 0, 1, StepRecords.of([{**text, **values, "reward": 1.0} for text in texts]))
        assert client.seal("math", 1, 0, parts=1).verdict.samples == 10


def test_the_budget_is_that_of_the_control_group(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    machine = available([limit])
    limit.write_text("max\n")
    assert available([limit]) == machine
    limit.write_text(f"{512 * MIB}\n")
    assert available([tmp_path / "none", limit]) == 512 * MIB


def test_the_budget_is_divided_as_its_users_take_it() -> None:
    memory = budget(1600 * MIB)
    assert (memory.bodies, memory.recent, memory.updates) == (200 * MIB, 100 * MIB, 100 * MIB)
    assert (memory.judging, memory.step_tokens) == (800 * MIB, 800 * MIB // 128)
    assert memory.to_judge(1000, 20_000) == 128_000, "their logprobs are in it"
    assert memory.to_judge(1000, 100) == 128_000
    assert memory.to_judge(1000, 20_500) == 128_000 + 2 * 500


def test_small_parts_count_for_what_they_take() -> None:
    """An answer of a token is a few hundred bytes of values and a table of thirty columns."""
    recent = RecentParts(MIB)
    small = StepRecords.from_arrow(part(16).to_arrow())
    for step in range(1000):
        recent.put(StepKey("math", 1, step), 0, small)
    kept = [step for step in range(1000) if recent.of(StepKey("math", 1, step))]
    assert kept == list(range(kept[0], 1000))
    assert 1 <= len(kept) <= 32


def test_a_room_is_waited_for_while_a_caller_finds_too_few_bytes() -> None:
    async def looks() -> list[bool]:
        room = Room(10)

        async def take(size: int) -> None:
            async with room.taken(size):
                pass

        async with room.taken(6):
            seen = [room.is_waited_for]
            waiting = asyncio.create_task(take(5))
            await asyncio.sleep(0)
            seen.append(room.is_waited_for)
            await take(4)
            assert not waiting.done()
        await waiting
        return [*seen, room.is_waited_for]

    assert asyncio.run(looks()) == [False, True, False]


@pytest.mark.slow
def test_the_largest_steps_of_many_clients_stay_within_the_budget(tmp_path: Path) -> None:
    """The process as a whole stays within it, too: the program alone, and what it was given."""
    memory = 768 * MIB
    address, settings = tmp_path / "address", tmp_path / "settings.json"
    settings.write_text(
        f'{{"ledger": "sqlite:///{tmp_path}/ledger.db", "media": {{"directory": "{tmp_path}/media"}}, "port": 0, '
        f'"address_file": "{address}", "bounds": {{"memory": {memory}}}}}'
    )
    command = [sys.executable, "-m", "omni_rl_services.coordinator", str(settings)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            while not address.exists():
                assert server.poll() is None
                time.sleep(0.05)
            alone = peak(server.pid)
            parts = [part(budget(memory).step_tokens // 4, answers=256, off=1.0, seed=n) for n in range(4)]
            asyncio.run(crowd(address.read_text(), parts))
            assert server.poll() is None
            assert peak(server.pid) <= alone + memory
        finally:
            server.kill()


def peak(pid: int) -> int:
    """Bytes that a process had in memory at most."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) << 10


async def crowd(url: str, parts: list[StepRecords]) -> None:
    """Runs that post and seal at once."""

    async def one(run: str) -> None:
        async with AsyncClient(url, timeout=300) as client:
            await client.create_run(described(run))
            for step in range(2):
                await asyncio.gather(*(client.put_part(run, 1, step, rank, one) for rank, one in enumerate(parts)))
                assert (await client.seal(run, 1, step, parts=len(parts))).verdict.severity == "pause"

    await asyncio.gather(*(one(f"run-{n}") for n in range(4)))
