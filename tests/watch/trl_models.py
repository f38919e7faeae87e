"""Random models small enough for a TRL run of seconds on the CPU, with tokenizers and processors of their own."""

from pathlib import Path

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from omni_rl.config import SMALL_CHECKPOINT

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SURE = 30.0
"""By how much the head's random weights are larger than transformers makes them: a policy that is sure of some tokens,
as trained ones are, and not next to even over its vocabulary."""


def write_qwen(directory: Path, **sizes: int) -> Path:
    """A random Qwen2 of 0.2 M parameters, or of other `sizes`, in float32."""
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**(_language(tokenizer) | sizes), **_ends(tokenizer)))
    return _write(directory, model, tokenizer)


def write_qwen_moe(directory: Path) -> Path:
    """A random Qwen3 with four experts a layer, two of them a token, in float32."""
    tokenizer = _tokenizer()
    experts = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 32}
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**_language(tokenizer), **_ends(tokenizer), **experts))
    return _write(directory, model, tokenizer)


def write_qwen_vl(directory: Path) -> Path:
    """A random Qwen2-VL of 0.3 M parameters, in float32: a picture of 56 x 56 is 4 tokens."""
    tokenizer = _tokenizer()
    start, end, image, video = tokenizer.convert_tokens_to_ids(VISION)
    language = _language(tokenizer) | {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6]}}
    vision = {"depth": 1, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64, "patch_size": 14}
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config=language | _ends(tokenizer),
        vision_config=vision,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=False,
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=56 * 56),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT,
    )
    return _write(directory, Qwen2VLForConditionalGeneration(config), processor)


def _write(directory: Path, model: PreTrainedModel, processing: PreTrainedTokenizerFast | Qwen2VLProcessor) -> Path:
    with torch.no_grad():
        model.get_output_embeddings().weight *= SURE
    model.save_pretrained(directory)
    processing.save_pretrained(directory)
    return directory


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(SMALL_CHECKPOINT)
    tokenizer.add_special_tokens({"additional_special_tokens": VISION}, replace_extra_special_tokens=False)
    tokenizer.pad_token = "<unk>"
    tokenizer.chat_template = CHAT
    return tokenizer


def _ends(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}


def _language(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    return {
        "vocab_size": len(tokenizer) + -len(tokenizer) % 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
