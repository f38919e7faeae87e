"""What is finished is not run again, and goals are those of the worst seed."""

import json
from pathlib import Path

import pytest

from omni_rl_bench.learning.cases import CASES
from omni_rl_bench.learning.command import bench_learning


def write(parts: Path, case: str, seed: int, first: float, last: float, seconds: float = 100.0, bad: int = 0) -> None:
    content = {"held_out_reward": {"0": first, "20": last}, "seconds": seconds, "steps_not_ok": bad}
    (parts / f"{case}-{seed}.json").write_text(json.dumps(content))
    (parts / f"{case}-{seed}.svg").write_text(f"<svg>{case}-{seed}</svg>")


def test_finished_runs_are_judged_by_the_worst_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for case in CASES:
        last = 0.45 if case.still else 0.9
        write(tmp_path, case.name, 0, 0.47, last)
        write(tmp_path, case.name, 1, 0.47, last)
    write(tmp_path, "grpo", 1, 0.47, 0.8, seconds=700, bad=2)
    write(tmp_path, "grpo-shuffled", 1, 0.47, 0.41)
    path = bench_learning(tmp_path / "out", [0, 1], [], tmp_path, print)
    goals = {goal["name"]: (goal["value"], goal["met"]) for goal in json.loads(path.read_text())["goals"]}
    assert goals["grpo: held-out reward, worst seed"] == (0.8, False)
    assert goals["grpo: seconds, slowest seed"] == (700, False)
    assert goals["grpo: steps not ok"] == (2, False)
    assert goals["ppo: held-out reward, worst seed"] == (0.9, True)
    assert goals["grpo-rate-0: held-out reward moved by"][1]
    assert not goals["grpo-shuffled: held-out reward moved by"][1]
    assert goals["ppo: steps not ok"] == (0, True)
    assert not [name for name in goals if name.startswith("mismatch")]
    assert (tmp_path / "docs/pictures/learning.svg").read_text() == "<svg>grpo-0</svg>"
