"""What transformers' own class saved loads here, and comes out as engines read it."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.files.weights import weight_files
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.vision import radio_config
from omni_rl_bench.scoring.policies import load_transformers
from tools import frameworks

Model = NemotronOmniForConditionalGeneration


@pytest.fixture
def native(saved: Path, tmp_path: Path) -> Path:
    """Of the weights of `saved`, in several files."""
    load_transformers(saved).save_pretrained(tmp_path / "native", max_shard_size="500KB")
    assert json.loads((tmp_path / "native" / "config.json").read_text())["model_type"] == "nemotron_h_omni"
    return tmp_path / "native"


def test_a_native_save_is_the_same_model(native: Path, omni: Model) -> None:
    model = Model.from_pretrained(native)
    for name, tensor in omni.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    ours, theirs = (radio_config(config).to_dict() for config in (omni.config, model.config))
    assert ours == theirs
    ids = torch.arange(40, 80)[None]
    ids[0, 3:7] = omni.img_context_token_id
    ids[0, 20:25] = omni.sound_context_token_id
    media = {"pixel_values": torch.randn(1, 3, 64, 64), "sound_features": torch.randn(1, 40, 16)}
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids, **media).logits, omni(input_ids=ids, **media).logits)


def test_it_is_saved_in_the_released_spelling(native: Path, omni: Model, tmp_path: Path) -> None:
    Model.from_pretrained(native).save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert written["model_type"] == NemotronOmniConfig.model_type
    assert written["architectures"] == [NemotronOmniConfig.model_type]
    assert "llm_config" in written
    assert "text_config" not in written
    weights = {name for path in weight_files(tmp_path / "saved") for name in load_file(path)}
    assert not any("layer_scale" in name or "summary_idxs" in name for name in weights)
    again = Model.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in omni.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("radio", ["wrapped", "native"])
def test_what_nemo_automodel_writes_is_the_same_model(radio: str, automodel: Path, saved: Path, tmp_path: Path) -> None:
    Model.from_pretrained(automodel / radio).save_pretrained(tmp_path / "again")
    again, expected = (
        {name: tensor for path in weight_files(directory) for name, tensor in load_file(path).items()}
        for directory in (tmp_path / "again", saved)
    )
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


@pytest.fixture(scope="module")
def automodel(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`saved` as nemo_automodel's adapter reads and writes it, for each of its classes of RADIO."""
    out = tmp_path_factory.mktemp("automodel")
    command = [str(frameworks.python("nemo_automodel")), "-m", "tests.models.automodel_driver", str(saved), str(out)]
    done = subprocess.run(command, cwd=frameworks.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def test_a_scale_that_does_something_is_refused(native: Path) -> None:
    name = "vision_model.radio_model.model.blocks.1.layer_scale2.lambda1"
    path = next(path for path in weight_files(native) if name in load_file(path))
    weights = load_file(path)
    weights[name] = weights[name] * 2
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.layer_scale2\.lambda1 scale a layer"):
        Model.from_pretrained(native)


def test_a_tower_of_no_known_size_is_refused(native: Path) -> None:
    config = json.loads((native / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 3
    (native / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no RADIO is known"):
        Model.from_pretrained(native)
