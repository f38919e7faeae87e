"""How the coordinator is started from a checkout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MANY = ["one.json", "two.json"]


@pytest.mark.parametrize("module", ["omni_rl_services.coordinator", "services.coordinator"])
def test_both_names_of_the_coordinator_answer_and_the_old_one_says_so(module: str) -> None:
    started = subprocess.run([sys.executable, "-m", module, *MANY], cwd=ROOT, capture_output=True, text=True)
    assert started.returncode == 2
    assert "usage: python -m omni_rl_services.coordinator" in started.stderr
    assert ("deprecated" in started.stderr) == (module == "services.coordinator")


def test_what_is_there_at_the_start_is_not_collected_again_and_again(tmp_path: Path) -> None:
    """A full collection of the modules' objects is a tenth of a second in which nobody is answered."""
    program = """
import gc, os, signal, sys
from omni_rl_services.coordinator.server import serve
from omni_rl_services.coordinator.settings import CoordinatorSettings

def begun(address):
    print(gc.get_freeze_count(), len(gc.get_objects()), flush=True)
    os.kill(os.getpid(), signal.SIGINT)

serve(CoordinatorSettings.model_validate_json(sys.argv[1]), on_start=begun)
"""
    settings = {"port": 0, "ledger": f"sqlite:///{tmp_path}/ledger.db", "media": {"directory": str(tmp_path / "media")}}
    command = [sys.executable, "-c", program, json.dumps(settings)]
    frozen, others = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert frozen > 50_000
    assert others < frozen / 5


def test_memory_of_long_bodies_goes_back_to_the_system_between_short_ones_that_stay() -> None:
    program = """
import asyncio
from pathlib import Path
from omni_rl.heap import share_heaps
from omni_rl_services.coordinator import allocator

SHORT = 40_000

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

async def trimmed():
    allocator.TRIM_SECONDS = 0.01
    trimming = asyncio.create_task(allocator.keep_trimmed())
    await asyncio.sleep(0.5)
    trimming.cancel()

share_heaps()
first = b"x" * (30 << 20)  # glibc takes such lengths for usual from here on
del first
# What lies free already would take the short ones, apart from the long.
fill = [b"x" * SHORT for _ in range(2000)]
before, stay, bodies = resident(), [], []
for _ in range(100):
    bodies.append(b"x" * (1 << 20))
    stay.append(b"x" * SHORT)
del bodies
held = resident() - before
asyncio.run(trimmed())
print(held, resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    held, left = map(int, done.stdout.split())
    assert held > 20 << 20
    assert left < 10 << 20
