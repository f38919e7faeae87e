"""The sync benchmark: its figures and goals from made-up measurements, and one real run of the small size."""

import json
from pathlib import Path
from typing import Any

import pytest

from omni_rl.errors import ConfigError
from omni_rl_bench.sync import SAVE_AND_RELOAD, bench_sync, goals, spread
from omni_rl_bench.weights import weights_of


def measured(stall: float, stall_p90: float, whole: float, proven: int = 10) -> dict[str, Any]:
    return {
        "roofline_copy": {"p50": 0.1, "p90": 0.2},
        "engine_step": 0.05,
        "stall": {"p50": stall, "p90": stall_p90},
        "whole_sync": {"p50": whole},
        SAVE_AND_RELOAD: {"whole": {"p50": 2.0}},
        "elements_proven": proven,
        "elements": 10,
    }


def test_goals_are_met_at_their_bars_and_missed_beyond() -> None:
    met = goals(1000, measured(stall=0.2999, stall_p90=0.5999, whole=0.399))
    assert [goal.met for goal in met] == [True, True, True, True]
    missed = goals(1000, measured(stall=0.31, stall_p90=0.61, whole=0.41, proven=9))
    assert [goal.met for goal in missed] == [False, False, False, False]


def test_a_spread_is_of_the_values_given() -> None:
    assert spread([0.3, 0.1, 0.2]) == {"n": 3, "min": 0.1, "p50": 0.2, "p90": 0.28, "max": 0.3}


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"7 MB: .* 50, 1000 MB"):
        weights_of(7, tmp_path / "weights")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_short_run_proves_every_element_and_reports_every_phase(tmp_path: Path) -> None:
    result = json.loads(bench_sync(tmp_path, [50], syncs=2).read_text())["results"]["50 MB"]
    assert 45e6 < result["bytes"] < 55e6
    assert result["elements_proven"] == result["elements"] > 20e6
    assert set(result["phases"]) >= {"prepare", "pause", "apply", "verify", "commit", "resume"}
    for rival in (SAVE_AND_RELOAD, f"{SAVE_AND_RELOAD}_in_memory", "ray_put_get_and_load_weights"):
        assert result[rival]["whole"]["min"] > 0
    assert result["stall"]["n"] == result["roofline_copy"]["n"] == 2
    assert result["stall"]["min"] > result["phases"]["apply"]["min"]
