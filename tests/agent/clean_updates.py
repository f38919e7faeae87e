"""Many clean updates of every model, none of which may ring: `python -m tests.agent.clean_updates OUT`."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from omni_rl_bench.result import Goal, write_result
from tests.agent.process import told, vllm_nursery

COUNTS = {
    ("qwen2", "float32"): 110,
    ("qwen2", "bfloat16"): 90,
    ("qwen3_moe", "float32"): 80,
    ("qwen3_moe", "bfloat16"): 80,
    ("qwen2_vl", "float32"): 80,
    ("omni", "bfloat16"): 60,
}
"""Updates by kind of model and the dtype of the engine; the trainer's is float32."""


def main() -> None:
    rows = []
    for (kind, dtype), count in COUNTS.items():
        with TemporaryDirectory() as directory, vllm_nursery() as nursery:
            answers = told(nursery, Path(directory), "tests.agent.rig", kind, dtype, str(count), FAULTS="0")
        rows.append(
            {
                "model": kind,
                "engine": dtype,
                "updates": len(answers),
                "parts_equal": min(one["equal"] for one in answers.values()),
                "parts_different": max(one["different"] for one in answers.values()),
                "parts_not_comparable": max(one["not_comparable"] for one in answers.values()),
                "alarms": sum(len(one["findings"]) for one in answers.values()),
            }
        )
    goals = [
        Goal("clean updates", sum(int(row["updates"]) for row in rows), 500, "higher"),
        Goal("alarms", sum(int(row["alarms"]) for row in rows), 0, "lower"),
        Goal("parts not comparable", sum(int(row["parts_not_comparable"]) for row in rows), 0, "lower"),
    ]
    command = "python -m tests.agent.clean_updates bench"
    write_result(Path(sys.argv[1]) / "updates.json", command, goals, {"models": rows})


if __name__ == "__main__":
    main()
