"""A second model family, as small as one can be: dense, text alone, transformers' own Qwen2 behind our scoring.

vLLM serves its own class of it.
"""

from omni_rl.models.family import Family
from omni_rl.models.recording import LAST_NORM, LOGITS, ModuleSide

FAMILY = Family(
    name="Dense",
    model_types=("qwen2",),
    modalities=(),
    training_at="tests.models.dense.training:TRAINING",
    in_engine={
        r"model\.layers\.(\d+)\.self_attn": ModuleSide(r"layers.\1.attention"),
        r"model\.layers\.(\d+)\.mlp": ModuleSide(r"layers.\1.mlp"),
        r"model\.norm": ModuleSide(LAST_NORM),
        r"logits_processor": ModuleSide(LOGITS),
    },
    in_trainer={
        r"model\.layers\.(\d+)\.self_attn": ModuleSide(r"layers.\1.attention"),
        r"model\.layers\.(\d+)\.mlp": ModuleSide(r"layers.\1.mlp"),
        r"model\.norm": ModuleSide(LAST_NORM),
    },
)
