"""What a slab takes and what it refuses: the last byte that fits, who may still write, and what is left of others."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_rl.errors import SlabBusyError, SlabError, SlabFullError
from omni_rl.sync.checksum import Checksum
from omni_rl.sync.manifest import Entry, Manifest, arrange, end
from omni_rl.sync.nonfinite import NonFinite
from omni_rl.sync.slab import OpenSlabs, Slab, written

from .conftest import Weights, make_weights, places, same, write

ROW = arrange({"w": ("int32", (2, 3))})


def row(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32)


@pytest.mark.parametrize("short", [0, 1])
def test_weights_may_fill_a_slab_to_its_last_byte(tmp_path: Path, weights: Weights, short: int) -> None:
    need = end(places(weights))
    slab = Slab.create(tmp_path / "slab.weights", need - short)
    assert slab.nbytes == need - short
    if short:
        told = rf"has {need - 1} bytes, the weights need {need}: steps does not fit; create"
        with pytest.raises(SlabFullError, match=told):
            slab.begin(places(weights))
        slab.discard()
    else:
        assert write(slab, weights).nbytes == need
        assert same(slab.tensors(), weights)
        assert slab.content().size == need


def test_the_first_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    at = arrange({"a": ("int8", (64,)), "b": ("int8", (65,)), "c": ("int8", (1,))})
    slab = Slab.create(tmp_path / "slab.weights", 128)
    with pytest.raises(SlabFullError, match="b does not fit"):
        slab.begin(at)
    slab.begin(at[:1])


def test_a_manifest_of_more_than_the_slab_is_refused(slab: Slab, weights: Weights) -> None:
    manifest = write(slab, weights)
    assert slab.sealed().nbytes == slab.nbytes
    beyond = manifest.model_copy(update={"nbytes": slab.nbytes + 1})
    slab.path.with_suffix(".json").write_text(beyond.model_dump_json())
    with pytest.raises(SlabError, match=rf"has {slab.nbytes} bytes, its manifest states {slab.nbytes + 1}"):
        slab.sealed()


@pytest.mark.parametrize(
    ("count", "start", "fits"),
    [(6, 0, True), (5, 1, True), (6, 1, False), (7, 0, False), (0, 6, True), (0, 7, False), (1, -1, False)],
)
def test_a_part_fits_up_to_its_tensors_last_element(slab: Slab, count: int, start: int, fits: bool) -> None:
    with slab.writing(ROW):
        if fits:
            slab.write("w", row(count), start)
        else:
            told = rf"w has the place of int32 \[2, 3\]; int32 \[{count}\] from element {start} on does not fit there"
            with pytest.raises(SlabError, match=told):
                slab.write("w", row(count), start)


@pytest.mark.parametrize(
    ("size", "start", "fits"), [(24, 0, True), (23, 1, True), (24, 1, False), (25, 0, False), (1, -1, False)]
)
def test_bytes_fit_up_to_their_tensors_last(slab: Slab, size: int, start: int, fits: bool) -> None:
    data = np.arange(size, dtype=np.uint8)
    with slab.writing(ROW):
        if fits:
            assert str(slab.write_bytes("w", data, start)) == str(Checksum.of(data, start))
        else:
            with pytest.raises(SlabError, match=f"w has 24 bytes; {size} from byte {start} on do not fit there"):
                slab.write_bytes("w", data, start)


def test_a_part_lands_at_its_element_and_nowhere_else(slab: Slab) -> None:
    slab_bytes = np.memmap(slab.path, np.uint8, "r")
    with slab.writing(ROW):
        slab.write("w", row(2) + 7, 3)
    assert slab_bytes[:24].view(np.int32).tolist() == [0, 0, 0, 7, 8, 0]
    assert not slab_bytes[24:].any()


def test_a_whole_tensor_may_have_any_strides(slab: Slab) -> None:
    tensor = row(6).reshape(3, 2).t()
    manifest = write(slab, {"w": tensor})
    assert slab.tensors()["w"].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert manifest.entries[0].checksum == str(Checksum.of_tensor(tensor.contiguous()))


def test_all_tensors_are_written_with_their_checksums_and_counts(slab: Slab, weights: Weights) -> None:
    weights["mixer.D"][1] = float("inf")
    weights["norm.eps"] = torch.tensor(float("nan"))
    with slab.writing(places(weights)):
        found = slab.write_all(weights)
        single = {name: str(slab.write(name, tensor)) for name, tensor in weights.items()}
    assert found.checksums == single
    assert set(found.nonfinite) == {NonFinite("mixer.D", 0, 1, 3), NonFinite("norm.eps", 1, 0, 1)}


def test_a_slab_counts_itself_what_its_writer_did_not(slab: Slab) -> None:
    nan, infinity = float("nan"), float("inf")
    write(
        slab,
        {
            "both": torch.tensor([nan, 1.0, -infinity]),
            "finite": torch.ones(2, 3),
            "infinite": torch.tensor([[infinity], [0.0]]).bfloat16(),
            "nan": torch.tensor(nan, dtype=torch.float16),
            "whole": torch.full((4,), -1),
        },
    )
    assert slab.nonfinite() == (
        NonFinite("both", 1, 1, 3),
        NonFinite("infinite", 0, 1, 2),
        NonFinite("nan", 1, 0, 1),
    )


def test_counts_are_told_of_those_that_have_some() -> None:
    at = arrange({"a": ("float32", (4,)), "b": ("float32", (4,)), "c": ("float32", (4,))})
    lanes = np.zeros(3, np.uint64)
    found = {"a": Checksum(lanes, 2, 0), "b": Checksum(lanes), "c": Checksum(lanes, 0, 3)}
    assert written(found, at).nonfinite == (NonFinite("a", 2, 0, 4), NonFinite("c", 0, 3, 4))
    assert set(written(found, at).checksums) == {"a", "b", "c"}


def test_only_the_last_claim_counts_and_a_late_one_changes_nothing(slab: Slab, weights: Weights) -> None:
    write(slab, weights)
    first, second = slab.claim(), slab.claim()
    assert first != second
    late = Slab.open(slab.path)
    with pytest.raises(SlabBusyError, match="was given to another source: this one came late, and writes nothing"):
        late.begin(places(weights), first)
    assert same(slab.tensors(), weights)
    slab.begin(places(weights), second)  # the late one has left the lock
    slab.leave()
    slab.begin(places(weights))
    slab.leave()


def test_views_are_the_same_until_other_tensors_lie_there(slab: Slab, weights: Weights) -> None:
    write(slab, weights)
    first = slab.tensors()
    write(slab, make_weights(1), 1)
    again = slab.tensors()
    assert all(again[name] is first[name] for name in weights)
    again.clear()
    assert len(slab.tensors()) == len(weights)
    write(slab, {"w": row(6).reshape(2, 3)})
    assert slab.tensors()["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert list(slab.tensors()) == ["w"]


def test_a_slabs_content_is_what_is_in_use(slab: Slab) -> None:
    write(slab, {"a": torch.ones(1, dtype=torch.int8), "b": torch.ones(2, dtype=torch.int8)})
    assert slab.content().tolist() == [1] + [0] * 63 + [1, 1]
    assert not slab.content().flags.writeable


@pytest.mark.parametrize(("size", "kept"), [(100, True), (101, True), (99, False), (None, False)])
def test_a_slab_is_made_anew_where_it_is_missing_or_too_short(tmp_path: Path, size: int | None, kept: bool) -> None:
    path = tmp_path / "slab.weights"
    path.with_suffix(".json").write_text("{}")
    if size is not None:
        path.write_bytes(b"x" * size)
    Slab.restore(path, 100)
    assert path.stat().st_size == (size if kept else 100)
    assert path.read_bytes()[:1] == (b"x" if kept else b"\0")
    assert path.with_suffix(".json").exists() == kept
    Slab.open(path).discard()  # nobody holds it


def test_a_slab_that_finds_no_room_again_is_free(tmp_path: Path) -> None:
    path = tmp_path / "slab.weights"
    with pytest.raises(SlabFullError):
        Slab.restore(path, 2**60)
    Slab.restore(path, 100)
    assert path.stat().st_size == 100


def test_what_was_cut_while_it_is_written_is_left_to_its_writer(slab: Slab, weights: Weights) -> None:
    with slab.writing(places(weights)), pytest.raises(SlabBusyError):
        Slab.restore(slab.path, slab.nbytes + 1)
    assert slab.is_current()


def test_a_removed_slab_leaves_no_file(slab: Slab, weights: Weights) -> None:
    write(slab, weights)
    slab.claim()
    assert len(list(slab.path.parent.iterdir())) == 4
    slab.remove()
    assert list(slab.path.parent.iterdir()) == []
    slab.remove()
    assert not slab.is_current()


def test_a_slab_is_not_current_once_its_file_is_another_one(slab: Slab) -> None:
    assert slab.is_current()
    slab.path.rename(slab.path.with_name("aside"))
    assert not slab.is_current()
    other = Slab.create(slab.path, slab.nbytes)
    assert (slab.is_current(), other.is_current()) == (False, True)


def test_open_slabs_are_closed_once(slab: Slab, weights: Weights) -> None:
    slabs = OpenSlabs()
    first = slabs.at(slab.path)
    slabs.close()
    slabs.close()
    assert first.nbytes == 0
    assert slabs.at(slab.path) is not first
    slabs.close()


def test_a_slab_whose_directory_went_meanwhile_cannot_be_sealed(tmp_path: Path, weights: Weights) -> None:
    (tmp_path / "run").mkdir()
    slab = Slab.create(tmp_path / "run" / "slab.weights", end(places(weights)))
    manifest = write(slab, weights)
    slab.begin(places(weights))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(SlabFullError, match=r"slab\.json cannot be written: .*No such file"):
        slab.seal(manifest)
    with pytest.raises(SlabError, match="not sealed"):
        slab.sealed()


def test_who_leaves_without_sealing_has_no_place_any_more(slab: Slab, weights: Weights) -> None:
    slab.begin(places(weights))
    slab.leave()
    with pytest.raises(SlabError, match=r"slab-0\.weights has no place for steps; begin with the places of all"):
        slab.write("steps", weights["steps"])
    slab.leave()


def test_one_wrong_byte_in_a_checksum_is_damage(slab: Slab) -> None:
    manifest = write(slab, {"a": row(3), "b": row(2)})
    wrong = tuple(replace(entry, checksum="0" * 48) if entry.name == "b" else entry for entry in manifest.entries)
    entries: tuple[Entry, ...] = wrong
    other = Manifest.seal(entries, {entry.name: entry.checksum for entry in wrong}, run="run", attempt=1, number=0)
    slab.path.with_suffix(".json").write_text(other.model_dump_json())
    assert slab.check() == ("b",)
