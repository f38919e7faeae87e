"""Layout maps in files: what is read is what was written, and no map of another engine is found."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from omni_rl.errors import LayoutError
from omni_rl.media.digests import tensors_digest
from omni_rl.sync.layout import Kind, LayoutMap, MapSeal, cache, file
from omni_rl.sync.released import TensorSpec
from tests.sync.toy_engine import ToyEngine, toy_specs, toy_weights

from .conftest import files_end_at


@pytest.fixture(scope="module")
def layout() -> LayoutMap:
    model = ToyEngine(torch.float32)
    return LayoutMap.derive(model, toy_specs(torch.float32), model.load)


def stored(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as opened:
        return opened.metadata(), {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118


def test_a_map_comes_back_whole(layout: LayoutMap, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "map.safetensors"
    file.write(layout, path)
    again = file.read(path)
    assert (again.specs, again.storages, again.blocks) == (layout.specs, layout.storages, layout.blocks)
    assert {storage.persistent for storage in again.storages} == {True, False}
    for one, other in zip(again.recorded, layout.recorded, strict=True):
        assert (one.storage, one.kind, one.start) == (other.storage, other.kind, other.start)
        assert torch.equal(one.values, other.values)
    assert list(path.parent.iterdir()) == [path]


def test_a_map_that_finds_no_room_leaves_the_one_before(layout: LayoutMap, tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    file.write(layout, path)
    before = path.read_bytes()
    with files_end_at(100), pytest.raises(Exception, match=r"File too large|I/O error"):
        file.write(layout, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 1}, "is no layout map of format 2; delete it, it will be made again"),
        ({"format": 3}, "is no layout map of format 2"),
        ({"specs": []}, "was changed since it was written; delete it"),
        (None, "cannot be read as a layout map: .*; delete it"),
        ("no digest", "was changed since it was written"),
        ("no metadata", "is no layout map of format 2"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_refused(
    layout: LayoutMap, tmp_path: Path, change: Any, message: str
) -> None:
    path = tmp_path / "map.safetensors"
    file.write(layout, path)
    metadata, tensors = stored(path)
    if isinstance(change, dict):
        metadata["layout"] = json.dumps(json.loads(metadata["layout"]) | change)
    elif change is None:
        metadata["layout"] = "{"
    elif change == "no digest":
        del metadata["digest"]
    save_file(tensors, path, metadata=None if change == "no metadata" else metadata)
    with pytest.raises(LayoutError, match=f"map.safetensors {message}"):
        file.read(path)


def test_a_digest_covers_the_tables_and_the_head(layout: LayoutMap, tmp_path: Path) -> None:
    path = tmp_path / "map.safetensors"
    file.write(layout, path)
    metadata, tensors = stored(path)
    assert len(metadata["digest"]) == 64
    for name in ("blocks", "values.0"):
        changed = {other: tensor.clone() for other, tensor in tensors.items()}
        changed[name].view(-1)[0] += 1
        assert tensors_digest(changed) != tensors_digest(tensors)
        save_file(changed, path, metadata=metadata)
        with pytest.raises(LayoutError, match="was changed since it was written"):
            file.read(path)
    save_file(tensors, path, metadata=metadata)
    file.read(path)


@pytest.mark.parametrize(("given", "found"), [("/fast/disk", "/fast/disk/layout"), ("", None), (None, None)])
def test_maps_lie_where_the_user_wants_them(
    given: str | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    if given is None:
        monkeypatch.delenv("OMNI_RL_CACHE", raising=False)
    else:
        monkeypatch.setenv("OMNI_RL_CACHE", given)
    assert str(cache.directory()) == (found or "/home/somebody/.cache/omni-rl/layout")


def test_a_map_is_prepared_there_where_no_folder_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_RL_CACHE", str(tmp_path))
    model, weights = ToyEngine(torch.float32), toy_weights(torch.float32, 1)
    model.load(weights)
    cache.prepare(model, weights, model.load, {})
    (path,) = (tmp_path / "layout").iterdir()
    assert path.name == f"{cache.digest(model, toy_specs(torch.float32), {})}.safetensors"


def test_a_map_is_found_by_everything_that_it_depends_on() -> None:
    model, specs = ToyEngine(torch.float32), toy_specs(torch.float32)
    served: dict[str, object] = {"version": "1", "rank": 0}
    found = cache.digest(model, specs, served)
    assert len(found) == 32
    assert int(found, 16) >= 0
    assert found == cache.digest(ToyEngine(torch.float32), dict(reversed(specs.items())), {"rank": 0, "version": "1"})

    class Other(ToyEngine):
        pass

    wider = ToyEngine(torch.float32)
    wider.register_buffer("more", torch.zeros(1))
    for other in (
        cache.digest(model, specs, served | {"rank": 1}),
        cache.digest(model, {name: spec for name, spec in specs.items() if name != "q"}, served),
        cache.digest(model, specs | {"q": TensorSpec(torch.bfloat16, specs["q"].shape)}, served),
        cache.digest(model, specs | {"q": TensorSpec(torch.float32, (1,))}, served),
        cache.digest(Other(torch.float32), specs, served),
        cache.digest(ToyEngine(torch.bfloat16), specs, served),
        cache.digest(wider, specs, served),
    ):
        assert other != found


def test_a_cached_map_is_used_only_for_an_engine_that_it_explains(tmp_path: Path) -> None:
    model, weights = ToyEngine(torch.float32), toy_weights(torch.float32, 1)
    model.load(weights)
    good = cache.prepare(model, weights, model.load, {}, tmp_path)
    (path,) = tmp_path.iterdir()
    changed = replace(good, recorded=tuple(one._replace(values=one.values + 1) for one in good.recorded))
    file.write(changed, path)
    again = cache.prepare(model, weights, model.load, {}, tmp_path)
    assert again.verify(weights, model) == ()
    assert [one.values.tolist() for one in file.read(path).recorded] == [one.values.tolist() for one in good.recorded]


def test_a_folder_that_cannot_be_written_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, weights = ToyEngine(torch.float32), toy_weights(torch.float32, 1)
    model.load(weights)
    (tmp_path / "maps").touch()
    cache.prepare(model, weights, model.load, {}, tmp_path / "maps")
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "derived at every start" in record.message
    assert "set OMNI_RL_CACHE" in record.message


def test_a_changed_value_breaks_the_seal_of_its_parameter(layout: LayoutMap) -> None:
    seal = MapSeal(layout)
    for index, one in enumerate(layout.recorded):
        name = layout.storages[one.storage].name
        for changed in (
            one._replace(values=one.values + 1),
            one._replace(start=one.start + 1),
            one._replace(kind=Kind.RELEASED),
        ):
            recorded = (*layout.recorded[:index], changed, *layout.recorded[index + 1 :])
            assert seal.broken(replace(layout, recorded=recorded)) == (name,)
    assert seal.broken(layout) == ()


def test_several_changes_are_all_named_in_order(layout: LayoutMap) -> None:
    moved = tuple(block._replace(target=block.target + 1) for block in layout.blocks)
    broken = MapSeal(layout).broken(replace(layout, blocks=moved, recorded=()))
    expected = {list(layout.specs)[block.tensor] for block in layout.blocks}
    assert broken == tuple(sorted(expected | {layout.storages[one.storage].name for one in layout.recorded}))


def test_an_unfinished_file_is_another_processes_own(
    layout: LayoutMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that write at the same time do not write into one file."""
    seen: list[str] = []

    def watched(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        seen.append(path.name)
        save_file(tensors, path, metadata)

    monkeypatch.setattr(file, "save_file", watched)
    file.write(layout, tmp_path / "map.safetensors")
    assert seen == [f"map.safetensors.{os.getpid()}"]
