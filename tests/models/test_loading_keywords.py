"""`from_pretrained` takes what transformers' users write, and says what it cannot do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from omni_rl.errors import ConfigError
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.language.moe import MoE
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

TAKEN: dict[str, dict[str, Any]] = {
    "remote code": {"trust_remote_code": True, "low_cpu_mem_usage": True},
    "a device": {"device_map": "cpu"},
    "a device object": {"device_map": torch.device("cpu")},
    "one device for all": {"device_map": {"": "cpu"}},
    "attention": {"attn_implementation": "sdpa", "use_safetensors": True, "local_files_only": True},
    "dtype by the older name": {"torch_dtype": "float32"},
    "both names of a dtype": {"torch_dtype": torch.float32, "dtype": torch.float32},
    "auto": {"torch_dtype": "auto"},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "several devices": ({"device_map": "auto"}, "device_map 'auto'"),
    "parts apart": ({"device_map": {"vision_model": 0, "language_model": 1}}, "places parts"),
    "no device": ({"device_map": "gpu!"}, "no device"),
    "other attention": ({"attn_implementation": "flash_attention_2"}, "flash_attention_2"),
    "pickles": ({"use_safetensors": False}, "pickled"),
    "two dtypes": ({"dtype": "float32", "torch_dtype": "bfloat16"}, "give one"),
    "another dtype": ({"torch_dtype": "float64"}, "float64"),
    "another configuration": ({"config": {"llm_config": {}}}, "NemotronOmniConfig"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_usual_keywords_load_the_same_model(saved: Path, omni: NemotronOmniForConditionalGeneration, case: str) -> None:
    model = NemotronOmniForConditionalGeneration.from_pretrained(saved, **TAKEN[case])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, omni.state_dict()[name]), name


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_had_is_refused_by_name(saved: Path, case: str) -> None:
    keywords, reason = REFUSED[case]
    with pytest.raises(ConfigError, match=reason):
        NemotronOmniForConditionalGeneration.from_pretrained(saved, **keywords)


def test_a_misspelt_keyword_is_refused(saved: Path) -> None:
    with pytest.raises(TypeError, match="trust_remote_cod"):
        NemotronOmniForConditionalGeneration.from_pretrained(saved, trust_remote_cod=True)


def test_a_configuration_of_the_callers_takes_the_files_place(saved: Path) -> None:
    config = NemotronOmniConfig.from_pretrained(saved)
    config.llm_config.routed_scaling_factor = 1.0
    model = NemotronOmniForConditionalGeneration.from_pretrained(saved, config=config)
    assert model.config is config
    assert {module.scaling for module in model.modules() if isinstance(module, MoE)} == {1.0}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_without_a_dtype_of_the_whole_the_language_models_counts(saved: Path, tmp_path: Path, dtype: str) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    config = json.loads((saved / "config.json").read_text())
    del config["dtype"]
    config["llm_config"]["dtype"] = dtype
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    model = NemotronOmniForConditionalGeneration.from_pretrained(tmp_path / "copy")
    assert model.dtype == getattr(torch, dtype)
    assert torch.isfinite(model(input_ids=torch.arange(40, 60)[None]).logits).all()
    model.save_pretrained(tmp_path / "again")
    assert NemotronOmniForConditionalGeneration.from_pretrained(tmp_path / "again").dtype == model.dtype
