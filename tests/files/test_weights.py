"""Which files hold a checkpoint's weights: vLLM's choice, or a refusal that names what is wrong."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omni_rl.errors import CheckpointError
from omni_rl.files.saving import saved_directory
from omni_rl.files.weights import weight_files
from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.rollout.settings import require_checkpoint
from omni_rl.sync.checkpoint import CheckpointTensors

INDEX = "model.safetensors.index.json"


def put(directory: Path, files: dict[str, dict[str, float]], index: dict[str, str] | None = None) -> None:
    directory.mkdir(exist_ok=True)
    for file, tensors in files.items():
        save_file({name: torch.tensor([value]) for name, value in tensors.items()}, directory / file)
    if index is not None:
        (directory / INDEX).write_text(json.dumps({"weight_map": index}))


def as_vllm_finds_them(directory: Path) -> list[Path]:
    """The files that our engine's loader takes, by vLLM's own code."""
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    loader = DefaultModelLoader(LoadConfig(load_format="safetensors"))
    _, files, _, _ = loader._prepare_weights(str(directory), None, None, False, None)
    return sorted(Path(file) for file in files)


@pytest.mark.parametrize(
    ("files", "index"),
    [
        ({"model.safetensors": {"a": 1}}, None),
        ({"x.safetensors": {"a": 1}, "y.safetensors": {"b": 1}}, None),
        ({"model.safetensors": {"a": 1}, "._model.safetensors": {"a": 2}}, None),
        ({"x.safetensors": {"a": 1}, "y.safetensors": {"b": 1}}, {"a": "x.safetensors", "b": "y.safetensors"}),
        ({"x.safetensors": {"a": 1}, "value_head.safetensors": {"b": 1}}, {"a": "x.safetensors"}),
    ],
    ids=["one", "several", "hidden", "indexed", "another beside"],
)
def test_they_are_those_that_vllm_takes(
    tmp_path: Path, files: dict[str, dict[str, float]], index: dict[str, str] | None
) -> None:
    put(tmp_path, files, index)
    assert weight_files(tmp_path) == as_vllm_finds_them(tmp_path)
    sent = CheckpointTensors(tmp_path, torch.float32, RELEASED)
    assert {name: tensor.item() for name, tensor in sent.items()} == {
        name: tensor.item() for path in weight_files(tmp_path) for name, tensor in load_file(path).items()
    }


AMBIGUOUS: dict[str, tuple[dict[str, dict[str, float]], dict[str, str] | None, str]] = {
    "a stale shard": (
        {"model.safetensors": {"a": 1, "b": 1}, "model-2.safetensors": {"b": 2}},
        None,
        "has b twice, in model-2.safetensors and in model.safetensors",
    ),
    "a stale index": (
        {"model.safetensors": {"a": 1, "b": 1}, "old-1.safetensors": {"a": 2}, "old-2.safetensors": {"b": 2}},
        {"a": "old-1.safetensors", "b": "old-2.safetensors"},
        "has a twice, in model.safetensors and in old-1.safetensors",
    ),
    "consolidated": (
        {"model.safetensors": {"a": 1}, "consolidated.safetensors": {"other": 1}},
        {"a": "model.safetensors"},
        "has consolidated.safetensors beside other weights",
    ),
    "a file that is not there": (
        {"x.safetensors": {"a": 1}},
        {"a": "x.safetensors", "b": "y.safetensors"},
        "names files that are not there: y.safetensors",
    ),
    "a file elsewhere": (
        {"x.safetensors": {"a": 1}},
        {"a": "../elsewhere/x.safetensors"},
        "names files that are not there: ../elsewhere/x.safetensors",
    ),
    "a tensor that is not in its file": (
        {"x.safetensors": {"a": 1}, "y.safetensors": {"b": 1}},
        {"a": "x.safetensors", "b": "x.safetensors"},
        "names tensors that their files lack: b (in x.safetensors)",
    ),
    "none": ({}, None, "has no *.safetensors"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_directory_that_two_could_read_differently_is_refused_by_every_reader(tmp_path: Path, name: str) -> None:
    files, index, message = AMBIGUOUS[name]
    put(tmp_path, files, index)
    for file in ("config.json", "tokenizer.json"):
        (tmp_path / file).write_text("{}")
    for reader in (weight_files, require_checkpoint, lambda path: CheckpointTensors(path, torch.float32, RELEASED)):
        with pytest.raises(CheckpointError, match=re.escape(message)):
            reader(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": ["x.safetensors"]}'])
def test_what_is_no_index_is_refused(tmp_path: Path, text: str) -> None:
    put(tmp_path, {"x.safetensors": {"a": 1}})
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="is no index"):
        weight_files(tmp_path)


def test_pickled_weights_are_refused_by_every_reader(tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json", "pytorch_model.bin"):
        (tmp_path / file).write_text("{}")
    for reader in (weight_files, require_checkpoint, lambda path: CheckpointTensors(path, torch.float32, RELEASED)):
        with pytest.raises(CheckpointError, match=r"pickled weights only \(pytorch_model\.bin\)"):
            reader(tmp_path)


def test_what_a_killed_save_set_aside_is_named(tmp_path: Path) -> None:
    aside = tmp_path / f".saved.{'0' * 32}.replaced"
    put(aside, {"model.safetensors": {"a": 1}})
    with pytest.raises(CheckpointError, match=f"{re.escape(str(aside))} is what was there: rename it back"):
        weight_files(tmp_path / "saved")


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


OLDER = {
    "shards": ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
    "pickles": ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
    "consolidated": ["consolidated.safetensors", "consolidated.safetensors.index.json", "consolidated.00.pth"],
    "a broken index": [INDEX],
}


@pytest.mark.parametrize("kind", OLDER)
def test_no_older_weights_outlive_a_save(tmp_path: Path, kind: str) -> None:
    for file in (*OLDER[kind], "optimizer.pt", "training_args.bin", "notes.txt"):
        (tmp_path / file).write_text("older")
    with saved_directory(tmp_path) as new:
        (new / "model.safetensors").write_text("new")
    assert names(tmp_path) == ["model.safetensors", "notes.txt", "optimizer.pt", "training_args.bin"]


def test_shards_of_any_name_go_with_their_index(tmp_path: Path) -> None:
    put(tmp_path, {"x.safetensors": {"a": 1}, "y.safetensors": {"b": 1}}, {"a": "x.safetensors", "b": "y.safetensors"})
    with saved_directory(tmp_path) as new:
        (new / "model.safetensors").write_text("new")
    assert names(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json", "value_head.safetensors"])
def test_other_weights_are_neither_lost_nor_left_for_an_engine_to_read(tmp_path: Path, file: str) -> None:
    put(tmp_path, {"model.safetensors": {"a": 1}})
    (tmp_path / file).write_text("somebody's work")
    with pytest.raises(CheckpointError, match=f"holds {re.escape(file)}"), saved_directory(tmp_path):
        pass
    assert names(tmp_path) == sorted(["model.safetensors", file])


def test_a_training_checkpoint_is_not_saved_over(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "step.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a training checkpoint"), saved_directory(tmp_path):
        pass
    assert names(tmp_path) == ["training"]


def test_a_tokenizer_is_replaced_as_a_whole_or_stays(tmp_path: Path) -> None:
    """An older chat_template.jinja would be preferred to a newer template within tokenizer_config.json."""
    tokenizer = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "added_tokens.json", "vocab.json"]
    for file in (*tokenizer, "generation_config.json"):
        (tmp_path / file).write_text("older")
    with saved_directory(tmp_path) as new:
        (new / "config.json").write_text("new")
    assert names(tmp_path) == sorted([*tokenizer, "config.json", "generation_config.json"])
    with saved_directory(tmp_path) as new:
        (new / "tokenizer_config.json").write_text("new")
    assert names(tmp_path) == ["config.json", "generation_config.json", "tokenizer_config.json"]
