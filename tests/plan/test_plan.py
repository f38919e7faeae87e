"""The cost model tells what was measured before it tells what was not, and its arithmetic is what a hand would do."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from omni_rl.cli import app
from omni_rl.errors import ConfigError
from omni_rl.plan.cases import TOLERANCE, cases
from omni_rl.plan.links import Links
from omni_rl.plan.measured import MeasuredConstants, StraightLine
from omni_rl.plan.model import PlanSettings, plan

BENCH = Path(__file__).parents[2] / "bench"
ROUND = Links("round numbers", gpus_per_host=8, pcie=10.0, network=5.0, device_flops=1000.0, device_memory=100)
INSTANT = StraightLine(0.0, 1e12)
FREE = MeasuredConstants({"prepare": INSTANT, "apply": INSTANT, "verify": INSTANT}, 0.0, 1e12, {}, {})


def costs(settings: PlanSettings, measured: MeasuredConstants = FREE) -> dict[str, tuple[float, float]]:
    return {cost.part: (cost.limit, cost.as_built) for cost in plan(settings, ROUND, measured).costs}


def test_the_committed_measurements_are_reproduced() -> None:
    found = cases(MeasuredConstants.read(BENCH))
    assert len(found) == 5
    for case in found:
        assert abs(case.error) <= TOLERANCE, f"{case.name}: {case.measured} s measured, {case.predicted} s predicted"


def test_a_line_goes_through_both_points() -> None:
    line = StraightLine.through((10, 3.0), (30, 5.0))
    assert (line.fixed, line.rate) == (2.0, 10.0)
    assert line.seconds(50) == 7.0


def test_one_host_by_hand() -> None:
    # 400 bytes of weights; four of eight GPUs train, each moves 100 bytes at 10 a second.
    found = costs(PlanSettings(total=200, active=20, gpus=8, tensor_parallel=2, tokens=100, utilisation=0.5))
    assert found["prepare: into the slab"][0] == pytest.approx(400 / (4 * 10))
    assert found["prepare: to other hosts"] == (0.0, 0.0)
    assert found["apply"][0] == found["verify"][0] == pytest.approx(200 / 10)
    assert found["scoring"] == pytest.approx((4000 / 4000, 4000 / 2000))


def test_many_hosts_by_hand() -> None:
    # Eight hosts, six of which sample: the source sends 400 bytes to each, at 5 a second.
    found = costs(PlanSettings(total=200, active=20, gpus=64, rollout_share=0.75))
    assert found["prepare: to other hosts"] == pytest.approx((400 / 5, 6 * 400 / 5))
    assert found["prepare: into the slab"][0] == pytest.approx(400 / (16 * 10) + 200 / 5)


def test_what_is_slower_decides() -> None:
    slow = MeasuredConstants({name: StraightLine(1.0, 1.0) for name in FREE.phases}, 0.0, 10.0, {}, {})
    found = costs(PlanSettings(total=200, active=20, gpus=8, tokens=100), slow)
    assert found["apply"] == pytest.approx((40, 401))
    assert found["check"] == (0.0, 10.0)


def test_memory_that_is_not_there_is_said() -> None:
    rooms = {room.what: room for room in plan(PlanSettings(total=200, active=20, gpus=8), ROUND, FREE).rooms}
    assert rooms["an engine, a GPU: weights"].needed == 400
    assert rooms["slabs, in a host's /dev/shm"].needed == 800
    done = CliRunner().invoke(app, ["plan", "--total", "1000", "--gpus", "8", "--bench", str(BENCH)])
    assert done.exit_code == 0
    assert done.stdout.count("NO ROOM") == 2


def test_the_command_prints_both_and_refuses_to_extrapolate_from_a_model_that_misses(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", "--bench", str(BENCH), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout).keys() == {"cases", "costs", "rooms"}
    for name in ("sync.json", "ingest.json"):
        (tmp_path / name).write_text((BENCH / name).read_text())
    broken = json.loads((tmp_path / "ingest.json").read_text())
    broken["results"]["seconds"]["step_min"] *= 2
    (tmp_path / "ingest.json").write_text(json.dumps(broken))
    done = CliRunner().invoke(app, ["plan", "--bench", str(tmp_path)])
    assert done.exit_code == 1
    assert "estimate for" not in done.stdout
    with pytest.raises(ConfigError, match=r"sync\.json has no results"):
        MeasuredConstants.read(tmp_path / "nowhere")
