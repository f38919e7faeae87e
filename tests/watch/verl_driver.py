"""The driver of a verl run, in the environment of the released verl: `python -m tests.watch.verl_driver PLAN.json`.

Everything is verl's own but what needs a GPU: its configuration, the V1 trainer's methods, TransferQueue on Ray, and
its tracking. In place of the engine and of the trainer's workers stand made-up policies: what the engine's sampled is
put into the queue as verl's agent loop does, and two data-parallel ranks put their half of the trainer's logprobs each.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from omni_rl import torchvision_schemas

torchvision_schemas.install()  # before anything imports transformers

import ray  # noqa: E402
import torch  # noqa: E402
import transfer_queue as tq  # noqa: E402
import verl  # noqa: E402
from hydra import compose, initialize_config_module  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from transfer_queue import KVBatchMeta  # noqa: E402
from verl.trainer.ppo.v1 import trainer_base  # noqa: E402
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync  # noqa: E402
from verl.utils.tracking import Tracking  # noqa: E402

from tests.watch.run_steps import Step, await_verdict, steps  # noqa: E402

RANKS = 2
PROMPT = 5


def jagged(rows: Any) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


def queued(step: Step, number: int) -> KVBatchMeta:
    """The step's answers in the queue, as verl's agent loop leaves them."""
    keys = [f"{number}-{n // 8}_{n % 8}_0" for n in range(len(step.ids))]
    versions = dict.fromkeys(("min_global_steps", "max_global_steps"), number - 1 - step.behind)
    fields = TensorDict(
        {
            "prompts": jagged([torch.arange(PROMPT)] * len(keys)),
            "responses": jagged(step.ids),
            "response_mask": jagged(step.mask),
            "rollout_log_probs": jagged(step.rollout),
            "rm_scores": jagged([torch.nn.functional.pad(torch.ones(1), (len(row) - 1, 0)) for row in step.ids]),
            "uid": [key.split("_")[0] for key in keys],
        },
        batch_size=len(keys),
    )
    tags = [{"status": "success", "seq_len": PROMPT + len(row), **versions} for row in step.ids]
    tq.kv_batch_put(keys=keys, partition_id="train", fields=fields, tags=tags)
    return KVBatchMeta(keys=keys, tags=tags, partition_id="train", extra_info={})


class Workers:
    """Two data-parallel ranks of the trainer: each scores its half of a batch's answers, in the dispatched order."""

    def __init__(self) -> None:
        self.step: Step | None = None

    def compute_log_prob(self, batch: KVBatchMeta) -> KVBatchMeta:
        assert self.step is not None
        half = len(batch.keys) // RANKS
        for rank in range(RANKS):
            of = slice(rank * half, (rank + 1) * half)
            # The model gives a number a position, of the token after it; prompt and answer in one row.
            scored = jagged([torch.nn.functional.pad(torch.as_tensor(r), (PROMPT - 1, 1)) for r in self.step.train[of]])
            fields = TensorDict({"log_probs": scored, "entropy": scored * -1.0}, batch_size=half)
            tq.kv_batch_put(keys=batch.keys[of], partition_id=batch.partition_id, fields=fields)
        return batch


def configuration(changes: list[str]) -> Any:
    """verl's own default configuration, with an engine that gives its logprobs."""
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", ["data.train_batch_size=8", "algorithm.adv_estimator=grpo", *changes])
    OmegaConf.resolve(config)
    return config


def main(plan: dict[str, Any]) -> None:
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    config = configuration(plan["config"])
    tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    trainer = PPOTrainerSync.__new__(PPOTrainerSync)  # its __init__ wants GPUs
    trainer.config = config
    trainer.actor_rollout_wg = workers = Workers()
    trainer.logger = Tracking(
        "tests", plan["run"], default_backend=["file"], config=OmegaConf.to_container(config, resolve=True)
    )
    weights = []
    for number, step in enumerate(steps(plan["fault"], plan["steps"]), plan["first"]):
        trainer.global_steps = number
        workers.step = step
        metrics: dict[str, Any] = {}
        batch = queued(step, number)
        batch = trainer._compute_old_log_prob(batch, metrics)
        batch = trainer._compute_advantage(batch, metrics)
        if "rollout_is_weights" in (batch.fields or []):
            found = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["rollout_is_weights"])
            weights.append(found["rollout_is_weights"].values().tolist())
        if plan["watched"]:
            await_verdict(plan["run"], number)
        trainer.logger.log(metrics, step=number)
        tq.kv_clear(keys=batch.keys, partition_id="train")
    trainer.logger.finish()
    Path(plan["out"]).write_text(json.dumps({"weights": weights, "verl": verl.__version__}))
    tq.close()
    ray.shutdown()


if __name__ == "__main__":
    assert os.environ.get("VERL_FILE_LOGGER_PATH")
    assert trainer_base.calculate_debug_metrics is not None
    main(json.loads(Path(sys.argv[1]).read_text()))
