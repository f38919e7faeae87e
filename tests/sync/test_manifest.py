"""What a slab's table of contents says: where tensors lie, and which changes give weights another name."""

from dataclasses import replace

import pytest
import torch

from omni_rl.errors import ConfigError, SlabError
from omni_rl.sync.digest import checksums, weights_digest
from omni_rl.sync.manifest import ITEM_BYTES, Entry, Manifest, arrange, end, root_digest
from omni_rl.sync.version import WeightVersion, same_weights

from .conftest import Weights, places

ENTRIES = (Entry("a", "float32", (2, 3), 0, "1" * 48), Entry("b", "bool", (5,), 64, "2" * 48))


def sealed(**changes: object) -> Manifest:
    manifest = Manifest.seal(ENTRIES, {"a": "3" * 48, "b": "4" * 48}, run="run", attempt=2, number=7)
    return manifest.model_copy(update=changes)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_elements_have_the_size_that_torch_gives_them(dtype: str) -> None:
    tensor = torch.zeros(3, 5, dtype=getattr(torch, dtype))
    (entry,) = arrange({"w": (dtype, (3, 5))})
    assert (entry.nbytes, entry.elements) == (tensor.nbytes, 15)


@pytest.mark.parametrize(("size", "next_one"), [(0, 0), (1, 64), (63, 64), (64, 64), (65, 128), (128, 128), (129, 192)])
def test_the_next_tensor_lies_at_the_next_cache_line(size: int, next_one: int) -> None:
    first, second = arrange({"b": ("int8", (3,)), "a": ("uint8", (size,))})
    assert (first.name, first.offset) == ("a", 0)
    assert (second.name, second.offset) == ("b", next_one)
    assert end((first, second)) == next_one + 3
    assert end((second, first)) == next_one + 3


def test_nothing_takes_no_bytes() -> None:
    assert arrange({}) == ()
    assert end(()) == 0


def test_a_dtype_that_is_not_synced_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"w is complex64, which is not synced; use one of float64, .*, bool$"):
        arrange({"v": ("bool", ()), "w": ("complex64", (3,))})


def test_a_digest_names_content_and_not_places() -> None:
    digest = root_digest(ENTRIES)
    assert root_digest(reversed(ENTRIES)) == digest
    assert root_digest(replace(entry, offset=entry.offset + 64) for entry in ENTRIES) == digest
    first, second = ENTRIES
    for changed in (
        replace(first, name="c"),
        replace(first, dtype="int32"),
        replace(first, shape=(3, 2)),
        replace(first, checksum="5" * 48),
    ):
        assert root_digest((changed, second)) != digest
    assert root_digest((first,)) != digest


def test_the_digest_of_tensors_is_that_of_their_manifest(weights: Weights) -> None:
    manifest = Manifest.seal(places(weights), checksums(weights), run="run", attempt=1, number=0)
    backwards = dict(reversed(weights.items()))
    assert weights_digest(weights) == weights_digest(backwards) == manifest.version.digest
    weights["steps"] = weights["steps"] + 1
    assert weights_digest(weights) != manifest.version.digest


def test_a_manifest_states_what_was_sealed() -> None:
    manifest = sealed()
    assert [entry.checksum for entry in manifest.entries] == ["3" * 48, "4" * 48]
    assert (manifest.version.run, manifest.version.attempt, manifest.version.number) == ("run", 2, 7)
    assert (manifest.schema_version, manifest.nbytes, manifest.nonfinite, manifest.origin) == (1, 64 + 5, None, None)
    assert Manifest.parse(manifest.model_dump_json(), "slab.json") == manifest


def test_a_manifest_that_is_not_what_was_sealed_is_refused_with_its_name() -> None:
    other = sealed(entries=(*sealed().entries[:1], replace(sealed().entries[1], checksum="6" * 48)))
    with pytest.raises(SlabError, match=r"slab\.json was changed: its tensors do not have the digest"):
        Manifest.parse(other.model_dump_json(), "slab.json")
    text = sealed().model_dump_json()
    for damaged in ("", "{}", text[:-1], text[:-1] + ',"more":1}'):
        with pytest.raises(SlabError, match=r"slab\.json is no manifest of a slab"):
            Manifest.parse(damaged, "slab.json")


def test_a_manifest_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        sealed().nbytes = 3


def test_a_version_is_named_by_run_attempt_number_and_the_first_sixteen_digits() -> None:
    version = WeightVersion("run", 3, 12, "0123456789abcdef" + "f" * 48)
    assert str(version) == "run/3/12/0123456789abcdef"
    assert WeightVersion.parse(str(version)) == WeightVersion("run", 3, 12, "0123456789abcdef")
    assert WeightVersion.parse("team/run/3/12/abc") == WeightVersion("team/run", 3, 12, "abc")


@pytest.mark.parametrize("text", ["", "3/12/abc", "run/3/abc", "run/three/12/abc", "run/3/12.5/abc"])
def test_text_that_names_no_version_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"weight version '{text}' is not run/attempt/number/digest"):
        same_weights("run/1/2/abc", text)
