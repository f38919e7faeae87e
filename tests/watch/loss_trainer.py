"""A trainer whose loss is watched, as `torchrun` starts each of its ranks: `-m tests.watch.loss_trainer PLAN.json`.

The model is one parameter. What its loss is handed is what prime-rl, Miles or slime hand to theirs, in micro-batches;
every data-parallel rank has its share of a step's answers.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from tests.watch.run_steps import ANSWERS, Step, await_verdict, steps

MICRO = 4
STAND_INS = Path(__file__).parent / "stand_ins"
Micro = Callable[[Step, slice, torch.Tensor], torch.Tensor]
"""A micro-batch's loss, of a parameter that is zero."""


def prime_rl() -> Micro:
    """As prime-rl's `train.py` calls it: prompt and answer in one row, the mask over both."""
    sys.path.append(str(STAND_INS))  # behind a real prime-rl, where there is one
    from prime_rl.configs.trainer import CustomLossConfig
    from prime_rl.trainer.rl.loss import compute_loss, setup_rl_loss_fn

    chosen = setup_rl_loss_fn(CustomLossConfig(import_path="omni_rl.watch.prime_rl.loss", kwargs={"kl_tau": 1e-3}))
    prompt = (7, 0)

    def micro(step: Step, of: slice, parameter: torch.Tensor) -> torch.Tensor:
        pad = torch.nn.functional.pad
        train = [pad(torch.from_numpy(row), prompt, value=-6.0) + parameter for row in step.train[of]]
        masks = [pad(torch.from_numpy(row), prompt).bool() for row in step.mask[of]]
        loss, metrics = compute_loss(
            trainer_logprobs=train,
            inference_logprobs=[pad(torch.from_numpy(row), prompt) for row in step.rollout[of]],
            ref_logprobs=None,
            advantages=[torch.ones(len(row)) for row in train],
            loss_mask=masks,
            rl_weights=None,
            ce_weights=None,
            ref_kl_weights=None,
            rl_loss_fn=chosen,
            rl_scale=sum(int(mask.sum()) for mask in masks),
            ce_scale=1,
            ref_kl_scale=1,
        )
        assert {"omni_rl/token_mult_prob_error", "omni_rl/gen_kl_error"} < metrics.keys()
        found: torch.Tensor = loss
        return found

    return micro


@dataclass
class Group:
    """Miles's `GroupInfo`, as much as is looked at."""

    rank: int = 0
    size: int = 1


def miles() -> Micro:
    """As Miles's `policy_loss_function` calls it, which says where the process stands."""
    sys.modules["miles"] = ModuleType("miles")
    state = SimpleNamespace(
        intra_dp_cp=Group(dist.get_rank(), dist.get_world_size()), indep_dp=Group(), tp=Group(), cp=Group()
    )
    return _tis({"parallel_state": state, "max_seq_lens": None})


def slime() -> Micro:
    """As slime's `policy_loss_function` calls it, where Megatron says where the process stands. Two processes are one
    tensor-parallel group here: both have the same answers."""
    mpu = SimpleNamespace(
        get_data_parallel_rank=lambda with_context_parallel: 0,
        get_data_parallel_world_size=lambda with_context_parallel: 1,
        get_tensor_model_parallel_rank=dist.get_rank,
        get_context_parallel_world_size=lambda: 1,
    )
    core = ModuleType("megatron.core")
    core.mpu = mpu  # type: ignore[attr-defined]
    sys.modules |= {"megatron": ModuleType("megatron"), "megatron.core": core}
    return _tis({})


def _tis(others: dict[str, Any]) -> Micro:
    from omni_rl.watch.miles import tis

    args = SimpleNamespace(
        use_tis=False,
        bf16=True,
        fp16=False,
        hf_checkpoint="tiny",
        rollout_temperature=1.0,
        rollout_top_p=1.0,
        rollout_top_k=-1,
    )

    def micro(step: Step, of: slice, parameter: torch.Tensor) -> torch.Tensor:
        train, rollout, masks = (
            [torch.from_numpy(row) for row in rows[of]] for rows in (step.train, step.rollout, step.mask)
        )
        lengths = [len(row) for row in train]
        each = torch.cat(train) + parameter
        for _ in range(2):  # as where the loss is computed again for its gradient
            loss, modified, metrics = tis(
                args,
                pg_loss=each,
                train_log_probs=train,
                rollout_log_probs=rollout,
                loss_masks=masks,
                total_lengths=[length + 7 for length in lengths],
                response_lengths=lengths,
                **others,
            )
        assert loss is each
        assert modified is masks
        assert {name: value.shape for name, value in metrics.items()} == {
            "omni_rl/token_mult_prob_error": each.shape,
            "omni_rl/gen_kl_error": each.shape,
        }
        return loss.sum()

    return micro


def main() -> None:
    plan: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    dist.init_process_group("gloo")
    micro = {"prime-rl": prime_rl, "miles": miles, "slime": slime}[plan["framework"]]()
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizers = [torch.optim.SGD([parameter], lr=0.0) for _ in range(2)]
    share = ANSWERS if plan["framework"] == "slime" else ANSWERS // dist.get_world_size()
    begin = 0 if plan["framework"] == "slime" else dist.get_rank() * share
    for number, step in enumerate(steps(plan["fault"], plan["steps"])):
        for first in range(begin, begin + share, MICRO):
            torch.autograd.backward(micro(step, slice(first, first + MICRO), parameter))
        for optimizer in optimizers:  # the model's parameters may be those of several
            optimizer.step()
        if number == 0:
            await_verdict("run", 0)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
