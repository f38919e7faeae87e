"""Losses and gradients against TRL's own, which `trl_values.py` has written down."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from omni_rl.models.packed import PackedScores
from omni_rl.train.settings import Objective
from omni_rl.train.shares import Aggregation, shares
from omni_rl.train.step import pack_loss
from omni_rl.train.targets import Targets

from .trl_values import LENGTHS, VALUES, arrays

RECORDED: dict[str, dict[str, Any]] = json.loads(VALUES.read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_loss_and_gradient_are_trls(name: str) -> None:
    case, given = RECORDED[name], arrays()
    aggregation: Aggregation = "sequence" if case["loss_type"] == "grpo" else "token"
    parts = shares(LENGTHS, [True] * len(LENGTHS), aggregation)
    targets = []
    for row, (length, part) in enumerate(zip(LENGTHS, parts, strict=True)):
        own = {name: values[row, :length].double().numpy() for name, values in given.items() if name != "advantages"}
        targets.append(
            Targets(
                advantages=np.full(length, given["advantages"][row].item()),
                shares=part,
                weights=own["weights"] if case.get("use_vllm") else np.ones(length),
                old=own["old"],
                reference=own["reference"],
            )
        )
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    logprobs = given["new"][mask].requires_grad_()
    loss, _ = pack_loss(PackedScores(logprobs, None, None), targets, Objective(kl=case.get("beta", 0.0)), None)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    assert logprobs.grad is not None
    assert torch.allclose(logprobs.grad, torch.tensor(case["gradient"])[mask], atol=1e-6)
    assert logprobs.grad.abs().max() > 0.01
