"""Released names both ways, and checkpoints on disk."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.files.weights import weight_files
from omni_rl.models.nemotron_omni.checkpoint import released_state
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.state_dict_adapter import NemotronOmniStateDictAdapter
from omni_rl.models.storage import parse_size
from omni_rl.models.tensor_file import read_places


def _rewrite(saved: Path, target: Path, change: dict[str, torch.Tensor | None]) -> Path:
    """A copy of a checkpoint with some tensors replaced (or left out: None)."""
    weights: dict[str, torch.Tensor | None] = load_file(saved / "model.safetensors") | change
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, target / "model.safetensors")
    (target / "config.json").write_bytes((saved / "config.json").read_bytes())
    return target


def test_the_released_checkpoint_comes_back_bit_for_bit(small_checkpoint: Path) -> None:
    stored = load_file(small_checkpoint / "model.safetensors")
    model = NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint, dtype="float32")
    back = dict(released_state(model, torch.bfloat16))
    derived = {name for name in stored if name not in back}
    assert all("summary_idxs" in name or "input_conditioner" in name for name in derived)
    assert set(back) <= set(stored)
    for name, tensor in back.items():
        assert torch.equal(tensor.to(stored[name].dtype), stored[name]), name


def test_only_what_every_engine_holds_in_float32_is_sent_so(omni: NemotronOmniForConditionalGeneration) -> None:
    for name, tensor in released_state(omni, torch.bfloat16):
        if name.endswith(("A_log", "e_score_correction_bias")):
            assert tensor.dtype == torch.float32, name
        elif name.endswith("num_batches_tracked"):
            assert tensor.dtype == torch.int64
        else:
            assert tensor.dtype == torch.bfloat16, name


def test_both_directions_are_inverse_whole_and_one_tensor_at_a_time(
    omni: NemotronOmniForConditionalGeneration,
) -> None:
    adapter = NemotronOmniStateDictAdapter()
    internal = omni.state_dict()
    released = adapter.to_hf(internal)
    again = adapter.from_hf(released)
    assert again.keys() == internal.keys()
    assert all(torch.equal(again[name], internal[name]) for name in internal)
    single = dict(item for name in internal for item in adapter.convert_single_tensor_to_hf(name, internal[name]))
    assert single.keys() == released.keys()
    assert all(torch.equal(single[name], released[name]) for name in released)


@pytest.mark.parametrize(
    ("released", "internal"),
    [
        ("mlp1.0.weight", "vision_projector.norm.weight"),
        ("mlp1.1.weight", "vision_projector.linear1.weight"),
        ("mlp1.3.weight", "vision_projector.linear2.weight"),
        ("sound_encoder.encoder.layers.1.conv.norm.running_var", "sound_encoder.layers.1.conv.norm.running_var"),
        ("sound_projection.linear2.weight", "sound_projection.linear2.weight"),
        ("language_model.backbone.embeddings.weight", "language_model.model.embed_tokens.weight"),
        ("language_model.backbone.norm_f.weight", "language_model.model.norm.weight"),
        ("language_model.lm_head.weight", "language_model.lm_head.weight"),
        ("language_model.backbone.layers.0.mixer.D", "language_model.model.layers.0.mixer.D"),
    ],
)
def test_names_are_those_of_the_released_checkpoint(released: str, internal: str) -> None:
    adapter = NemotronOmniStateDictAdapter()
    target = adapter.target(released)
    assert target is not None
    assert target.name == internal
    assert adapter.convert_single_tensor_to_hf(internal, torch.zeros(1))[0][0] == released


def test_saved_loads_to_the_same_scores_and_dtype_follows_the_request(
    omni: NemotronOmniForConditionalGeneration, saved: Path
) -> None:
    loaded = NemotronOmniForConditionalGeneration.from_pretrained(saved)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), omni.parameters(), strict=True))
    rounded = NemotronOmniForConditionalGeneration.from_pretrained(saved, dtype=torch.bfloat16)
    dtypes = {name: tensor.dtype for name, tensor in rounded.state_dict().items() if tensor.is_floating_point()}
    kept = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert kept == {name for name in dtypes if name.endswith(("A_log", "e_score_correction_bias"))}
    assert json.loads((saved / "config.json").read_text())["dtype"] == "float32"


def test_the_tokenizer_follows_into_every_copy(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory without it cannot be served. Loaded by a relative path, and saved from elsewhere."""
    monkeypatch.chdir(small_checkpoint.parent)
    model = NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint.name)
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("first")
    NemotronOmniForConditionalGeneration.from_pretrained("first").save_pretrained(tmp_path / "second")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        for copy in ("first", "second"):
            assert (tmp_path / copy / name).read_bytes() == (small_checkpoint / name).read_bytes()


def test_every_missing_extra_and_misshapen_tensor_is_listed(saved: Path, tmp_path: Path) -> None:
    broken = _rewrite(
        saved,
        tmp_path,
        {
            "mlp1.0.weight": None,
            "language_model.backbone.layers.2.mixer.experts.3.up_proj.weight": None,
            "language_model.lm_head.weight": torch.zeros(2, 2),
            "language_model.backbone.layers.99.norm.weight": torch.zeros(64),
            "somebody.elses.weight": torch.zeros(1),
        },
    )
    with pytest.raises(CheckpointError) as raised:
        NemotronOmniForConditionalGeneration.from_pretrained(broken)
    for line in (
        "missing mlp1.0.weight",
        "missing language_model.backbone.layers.2.mixer.experts.3.up_proj.weight",
        "shape of language_model.lm_head.weight: [2, 2]",
        "unexpected language_model.backbone.layers.99.norm.weight",
        "unexpected somebody.elses.weight",
    ):
        assert line in str(raised.value)


def test_sharded_checkpoints_load_and_an_absent_shard_is_named(saved: Path, tmp_path: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    names = sorted(weights)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    loaded = NemotronOmniForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.language_model.lm_head.weight, weights["language_model.lm_head.weight"])
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors"):
        NemotronOmniForConditionalGeneration.from_pretrained(tmp_path)


def test_pickled_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled"):
        NemotronOmniForConditionalGeneration.from_pretrained(tmp_path)


def test_an_unknown_dtype_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match="float8"):
        NemotronOmniForConditionalGeneration.from_pretrained(saved, dtype="float8")


def test_convolution_biases_of_a_config_without_them_are_passed_over_as_the_engine_does() -> None:
    adapter = NemotronOmniStateDictAdapter()
    kept = "sound_encoder.layers.0.conv.depthwise_conv.weight"
    surplus = "sound_encoder.encoder.layers.0.conv.depthwise_conv.bias"
    model_state = {kept: torch.zeros(2)}
    released = [("sound_encoder.encoder.layers.0.conv.depthwise_conv.weight", torch.ones(2)), (surplus, torch.ones(2))]
    adapter.load(model_state, released)
    assert model_state[kept].tolist() == [1, 1]


@pytest.mark.parametrize("limit", ["7KB", "100KB", 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_of_any_size_hold_the_same_tensors_and_fit_their_index(
    omni: NemotronOmniForConditionalGeneration, tmp_path: Path, dtype: torch.dtype, limit: int | str
) -> None:
    omni.save_pretrained(tmp_path, dtype, max_shard_size=limit)
    files = weight_files(tmp_path)
    expected = dict(released_state(omni, dtype))
    written = {name: tensor for path in files for name, tensor in load_file(path).items()}
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor)
    if len(files) == 1:
        assert [path.name for path in files] == ["model.safetensors"]
        assert not (tmp_path / "model.safetensors.index.json").exists()
        return
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert {name: tmp_path / file for name, file in index["weight_map"].items()} == {
        name: path for path in files for name in load_file(path)
    }
    for path in files:
        held = load_file(path)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= parse_size(limit)


@pytest.mark.parametrize("size", ["5", "GB", "5 GiB", "-1MB", 0])
def test_a_size_of_files_that_is_none_is_refused(
    omni: NemotronOmniForConditionalGeneration, tmp_path: Path, size: int | str
) -> None:
    with pytest.raises(ConfigError, match="max_shard_size"):
        omni.save_pretrained(tmp_path / "saved", max_shard_size=size)
    assert not (tmp_path / "saved").exists()


def test_a_file_is_laid_out_as_safetensors_does_it(saved: Path, tmp_path: Path) -> None:
    save_file(load_file(saved / "model.safetensors"), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    ours, theirs = (read_places(path) for path in (saved / "model.safetensors", tmp_path / "theirs.safetensors"))
    assert ours == theirs
    assert list(ours) == list(theirs)
