"""The committed checkpoint: what its files say, and that its figures are true."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from omni_rl.checkpoints.examples import PromptExamples, pack_examples
from omni_rl.checkpoints.make import held_out_examples
from omni_rl.checkpoints.scenes import scenes
from omni_rl.checkpoints.training import greedy_accuracy, sampled_accuracy
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from tests.checkpoints.known import known_figures

RELEASED_PREFIXES = (
    "language_model.backbone.",
    "language_model.lm_head.",
    "mlp1.",
    "sound_encoder.encoder.",
    "sound_projection.",
    "vision_model.radio_model.",
)


def test_the_directory_is_small(small_checkpoint: Path) -> None:
    size = sum(path.stat().st_size for path in small_checkpoint.iterdir())

    assert size <= 6_000_000
    figures = known_figures(small_checkpoint)
    assert size == figures.bytes + (small_checkpoint / "figures.json").stat().st_size


def test_every_kind_of_layer_is_in_it(small_checkpoint: Path) -> None:
    language = AutoConfig.from_pretrained(small_checkpoint).llm_config

    assert set(language.hybrid_override_pattern) == set("M*E-")
    assert language.n_routed_experts >= 8
    assert language.max_position_embeddings >= 4096


def test_special_tokens_have_the_released_ids(small_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_checkpoint)
    config = AutoConfig.from_pretrained(small_checkpoint)

    assert tokenizer.convert_tokens_to_ids(["<image>", "<so_embedding>", "<video>"]) == [18, 27, 30]
    assert (config.img_context_token_id, config.sound_context_token_id, config.video_context_token_id) == (18, 27, 30)
    assert tokenizer.eos_token == "<|im_end|>"
    assert config.llm_config.eos_token_id == tokenizer.eos_token_id


def test_the_vocabulary_needs_padding(small_checkpoint: Path) -> None:
    vocabulary = AutoConfig.from_pretrained(small_checkpoint).llm_config.vocab_size

    assert vocabulary % 64 != 0
    assert len(AutoTokenizer.from_pretrained(small_checkpoint)) == vocabulary


def test_any_text_survives_the_tokenizer_and_digits_are_single_tokens(small_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(small_checkpoint)
    text = "Größe: 1797 \N{SNOWMAN}\n\t<|im_start|>user"

    ids = tokenizer.encode(text, add_special_tokens=False)

    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([number]) for number in ids if tokenizer.decode([number]).strip().isdigit()] == [*"1797"]


def test_tensors_have_released_names_and_are_stored_in_bfloat16(small_checkpoint: Path) -> None:
    with safe_open(small_checkpoint / "model.safetensors", "pt") as stored:
        dtypes = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118

    assert {prefix for prefix in RELEASED_PREFIXES if any(name.startswith(prefix) for name in dtypes)} == set(
        RELEASED_PREFIXES
    )
    assert all(name.startswith(RELEASED_PREFIXES) for name in dtypes)
    float32 = {name.rsplit(".", 1)[1] for name, dtype in dtypes.items() if dtype == "F32"}
    assert float32 == {"A_log", "e_score_correction_bias"}
    assert set(dtypes.values()) == {"BF16", "F32", "I64"}


def test_no_weight_is_constant(small_checkpoint: Path) -> None:
    with safe_open(small_checkpoint / "model.safetensors", "pt") as stored:
        constant = [
            name
            for name in stored.keys()  # noqa: SIM118
            if stored.get_tensor(name).numel() > 1 and stored.get_tensor(name).unique().numel() == 1
        ]

    assert constant == []


def test_the_figures_are_those_of_the_stored_weights(small_checkpoint: Path) -> None:
    figures = known_figures(small_checkpoint)
    model = NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint, dtype=torch.float32)
    held_out = held_out_examples(small_checkpoint)

    assert 0.40 <= figures.sampled_accuracy <= 0.55
    assert figures.held_out == len(held_out) == 366
    assert sampled_accuracy(model, held_out) == pytest.approx(figures.sampled_accuracy, abs=1e-4)
    assert greedy_accuracy(model, held_out) == pytest.approx(figures.greedy_accuracy, abs=0.01)
    assert figures.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_config_names_no_machine(small_checkpoint: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "figures.json"):
        values = str(json.loads((small_checkpoint / name).read_text()))
        assert "/home" not in values
        assert "/tmp" not in values


@pytest.mark.parametrize("kind", ["picture", "sound", "video"])
def test_an_answer_is_likelier_beside_the_medium_it_is_about(small_checkpoint: Path, kind: str) -> None:
    model = NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint, dtype=torch.float32)
    prepare = PromptExamples(model.config, AutoTokenizer.from_pretrained(small_checkpoint))
    own = [prompt for prompt in islice(scenes(seed=99), 90) if prompt.id.startswith(kind)]
    others = own[1:] + own[:1]
    swapped = [
        replace(prompt, images=other.images, sounds=other.sounds, videos=other.videos)
        for prompt, other in zip(own, others, strict=True)
    ]

    with torch.no_grad():
        beside_own, beside_other = (
            model.score_packed(pack_examples([prepare(prompt) for prompt in prompts])).logprobs.mean()
            for prompts in (own, swapped)
        )

    assert beside_own > beside_other + 0.05
