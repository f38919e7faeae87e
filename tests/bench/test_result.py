"""Result files: one shape, and goals that say by themselves whether they are met."""

import json
from pathlib import Path

import pytest

from omni_rl_bench.result import Goal, goal_lines, write_result

GOALS = [Goal("fast", 2.5, 2.0, "higher"), Goal("slow", 1.5, 2.0, "higher"), Goal("small", 1.0, 1.0, "lower")]


@pytest.mark.parametrize(
    ("value", "better", "met"),
    [(2.0, "higher", True), (1.99, "higher", False), (2.0, "lower", True), (2.01, "lower", False)],
)
def test_a_bar_is_met_when_it_is_reached(value: float, better: str, met: bool) -> None:
    assert Goal("g", value, 2.0, better).met is met  # type: ignore[arg-type]
    assert not Goal("g", float("nan"), 2.0, better).met  # type: ignore[arg-type]


def test_a_result_file_and_the_table_of_its_goals(tmp_path: Path) -> None:
    path = write_result(tmp_path / "out" / "speed.json", "omni-rl bench speed", GOALS, {"figures": [1, 2]})
    content = json.loads(path.read_text())
    assert content.keys() == {"schema", "command", "commit", "machine", "goals", "results"}
    assert content["schema"] == 1
    assert content["goals"][0] == {"name": "fast", "value": 2.5, "bar": 2.0, "better": "higher", "met": True}
    assert [goal["met"] for goal in content["goals"]] == [True, False, True]
    (path.parent / "older.json").write_text("{}")
    lines = [line.split() for line in goal_lines(path.parent)]
    assert lines[0] == ["benchmark", "goal", "value", "bar", "met"]
    assert lines[1:] == [
        ["speed", "fast", "2.5", ">=", "2", "yes"],
        ["speed", "slow", "1.5", ">=", "2", "NO"],
        ["speed", "small", "1", "<=", "1", "yes"],
    ]
