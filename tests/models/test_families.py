"""A checkpoint's family is found by its config.json."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.models.families import families, family_of, is_weight
from tests.models.dense.installed import installed
from tests.watch.trl_models import write_qwen


@pytest.fixture
def dense(tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of the family that a package brings."""
    site = tmp_path / "site"
    site.mkdir()
    with installed(site):
        yield write_qwen(tmp_path / "qwen")


def test_the_small_checkpoint_is_a_nemotron_omni(small_checkpoint: Path) -> None:
    assert family_of(small_checkpoint).name == "Nemotron Omni"


def test_a_package_brings_a_family_of_its_own(dense: Path, small_checkpoint: Path) -> None:
    assert family_of(dense).name == "Dense"
    assert family_of(small_checkpoint).name == "Nemotron Omni"


def test_without_it_the_checkpoint_is_refused_and_what_is_served_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a 'qwen2' model; .*Nemotron Omni \('NemotronH_Nano_Omni_Reasoning_V3'"):
        family_of(write_qwen(tmp_path / "qwen"))


def test_a_package_that_is_broken_is_named(tmp_path: Path, small_checkpoint: Path) -> None:
    with installed(tmp_path, "nowhere.family:FAMILY"), pytest.raises(ConfigError, match=r"at nowhere\.family:FAMILY"):
        family_of(small_checkpoint)


@pytest.mark.parametrize(
    ("content", "said"),
    [("raise RuntimeError('no such device')", "RuntimeError: no such device"), ("FAMILY = 'dense'", "is a str")],
)
def test_a_package_that_fails_or_brings_something_else_is_named(
    content: str, said: str, tmp_path: Path, small_checkpoint: Path
) -> None:
    name = f"odd_{len(content)}"
    (tmp_path / f"{name}.py").write_text(content)
    with installed(tmp_path, f"{name}:FAMILY"), pytest.raises(ConfigError, match=f"at {name}:FAMILY .*{said}"):
        family_of(small_checkpoint)


def test_two_families_that_serve_one_type_of_model_are_named(tmp_path: Path, small_checkpoint: Path) -> None:
    (tmp_path / "second.py").write_text(
        "from dataclasses import replace\nfrom omni_rl.models.nemotron_omni.family import FAMILY as FIRST\n"
        "FAMILY = replace(FIRST, name='Another Omni')\n"
    )
    with installed(tmp_path, "second:FAMILY"), pytest.raises(ConfigError, match="Nemotron Omni and Another Omni both"):
        family_of(small_checkpoint)


def test_a_broken_dense_checkpoint_is_refused_by_name(dense: Path) -> None:
    config = json.loads((dense / "config.json").read_text())
    family_of(dense).training.check_checkpoint(dense)
    (dense / "config.json").write_text(json.dumps(config | {"intermediate_size": 256}))
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        family_of(dense).training.check_checkpoint(dense)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises((CheckpointError, ConfigError), match=r"has no config\.json|cannot be read|names no model type"):
        family_of(tmp_path)


def test_what_some_family_derives_is_no_weight(dense: Path) -> None:
    assert [family.name for family in families()] == ["Nemotron Omni", "Dense"]
    assert is_weight("model.layers.0.mlp.up_proj.weight")
    assert not is_weight("sound_encoder.encoder.feature_extractor.window")
