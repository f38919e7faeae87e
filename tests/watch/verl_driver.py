"""The driver of verl runs, in the environment of the released verl: `python -m tests.watch.verl_driver PLAN.json`.

Everything is verl's own but what needs a GPU or Ray: its configuration, its batches, the V1 trainer's methods and its
tracking. In place of the engine and of the trainer's workers stand made-up policies: what the engine's sampled is put
into the queue as verl's agent loop does, and two data-parallel ranks put their half of the trainer's logprobs each.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from omni_rl import torchvision_schemas

torchvision_schemas.install()  # before anything imports transformers

import numpy as np  # noqa: E402
import torch  # noqa: E402
from hydra import compose, initialize_config_module  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from transfer_queue import KVBatchMeta  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.ppo.ray_trainer import RayPPOTrainer  # noqa: E402
from verl.trainer.ppo.v1 import trainer_base  # noqa: E402
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402
from verl.utils.debug import metrics  # noqa: E402
from verl.utils.tensordict_utils import list_of_dict_to_tensordict  # noqa: E402
from verl.utils.tracking import Tracking  # noqa: E402

from tests.watch.run_steps import Step, await_verdict, steps  # noqa: E402

RANKS = 2
PROMPT = 5


class Queue:
    """The part of TransferQueue that the trainer's methods use, in this process."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Any]] = {}
        self._tags: dict[str, dict[str, Any]] = {}

    def kv_batch_put(
        self, keys: list[str], partition_id: str, fields: TensorDict, tags: list[dict[str, Any]] | None = None
    ) -> KVBatchMeta:
        for name in fields.keys():  # noqa: SIM118
            column = fields.get(name)
            values = column.unbind() if isinstance(column, torch.Tensor) else column.tolist()
            for key, value in zip(keys, values, strict=True):
                self._rows.setdefault(key, {})[name] = value
        self._tags |= dict(zip(keys, tags, strict=True)) if tags is not None else {}
        kept = [self._tags[key] for key in keys]
        return KVBatchMeta(keys=keys, tags=kept, partition_id=partition_id, fields=list(self._rows[keys[0]]))

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        for key in keys:
            del self._rows[key], self._tags[key]

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        rows = [self._rows[key] for key in keys]
        return list_of_dict_to_tensordict([{name: row[name] for name in select_fields if name in row} for row in rows])


tq = trainer_base.tq = Queue()


def jagged(rows: Any) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)


def queued(step: Step, number: int, logprobs: bool) -> KVBatchMeta:
    """The step's answers in the queue, as verl's agent loop leaves them; with the engine's logprobs if it gives any."""
    keys = [f"{number}-{n // 8}_{n % 8}_0" for n in range(len(step.ids))]
    versions = dict.fromkeys(("min_global_steps", "max_global_steps"), number - 1 - step.behind)
    rows = [
        {
            "prompts": torch.arange(PROMPT),
            "responses": torch.from_numpy(ids),
            "response_mask": torch.from_numpy(mask),
            **({"rollout_log_probs": torch.from_numpy(rollout)} if logprobs else {}),
            "rm_scores": torch.nn.functional.pad(torch.ones(1), (len(ids) - 1, 0)),
            "uid": key.split("_")[0],
        }
        for key, ids, mask, rollout in zip(keys, step.ids, step.mask, step.rollout, strict=True)
    ]
    tags = [{"status": "success", "seq_len": PROMPT + len(row), **versions} for row in step.ids]
    tq.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(rows), tags=tags)
    return KVBatchMeta(keys=keys, tags=tags, partition_id="train", extra_info={})


def positions(train: Any) -> torch.Tensor:
    """What the model gives: a number a position, of the token after it, prompt and answer in one row."""
    return jagged([torch.nn.functional.pad(torch.as_tensor(row), (PROMPT - 1, 1)) for row in train])


class Workers:
    """Two data-parallel ranks of the trainer: each scores its half of a batch's answers, in the dispatched order."""

    def __init__(self) -> None:
        self.step: Step | None = None

    def compute_log_prob(self, batch: KVBatchMeta) -> KVBatchMeta:
        assert self.step is not None
        half = len(batch.keys) // RANKS
        for rank in range(RANKS):
            of = slice(rank * half, (rank + 1) * half)
            scored = positions(self.step.train[of])
            fields = TensorDict({"log_probs": scored, "entropy": scored * -1.0}, batch_size=half)
            tq.kv_batch_put(keys=batch.keys[of], partition_id=batch.partition_id, fields=fields)
        return batch


def configuration(changes: list[str]) -> Any:
    """verl's own default configuration, with an engine that gives its logprobs."""
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", ["trainer.project_name=tests", "algorithm.adv_estimator=grpo", *changes])
    OmegaConf.resolve(config)
    return config


def older(step: Step, number: int, config: Any) -> dict[str, Any]:
    """A step of the trainer before V1, as much of its `fit` as scores the answers."""
    count, width = len(step.ids), max(map(len, step.ids))

    def padded(rows: Any) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(torch.from_numpy(row), (0, width - len(row))) for row in rows])

    given = padded([np.ones_like(row) for row in step.ids])
    prompts = torch.arange(PROMPT).repeat(count, 1)
    attention = torch.cat([torch.ones_like(prompts), given], 1)
    batch = DataProto.from_dict(
        {
            "prompts": prompts,
            "responses": padded(step.ids),
            "input_ids": torch.cat([prompts, padded(step.ids)], 1),
            "attention_mask": attention,
            "position_ids": attention.cumsum(1) - 1,
            "response_mask": padded(step.mask),
            "rollout_log_probs": padded(step.rollout),
        },
        {"uid": np.array([str(n // 8) for n in range(count)], dtype=object)},
    )
    trainer = RayPPOTrainer.__new__(RayPPOTrainer)
    trainer.config, trainer.global_steps, trainer.total_training_steps = config, number, number
    trainer.actor_rollout_wg = OlderWorkers(step)
    scored, _ = trainer._compute_old_log_prob(batch)
    found: dict[str, Any] = metrics.calculate_debug_metrics(batch.union(scored))
    return found


class OlderWorkers:
    """Two ranks of the older trainer, whose answers come back together."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def compute_log_prob(self, batch: TensorDict) -> TensorDict:
        scored = positions(self._step.train)
        return tu.get_tensordict({"log_probs": scored, "entropy": scored * -1.0}, {"metrics": {"mfu": 0.0}})


def train(name: str, fault: str, changes: list[str], first: int, count: int, v1: bool = True) -> list[list[float]]:
    """A run; returns each step's weights in the queue, where there are any."""
    config = configuration([f"trainer.experiment_name={name}", *changes])
    trainer = PPOTrainerSync.__new__(PPOTrainerSync)  # its __init__ wants GPUs
    trainer.config = config
    trainer.actor_rollout_wg = workers = Workers()
    os.environ["VERL_FILE_LOGGER_PATH"] = f"{name}.jsonl"
    everything = OmegaConf.to_container(config, resolve=True)
    trainer.logger = Tracking(config.trainer.project_name, name, default_backend=["file"], config=everything)
    logprobs = config.actor_rollout_ref.rollout.calculate_log_probs
    weights = []
    for number, step in enumerate(steps(fault, count), first):
        trainer.global_steps, trainer.total_training_steps = number, first + count - 1
        workers.step = step
        found: dict[str, Any] = {}
        if not v1:
            found = older(step, number, config)
            await_verdict(f"{config.trainer.project_name}.{name}", number)
            trainer.logger.log(found, step=number)
            continue
        batch = trainer._compute_old_log_prob(queued(step, number, logprobs), found)
        batch = trainer._compute_advantage(batch, found)
        if "rollout_is_weights" in batch.fields:
            put = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["rollout_is_weights"])
            weights.append(put["rollout_is_weights"].values().tolist())
        if logprobs:
            await_verdict(f"{config.trainer.project_name}.{name}", number)
        tq.kv_clear(keys=batch.keys, partition_id="train")
        trainer.logger.log(found, step=number)
    trainer.logger.finish()
    return weights


if __name__ == "__main__":
    runs: list[dict[str, Any]] = json.loads(Path(sys.argv[1]).read_text())
    Path("weights.json").write_text(json.dumps({run["name"]: train(**run) for run in runs}))
