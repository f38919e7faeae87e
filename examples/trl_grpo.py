"""GRPO with TRL, judged step by step: two lines more than without.

    omni-rl serve                                                     # prints what to export
    python examples/trl_grpo.py Qwen/Qwen2.5-0.5B-Instruct

It needs a GPU, and TRL, vLLM and datasets, which are not ours to install: `pip install trl[vllm]`.
"""

import argparse

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from omni_rl.watch.trl import watch


def brevity(completion_ids: list[list[int]], **_: object) -> list[float]:
    """Shorter answers earn more."""
    return [-float(len(ids)) for ids in completion_ids]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", help="A name on the hub, or a directory.")
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--output", default="runs/trl-grpo")
    chosen = options.parse_args()
    trainer = GRPOTrainer(
        model=chosen.model,
        args=GRPOConfig(
            output_dir=chosen.output,
            use_vllm=True,
            vllm_mode="colocate",
            vllm_gpu_memory_utilization=0.3,
            max_steps=chosen.steps,
            max_completion_length=64,
            logging_steps=1,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": f"What is {n} plus {n + 1}?"} for n in range(256)]),
        reward_funcs=brevity,
    )
    watch(trainer)
    trainer.train()


if __name__ == "__main__":
    main()
