"""Makes trl_values.json: GRPO losses and gradients of TRL's own trainer, on arrays that a seed fixes.

    pip install --no-deps --target TRL trl==1.16.0 accelerate datasets dill multiprocess xxhash pandas
    PYTHONPATH=TRL python tests/train/trl_values.py

TRL's dependencies are as many as this project's, so that its values are kept instead.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

VALUES = Path(__file__).with_suffix(".json")
LENGTHS = (3, 7, 1, 5)
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "grpo with a reference": {"loss_type": "grpo", "beta": 0.1},
    "dapo, corrected": {"loss_type": "dapo", "use_vllm": True, "vllm_importance_sampling_correction": True},
    "dapo, corrected, with a reference": {
        "loss_type": "dapo",
        "use_vllm": True,
        "vllm_importance_sampling_correction": True,
        "beta": 0.05,
    },
}


def arrays() -> dict[str, torch.Tensor]:
    """float32 [answers, longest], padded with 0; advantages [answers]."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), max(LENGTHS))
    new = -torch.rand(shape, generator=generator) * 3
    return {
        "new": new,
        "old": new + torch.randn(shape, generator=generator) * 0.3,
        "reference": new + torch.randn(shape, generator=generator) * 0.3,
        "weights": torch.rand(shape, generator=generator) * 2,
        "advantages": torch.randn(len(LENGTHS), generator=generator),
    }


class _Alone:
    """accelerate's view of one process: what is gathered or reduced is what it was."""

    num_processes = 1

    def __getattr__(self, name: str) -> Any:
        return lambda value, **_: value


def trl_loss(case: dict[str, Any]) -> dict[str, Any]:
    from omni_rl import torchvision_schemas

    torchvision_schemas.install()  # without it, torchvision does not import beside the CPU build of torch
    from trl import GRPOTrainer

    given = arrays()
    new = given["new"].clone().requires_grad_()
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.zeros_like(mask)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros_like(new), None),
        accelerator=_Alone(),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.28,
        current_gradient_accumulation_steps=1,
        max_completion_length=max(LENGTHS),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        **{"beta": 0.0, "use_vllm": False, "vllm_importance_sampling_correction": False, **case},
    )
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": given["advantages"],
        "old_per_token_logps": given["old"],
        "ref_per_token_logps": given["reference"],
        "importance_sampling_ratio": given["weights"],
        "num_items_in_batch": mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    assert new.grad is not None
    return {**case, "loss": loss.item(), "gradient": new.grad.tolist()}


if __name__ == "__main__":
    VALUES.write_text(json.dumps({name: trl_loss(case) for name, case in CASES.items()}, indent=1) + "\n")
