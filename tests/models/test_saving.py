"""What `save_pretrained` leaves behind: the new weights whole, what the source had, and nothing that misleads."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, GenerationConfig

from omni_rl.errors import CheckpointError
from omni_rl.files.weights import weight_files
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from tests.nursery import MODEL, SECONDS, Forked, shared
from tests.sync.conftest import files_end_at

from .conftest import CONFIG

BESIDE = {
    "generation_config.json": json.dumps({"eos_token_id": [2, 11], "do_sample": True}),
    "preprocessor_config.json": '{"auto_map": {"AutoImageProcessor": "image_processing.ImageProcessor"}}',
    "video_preprocessor_config.json": "{}",
    "processor_config.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "special_tokens_map.json": "{}",
    "vocab.json": "{}",
    "merges.txt": "a b",
    "configuration.py": "from .helpers import help_out",
    "helpers.py": "from .more_helpers import *",
    "more_helpers.py": "",
    "reasoning_parser.py": "",
    "LICENSE": "Yours",
    "README.md": "A model",
}
NOT_OF_THE_MODEL = {
    "figures.json": "{}",  # measured on the source's weights
    "pytorch_model.bin": "pickled",
    "model.gguf": "of another format",
    ".hidden": "",
}


def released_config() -> str:
    """A config.json as it is released: remote code, old names, its own order, no default that was not thought of."""
    language = dict(CONFIG["llm_config"])
    pattern = language.pop("hybrid_override_pattern")
    language |= {"time_step_limit": "INF", "torch_dtype": "float32", "hybrid_override_pattern": pattern, "moe_é": 1e-05}
    config = {
        "torch_dtype": "float32",
        "model_type": NemotronOmniConfig.model_type,
        "auto_map": {"AutoConfig": "configuration.Config", "AutoModel": "modeling.Model"},
        "architectures": [NemotronOmniConfig.model_type],
        "zz_unknown": {"kept": [1, 2.50]},
        **{name: value for name, value in CONFIG.items() if name not in ("dtype", "llm_config")},
        "sound_config": CONFIG["sound_config"] | {"scale_input": True},
        "llm_config": language,
        "transformers_version": "4.55.0",
    }
    text = json.dumps(config, indent=4, ensure_ascii=False).replace('"INF"', "[0.0, Infinity]")
    return text.replace("1e-05", "0.00001").replace("2.5", "2.50")


@pytest.fixture
def source(saved: Path, tmp_path: Path) -> Path:
    """A directory with all that a released one has; the weights are `saved`'s."""
    directory = tmp_path / "source"
    (directory / "additional_chat_templates").mkdir(parents=True)
    shutil.copy(saved / "model.safetensors", directory)
    for name, content in (BESIDE | NOT_OF_THE_MODEL).items():
        (directory / name).write_text(content)
    (directory / "config.json").write_text(released_config())
    return directory


def load(directory: Path) -> NemotronOmniForConditionalGeneration:
    return NemotronOmniForConditionalGeneration.from_pretrained(directory)


def moved(model: NemotronOmniForConditionalGeneration) -> NemotronOmniForConditionalGeneration:
    """Trained, as it were."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


def same_weights(directory: Path, model: NemotronOmniForConditionalGeneration) -> bool:
    loaded = load(directory).state_dict()
    return all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def shard(directory: Path) -> None:
    """Its weights in two files with an index."""
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    placed = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(weights))}
    for file in set(placed.values()):
        save_file({name: weights[name].clone() for name in weights if placed[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


def test_over_a_sharded_checkpoint_every_reader_gets_the_new_weights(saved: Path, tmp_path: Path) -> None:
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    target = Path(shutil.copytree(saved, tmp_path / "target"))
    shard(target)
    model = moved(load(target))
    model.save_pretrained(target)
    assert same_weights(target, model)
    for load_format in ("auto", "safetensors"):
        loader = DefaultModelLoader(LoadConfig(load_format=load_format))
        _, taken, _, _ = loader._prepare_weights(str(target), None, None, True, None)
        assert [Path(file) for file in taken] == weight_files(target) == [target / "model.safetensors"]


def test_all_that_the_source_had_comes_along_though_the_source_is_gone(source: Path, tmp_path: Path) -> None:
    """A run deletes its older saved steps, and somebody may save over what a model was loaded from."""
    model = load(source)
    shutil.rmtree(source)
    model.save_pretrained(tmp_path / "saved")
    written = files(tmp_path / "saved")
    assert written.pop("model.safetensors")
    assert written == {name: text.encode() for name, text in (BESIDE | {"config.json": released_config()}).items()}


def test_the_configuration_keeps_its_spelling_but_for_the_dtype(source: Path, tmp_path: Path) -> None:
    load(source).save_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    text = (tmp_path / "saved" / "config.json").read_text()
    assert text == released_config().replace('"torch_dtype": "float32"', '"torch_dtype": "bfloat16"')
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert config.dtype == config.llm_config.dtype == torch.bfloat16
    assert tuple(config.llm_config.time_step_limit) == (0.0, float("inf"))


def test_vllm_reads_the_saved_configuration_as_the_sources(source: Path, tmp_path: Path) -> None:
    from vllm.transformers_utils.config import get_config

    load(source).save_pretrained(tmp_path / "saved")
    ours, theirs = (get_config(str(path), trust_remote_code=False) for path in (tmp_path / "saved", source))
    assert isinstance(ours, NemotronOmniConfig)
    assert ours.to_json_string() == theirs.to_json_string()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"video_pruning_rate": 0.25}, {"video_pruning_rate": 0.25}),
        ({"llm_config.routed_scaling_factor": 1.5}, {"llm_config": {"routed_scaling_factor": 1.5}}),
        ({"llm_config.time_step_limit": (0.0, 0.5)}, {"llm_config": {"time_step_limit": [0.0, 0.5]}}),
        ({"mine": {"a": None, "b": float("inf")}}, {"mine": {"a": None, "b": float("inf")}}),
        ({"id2label": {0: "yes"}, "label2id": {"yes": 0}}, {"id2label": {"0": "yes"}, "label2id": {"yes": 0}}),
    ],
    ids=["a number", "in a section", "a list", "a new key", "what was a default"],
)
def test_what_was_changed_in_memory_is_saved_and_nothing_else(
    source: Path, tmp_path: Path, change: dict[str, Any], expected: dict[str, Any]
) -> None:
    model = load(source)
    for name, value in change.items():
        section, _, key = name.rpartition(".")
        setattr(getattr(model.config, section) if section else model.config, key, value)
    model.save_pretrained(tmp_path / "saved")
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, tmp_path / "saved"))
    for key, value in expected.items():
        before[key] = before[key] | value if key == "llm_config" else value
    assert after == before
    assert list(after) == list(before)


def test_a_change_that_the_old_spelling_would_contradict_is_saved_all_the_same(source: Path, tmp_path: Path) -> None:
    """hybrid_override_pattern, which the file has, and layers_block_type, which was changed, are one thing."""
    model = load(source)
    model.config.llm_config.layers_block_type = ["moe"] * 6
    del model.config.zz_unknown
    model.save_pretrained(tmp_path / "saved")
    again = NemotronOmniConfig.from_pretrained(tmp_path / "saved")
    assert again.llm_config.hybrid_override_pattern == "EEEEEE"
    assert not hasattr(again, "zz_unknown")
    assert again.auto_map == model.config.auto_map


def test_a_model_without_a_source_is_saved_with_its_configuration(config: NemotronOmniConfig, tmp_path: Path) -> None:
    model = NemotronOmniForConditionalGeneration.from_config(config)
    (tmp_path / "tokenizer.json").write_text("saved before the model")
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert same_weights(tmp_path, model)
    assert files(tmp_path).keys() == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (tmp_path / "tokenizer.json").read_text() == "saved before the model"


def test_a_model_of_a_loaded_configuration_has_that_ones_source(source: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(source)
    NemotronOmniForConditionalGeneration.from_config(config).save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "config.json").read_text() == released_config()
    assert (tmp_path / "saved" / "generation_config.json").read_text() == BESIDE["generation_config.json"]


def test_saved_in_place_again_and_again(source: Path) -> None:
    """What stands there stays, also what changed since the model was loaded."""
    model = load(source)
    (source / "tokenizer.json").write_text('{"more": "tokens"}')
    before = files(source)
    for _ in range(2):
        model = moved(model)
        model.save_pretrained(source)
    after = files(source)
    assert before.keys() - after.keys() == {"pytorch_model.bin"}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"model.safetensors"}
    assert same_weights(source, model)


def test_the_policy_stops_where_the_sources_does(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As vLLM takes it: an older export without a second stop id was there before."""
    from vllm import SamplingParams
    from vllm.transformers_utils.config import try_get_generation_config

    target = tmp_path / "saved"
    GenerationConfig(eos_token_id=11).save_pretrained(target)
    load(source).save_pretrained(target)
    defaults = try_get_generation_config(str(target), trust_remote_code=False)
    assert defaults is not None
    params = SamplingParams()
    params.update_from_generation_config(defaults.to_diff_dict(), eos_token_id=11)
    assert params.all_stop_token_ids == {2, 11}
    assert "generation_config.json" in caplog.text  # what was there is not lost without a word


def test_others_can_read_what_was_saved(saved: Path) -> None:
    assert (saved / "model.safetensors").stat().st_mode == (saved / "config.json").stat().st_mode


def test_a_full_disk_leaves_the_old_checkpoint(source: Path) -> None:
    model = moved(load(source))
    before = files(source)
    with files_end_at(100_000), pytest.raises(CheckpointError, match=r"cannot write model\.safetensors"):
        model.save_pretrained(source)
    assert files(source) == before
    assert [path.name for path in source.parent.iterdir()] == ["source"]
    model.save_pretrained(source)
    assert same_weights(source, model)


def save_for_ever(directory: Path, first: int) -> None:
    """Save a model in place again and again, with a number in all its weights that is said when it is saved."""
    torch.set_num_threads(1)
    model = load(directory)
    for number in itertools.count(first):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(number)
        model.save_pretrained(directory, dtype=(torch.float32, torch.bfloat16)[number % 2])
        os.write(1, f"{number}\n".encode())


def saves_told(log: Path) -> list[int]:
    """The numbers of whole lines."""
    return [int(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.slow
def test_killed_at_any_moment_the_old_or_the_new_one_is_there(source: Path, tmp_path: Path) -> None:
    """Real saves in place, whose numbers say which save a tensor and a configuration are of."""
    chance = random.Random(0)
    for attempt in range(8):
        log = tmp_path / f"{attempt}.log"
        process = Forked(shared(*MODEL), log, save_for_ever, source, 1 + 20 * attempt)
        while "\n" not in log.read_text():
            assert process.poll(0.01) is None, log.read_text()
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        assert process.wait(SECONDS) == -signal.SIGKILL
        reported = max(saves_told(log))
        model = load(source)
        numbers = {value for parameter in model.parameters() for value in parameter.detach().flatten().tolist()}
        (number,) = numbers
        assert number in (reported, reported + 1)
        assert model.config.dtype == (torch.float32, torch.bfloat16)[int(number) % 2]
        assert files(source).keys() - {"model.safetensors"} >= BESIDE.keys()
    load(source).save_pretrained(source)
    assert [path.name for path in source.parent.iterdir() if path.suffix != ".log"] == ["source"]
