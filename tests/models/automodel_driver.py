"""What nemo_automodel writes of a checkpoint that it has read; runs where that is (tools/frameworks.py).

PYTHON -m tests.models.automodel_driver DIRECTORY OUT
"""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from nemo_automodel.components.models.common import BackendConfig
from nemo_automodel.components.models.nemotron_omni.state_dict_adapter import NemotronOmniStateDictAdapter
from safetensors.torch import load_file, save_file

from omni_rl.files.weights import weight_files
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig


def main(source: Path, out: Path) -> None:
    config = NemotronOmniConfig.from_pretrained(source)
    llm = config.llm_config
    # What its adapter asks of the configuration of experts.
    experts = SimpleNamespace(
        n_routed_experts=llm.n_routed_experts,
        dim=llm.hidden_size,
        moe_inter_dim=llm.moe_intermediate_size,
        expert_activation="relu2",
        expert_bias=False,
    )
    backend = BackendConfig(attn="sdpa", linear="torch", rms_norm="torch")
    for radio, native in {"wrapped": False, "native": True}.items():
        adapter = NemotronOmniStateDictAdapter(
            config, llm, experts, backend, dtype=torch.float32, vision_uses_native_radio=native
        )
        weights = {name: tensor for path in weight_files(source) for name, tensor in load_file(path).items()}
        released = adapter.to_hf(adapter.from_hf(weights))
        (out / radio).mkdir()
        save_file({name: tensor.contiguous() for name, tensor in released.items()}, out / radio / "model.safetensors")
        shutil.copy(source / "config.json", out / radio)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
