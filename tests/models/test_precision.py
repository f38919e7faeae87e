"""What every engine holds in float32 stays so in a model of any dtype; autocast trains every kind of prompt."""

from collections.abc import Callable

import pytest
import torch

from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.language.mamba import StateDecay
from omni_rl.models.nemotron_omni.language.moe import Router
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.packed import PackedMedia

from .conftest import randomise

Model = NemotronOmniForConditionalGeneration
CASTS: dict[str, Callable[[Model], torch.nn.Module]] = {
    "to": lambda model: model.to(torch.bfloat16),
    "to a device and dtype": lambda model: model.to("cpu", torch.float16),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "there and back": lambda model: model.bfloat16().float(),
    "a part": lambda model: model.language_model.to(torch.bfloat16),
}


def _exact(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: m.A_log.detach() for name, m in model.named_modules() if isinstance(m, StateDecay)}
    return found | {name: m.e_score_correction_bias for name, m in model.named_modules() if isinstance(m, Router)}


@pytest.mark.parametrize("cast", CASTS)
def test_no_conversion_rounds_the_routers_bias_or_the_decay(config: NemotronOmniConfig, cast: str) -> None:
    model = Model(config)
    randomise(model)
    before = {name: tensor.clone() for name, tensor in _exact(model).items()}
    CASTS[cast](model)
    assert len(before) == 4
    for name, tensor in _exact(model).items():
        assert tensor.dtype == torch.float32, name
        assert torch.equal(tensor, before[name]), name
    head = model.get_output_embeddings().weight
    assert (head.dtype == torch.float32) == (cast == "there and back")


def test_a_model_that_begins_in_bfloat16_has_them_unrounded(config: NemotronOmniConfig) -> None:
    torch.manual_seed(5)
    whole = Model.from_config(config)
    torch.manual_seed(5)
    with torch.device("meta"):
        half = Model(config)
    half.initialize_weights(dtype=torch.bfloat16)
    for name, tensor in _exact(whole).items():
        assert torch.equal(_exact(half)[name], tensor), name
    assert half.get_output_embeddings().weight.dtype == torch.bfloat16


def test_double_is_double_everywhere(config: NemotronOmniConfig) -> None:
    model = Model(config).double()
    assert {tensor.dtype for tensor in _exact(model).values()} == {torch.float64}


KINDS: dict[str, list[tuple[str, list[int]]]] = {
    "text": [],
    "image": [("image", [3, 4])],
    "video": [("video", [3, 4, 6, 7])],
    "audio": [("audio", [3, 4, 5, 6, 7])],
    "mixed": [("image", [1, 2]), ("video", [4, 5, 7, 8]), ("audio", [10, 11, 12, 13, 14])],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_trains_every_kind_of_prompt(
    config: NemotronOmniConfig, media: Callable[..., PackedMedia], kind: str, dtype: torch.dtype
) -> None:
    model = Model(config)
    randomise(model)
    ids = torch.randint(40, 300, (1, 20))
    items = tuple(media(modality, positions) for modality, positions in KINDS[kind])

    def learn() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids, media=items).loss
        torch.autograd.backward(loss)
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    exact, exact_gradients = learn()
    with torch.autocast("cpu", dtype):
        loss, gradients = learn()
    assert loss.dtype == torch.float32
    assert abs(loss - exact) < 0.05 * exact
    assert gradients.keys() == exact_gradients.keys()
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    head = gradients["language_model.lm_head.weight"]
    aligned = torch.nn.functional.cosine_similarity(
        head.flatten(), exact_gradients["language_model.lm_head.weight"].flatten(), dim=0
    )
    assert aligned > 0.95
