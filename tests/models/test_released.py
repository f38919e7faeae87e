"""Which dtype each released tensor travels in."""

import pytest
import torch

from omni_rl.models.nemotron_omni.released import RELEASED
from tests.released import all_as_sent

LAYER = "language_model.backbone.layers.2.mixer"


@pytest.mark.parametrize("name", [f"{LAYER}.A_log", f"{LAYER}.gate.e_score_correction_bias"])
def test_decay_and_router_bias_stay_in_float32(name: str) -> None:
    value = torch.tensor([1.0 + 2**-20])
    sent = RELEASED.as_sent(name, value, torch.bfloat16)
    assert sent.dtype == torch.float32
    assert torch.equal(sent, value)
    assert RELEASED.as_sent(name, value.bfloat16(), torch.bfloat16).dtype == torch.float32


@pytest.mark.parametrize("name", [f"{LAYER}.D", f"{LAYER}.dt_bias", f"{LAYER}.gate.weight", "mlp1.1.weight"])
def test_everything_else_is_rounded_to_the_served_dtype(name: str) -> None:
    assert RELEASED.as_sent(name, torch.tensor([1.0]), torch.bfloat16).dtype == torch.bfloat16
    assert RELEASED.as_sent(name, torch.tensor([1.0]).bfloat16(), torch.float32).dtype == torch.float32


def test_integers_are_left_alone() -> None:
    sent = all_as_sent({"counter": torch.tensor(7), "weight": torch.tensor(7.0)}, torch.bfloat16)
    assert sent["counter"].dtype == torch.int64
    assert sent["weight"].dtype == torch.bfloat16
