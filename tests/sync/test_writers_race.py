"""Writers that race for one slab and are killed anywhere: whatever is sealed is whole."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from omni_rl.errors import SlabBusyError, SlabError
from omni_rl.sync.manifest import end
from omni_rl.sync.slab import Slab

from .conftest import ROOT, make_weights, places, same

pytestmark = pytest.mark.slow

WRITERS = 3
KILLS = 8
WRITER = """
import random, sys, time
from pathlib import Path
from omni_rl.errors import SlabBusyError
from omni_rl.sync.slab import Slab
from tests.sync.conftest import make_weights, write
slab = Slab.open(Path(sys.argv[1]))
chance = random.Random(int(sys.argv[2]))
while True:
    number = chance.randrange(100)
    try:
        write(slab, make_weights(number), number)
    except SlabBusyError:
        pass
    time.sleep(chance.random() / 500)
"""


def test_what_is_sealed_is_one_writers_whole_set(tmp_path: Path) -> None:
    slab = Slab.create(tmp_path / "slab-0.weights", end(places(make_weights())))
    seeds = iter(range(1000))

    def writer() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WRITER, slab.path, str(next(seeds))], cwd=ROOT)

    chance = random.Random(0)
    writers = [writer() for _ in range(WRITERS)]
    seen: Counter[str] = Counter()
    versions = set()
    try:
        for _ in range(KILLS):
            enough = seen["whole"] + chance.randrange(5, 25)
            while seen["whole"] < enough:
                assert all(process.poll() is None for process in writers)
                time.sleep(chance.random() / 200)  # readers keep writers out
                try:
                    with slab.reading():
                        manifest = slab.sealed()
                        assert slab.check() == ()
                        assert same(slab.tensors(), make_weights(manifest.version.number))
                        versions.add(str(manifest.version))
                        seen["whole"] += 1
                except SlabBusyError:
                    seen["busy"] += 1
                except SlabError:
                    seen["unsealed"] += 1
            victim = chance.randrange(WRITERS)
            os.kill(writers[victim].pid, signal.SIGKILL)
            writers[victim].wait()
            writers[victim] = writer()
    finally:
        for process in writers:
            process.kill()
            process.wait()
    assert len(versions) > KILLS
    assert seen["busy"] > 0
