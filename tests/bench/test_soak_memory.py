"""Whose memory a soak counts, and over which time."""

import subprocess
import sys
import time

from omni_rl.service.state import MARK
from omni_rl_bench.soak.memory import Growth, Look, growth, own_mib, processes


def test_growth_is_that_of_processes_that_lived_all_the_time() -> None:
    looks = []
    for at in range(0, 180, 5):
        sizes = {("engine", 1): 100.0 + (20.0 if at >= 150 else 0.0), ("engine", 2): 300.0}
        if at < 120:
            sizes["bridge", 3] = 50.0 + at
        if at >= 120:  # its successor warms up
            sizes["bridge", 4] = 1.0 + at
        looks.append(Look(float(at), sizes))
    assert growth(looks, 90, 180) == {"engine": Growth(100.0, 120.0, (100.0,))}
    assert growth(looks, 90, 180)["engine"].ratio == 1.2
    assert growth(looks, 0, 90)["bridge"] == Growth(62.5, 122.5, (77.5,))


def test_memory_is_counted_by_kind_and_only_of_the_service_itself() -> None:
    code = "import time; kept = bytearray(64 * 2**20); time.sleep(60)  # omni_rl_services.coordinator"
    mine = subprocess.Popen([sys.executable, "-c", code], env={MARK: "soaked"})
    others = subprocess.Popen([sys.executable, "-c", code], env={MARK: "another"})
    try:
        deadline = time.monotonic() + 20
        while own_mib(mine.pid) < 64 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes("soaked") == {"coordinator": [mine.pid]}
        assert 64 <= own_mib(mine.pid) < 100
    finally:
        mine.kill()
        others.kill()
        mine.wait()
        others.wait()
    assert own_mib(mine.pid) == 0.0
