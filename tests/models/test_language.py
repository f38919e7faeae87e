"""The language model against transformers' nemotron_h, and packed sequences against each alone."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import NemotronHConfig
from transformers import NemotronHForCausalLM as Reference
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.model import NemotronHForCausalLM
from omni_rl.models.nemotron_omni.language.moe import Router, Routing, sum_by_token

from .conftest import language_config, randomise


def _pair(config: NemotronHConfig) -> tuple[NemotronHForCausalLM, Any]:
    ours = NemotronHForCausalLM(config)
    randomise(ours)
    reference = Reference(config).eval()
    for module in reference.modules():
        if isinstance(module, NemotronHMamba2Mixer):
            module.time_step_limit = (0.0, float("inf"))  # it clamps at time_step_min, which no other side does
    names = {"embed_tokens": "embeddings", "model.norm.": "model.norm_f.", "mixer.decay.A_log": "mixer.A_log"}
    state = {}
    for name, tensor in ours.state_dict().items():
        for own, theirs in names.items():
            name = name.replace(own, theirs)
        state[name] = tensor
    reference.load_state_dict(state)
    return ours, reference


def _logprobs(model: NemotronHForCausalLM, sequences: list[torch.Tensor]) -> list[torch.Tensor]:
    lengths = [len(sequence) for sequence in sequences]
    layout = PackedLayout.of(torch.tensor([0, *lengths]).cumsum(0))
    with torch.no_grad():
        logits = model(model.model.embed_tokens(torch.cat(sequences)), layout)
    return list(logits.log_softmax(-1).split(lengths))


@given(
    pattern=st.text("M*E-", min_size=1, max_size=5),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "n_groups": st.sampled_from([1, 2, 4]),
            "num_key_value_heads": st.sampled_from([1, 2, 4]),
            "moe_latent_size": st.just(24),
            "use_bias": st.just(True),
            "mlp_bias": st.just(True),
            "use_conv_bias": st.just(False),
            "norm_topk_prob": st.just(False),
            "num_experts_per_tok": st.sampled_from([1, 3]),
            "time_step_limit": st.just((0.0, 0.5)),
        },
    ),
)
@settings(max_examples=25, deadline=None)
def test_logprobs_equal_transformers(pattern: str, lengths: list[int], changes: dict[str, Any]) -> None:
    torch.manual_seed(0)  # hypothesis does not seed torch: a case that fails has to fail again
    ours, reference = _pair(language_config(hybrid_override_pattern=pattern, num_hidden_layers=len(pattern), **changes))
    for module in reference.modules():
        if isinstance(module, NemotronHMamba2Mixer):
            module.time_step_limit = changes.get("time_step_limit", (0.0, float("inf")))
    sequences = [torch.randint(300, (length,)) for length in lengths]
    for sequence, mine in zip(sequences, _logprobs(ours, sequences), strict=True):
        with torch.no_grad():
            theirs = reference(input_ids=sequence[None], use_cache=False).logits[0].log_softmax(-1)
        difference = (mine - theirs).abs()
        assert difference.mean() < 1e-5
        assert difference.max() < 1e-4


def test_group_limited_choice_equals_transformers() -> None:
    changes = {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
    ours, reference = _pair(language_config(hybrid_override_pattern="E", **changes))
    hidden = torch.randn(200, 64)
    with torch.no_grad():
        mine = ours.model.layers[0].get_submodule("mixer.gate")(hidden)
        _, weights, experts = reference.model.layers[0].mixer.gate(hidden)
    order = experts.argsort(-1)
    own_order = mine.experts.argsort(-1)
    assert torch.equal(mine.experts.gather(1, own_order), experts.gather(1, order))
    # transformers scales the weights, the engine the sum.
    torch.testing.assert_close(mine.weights.gather(1, own_order) * 2.5, weights.gather(1, order))


def test_packed_equals_alone() -> None:
    model = NemotronHForCausalLM(language_config())
    randomise(model)
    sequences = [torch.randint(300, (length,)) for length in (1, 17, 16, 3, 130)]
    for sequence, packed in zip(sequences, _logprobs(model, sequences), strict=True):
        (alone,) = _logprobs(model, [sequence])
        difference = (packed - alone).abs()
        assert difference.mean() < 5e-6
        assert difference.max() < 1e-4


def test_a_token_changes_nothing_before_it_or_in_another_sequence() -> None:
    model = NemotronHForCausalLM(language_config())
    randomise(model)
    first, second = torch.randint(300, (20,)), torch.randint(300, (20,))
    changed = second.clone()
    changed[10] = (changed[10] + 1) % 300
    before, after = _logprobs(model, [first, second, first]), _logprobs(model, [first, changed, first])
    for unmoved in ((before[0], after[0]), (before[2], after[2]), (before[1][:10], after[1][:10])):
        assert (unmoved[0] - unmoved[1]).abs().max() < 5e-5
    assert (before[1][10:] - after[1][10:]).abs().max(-1).values.min() > 1e-3


def test_margin_is_the_smallest_push_that_changes_the_choice() -> None:
    router = Router(language_config())
    randomise(router)
    hidden = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))
    routing: Routing = router(hidden)
    margin, last = float(routing.margins[0]), int(routing.experts[0, -1])
    router.e_score_correction_bias[last] -= margin * 0.99
    assert last in router(hidden).experts[0].tolist()
    router.e_score_correction_bias[last] -= margin * 0.02
    assert last not in router(hidden).experts[0].tolist()


def test_gradients_equal_finite_differences_in_float64() -> None:
    model = NemotronHForCausalLM(language_config(hybrid_override_pattern="M*E-", hidden_size=8)).double()
    randomise(model)
    layout = PackedLayout.of(torch.tensor([0, 2, 5]))
    embeds = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model(x, layout)[:, :7], (embeds,), atol=1e-6)


@pytest.mark.parametrize("changes", [{"num_nextn_predict_layers": 1}, {"tie_word_embeddings": True}])
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        NemotronHForCausalLM(language_config(**changes))


@pytest.mark.parametrize("choices", [1, 3])
def test_the_sum_that_devices_take_is_the_sum(choices: int) -> None:
    """In another order than `index_add_`, which on a device has none."""
    tokens = 7
    order = torch.randperm(tokens * choices, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(tokens * choices, 5, dtype=torch.float64)
    expected = torch.zeros(tokens, 5, dtype=torch.float64).index_add_(0, order // choices, rows)
    torch.testing.assert_close(sum_by_token(rows, order, tokens), expected)
