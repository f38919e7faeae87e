"""Whose slabs a directory holds: its record, its owner, and the runs that this host has."""

import os
from pathlib import Path

import pytest
import torch

from omni_rl.errors import ConfigError, SlabBusyError, SlabError, SourceError
from omni_rl.sync.manifest import arrange
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import Slab
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slabs import RunRecord, SlabPair, runs_at, slab_directory
from omni_rl.sync.transport import SlabTransport

from .conftest import Given, Weights, files_end_at, make_weights, places

AT = arrange({"a": ("float32", (2, 3)), "b": ("bfloat16", (4,))})


def test_a_record_knows_how_much_room_its_tensors_take() -> None:
    record = RunRecord(run="run", places=AT)
    assert (record.schema_version, record.nbytes) == (1, 64 + 8)
    record.check(reversed(AT), "a source")
    with pytest.raises(ValueError, match="frozen"):
        record.run = "other"


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"a": ("float32", (2, 3))}, "1 missing: b"),
        ({}, "2 missing: a, b"),
        ({"a": ("float32", (2, 3)), "b": ("bfloat16", (4,)), "c": ("bool", ())}, "1 unexpected: c"),
        ({"a": ("float32", (3, 2)), "b": ("bfloat16", (4,))}, r"1 other: a is float32 [3, 2], not float32 [2, 3]"),
        ({"a": ("float32", (2, 3)), "b": ("float16", (4,))}, r"1 other: b is float16 [4], not bfloat16 [4]"),
        (
            {"b": ("float16", (5,)), "d": ("bool", ())},
            "1 missing: a; 1 unexpected: d; 1 other: b is float16 [5], not bfloat16 [4]",
        ),
    ],
)
def test_other_weights_are_refused_with_every_difference(
    tensors: dict[str, tuple[str, tuple[int, ...]]], told: str
) -> None:
    with pytest.raises(SourceError) as refused:
        RunRecord(run="run", places=AT).check(arrange(tensors), "the trainer")
    assert str(refused.value).partition(". Give every")[0] == (
        f"the trainer does not have the weights of run 'run': {told}"
    )


@pytest.mark.parametrize("text", ["", "{}", '{"run":"run","places":[],"schema_version":2}', None])
def test_a_record_that_cannot_be_read_is_told_with_its_path(tmp_path: Path, text: str | None) -> None:
    with pytest.raises(SlabError, match="holds no slabs; start the run's slab owner on this host first"):
        RunRecord.read(tmp_path)
    if text is None:
        (tmp_path / "run.json").mkdir()
    else:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(SlabError, match=r"(?s)run\.json cannot be used: .*remove the directory and start the run anew"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("run", ["a", "7", "Run-1_b.c", "x" * 64])
def test_the_longest_and_the_shortest_name_of_a_run(tmp_path: Path, run: str) -> None:
    assert slab_directory(run, tmp_path) == tmp_path / f"omni-rl-{run}"


@pytest.mark.parametrize("run", ["_a", "-a", "a b", "a\n", "ä"])
def test_names_that_are_no_file_names_of_ours(run: str) -> None:
    with pytest.raises(ConfigError, match="use letters, digits"):
        slab_directory(run)


def test_the_runs_of_this_host_are_those_with_an_owner_and_a_record(tmp_path: Path, weights: Weights) -> None:
    owners = [SlabOwner(run, places(weights), tmp_path) for run in ("b", "a", "left", "making")]
    owners[2].close(remove=False)
    (owners[3].directory / "run.json").unlink()
    (tmp_path / "omni-rl-never").mkdir()
    assert runs_at(tmp_path) == ["a", "b"]
    for owner in owners:
        owner.close()
    assert runs_at(tmp_path) == []


def test_a_base_that_is_no_directory_is_told(tmp_path: Path, weights: Weights) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SlabError, match=r"omni-rl-run cannot be made: .*Not a directory"):
        SlabOwner("run", places(weights), tmp_path / "file")
    with SlabOwner("run", places(weights), tmp_path / "new" / "base") as owner:
        assert owner.directory == tmp_path / "new" / "base" / "omni-rl-run"


def test_an_owner_is_closed_once_and_lets_go(tmp_path: Path, weights: Weights) -> None:
    owner = SlabOwner("run", places(weights), tmp_path)
    owner.close(remove=False)
    again = SlabOwner("run", places(weights), tmp_path)
    owner.close()
    assert again.directory.exists(), "it is no longer the first one's"
    assert again.adopted
    again.close()
    assert list(tmp_path.iterdir()) == []


def test_slabs_that_are_not_this_runs_are_left_to_their_own_owner(tmp_path: Path, weights: Weights) -> None:
    SlabOwner("run", places(weights), tmp_path).close(remove=False)
    with pytest.raises(SlabError, match="give the run another name, or remove the directory"):
        SlabOwner("run", AT, tmp_path)
    with SlabOwner("run", places(weights), tmp_path) as owner:
        assert owner.adopted


def test_an_owner_that_is_interrupted_while_it_makes_slabs_leaves_nothing(
    tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    create = Slab.create

    def interrupted(path: Path, nbytes: int) -> Slab:
        if made:
            raise KeyboardInterrupt
        made.append(path)
        return create(path, nbytes)

    monkeypatch.setattr(Slab, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SlabOwner("run", places(weights), tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    with SlabOwner("run", places(weights), tmp_path) as owner:
        assert not owner.adopted


def test_what_an_owner_left_behind_unfinished_does_not_pass_for_sealed(tmp_path: Path, weights: Weights) -> None:
    directory = slab_directory("run", tmp_path)
    directory.mkdir()
    for name in ("slab-0.json", "slab-1.claim", "inbox.weights"):
        (directory / name).write_text("left")
    with SlabOwner("run", places(weights), tmp_path) as owner:
        assert sorted(path.name for path in owner.directory.iterdir()) == [
            *("owner.lock", "run.json", "slab-0.weights", "slab-1.weights")
        ]
        sizes = {path.stat().st_size for path in owner.directory.glob("*.weights")}
        assert sizes == {owner.record.nbytes}
        assert not (owner.directory / "run.json.partial").exists()


def test_a_full_file_system_at_the_record_leaves_nothing(tmp_path: Path) -> None:
    at = arrange({f"t{number}": ("int8", (1,)) for number in range(3)})
    with files_end_at(end_of(at)), pytest.raises(SlabError, match=r"omni-rl-run cannot be written: .*; free some room"):
        SlabOwner("run", at, tmp_path)
    assert list(tmp_path.iterdir()) == []


def end_of(at: tuple[object, ...]) -> int:
    """The bytes of three slots: less than the record's text."""
    return 64 * (len(at) - 1) + 1


class Link(SlabTransport):
    """A transport that writes into the engines, and remembers what it was told."""

    pushes = True

    def __init__(self) -> None:
        self.did: list[str] = []

    def stage(self, slab: Slab) -> None:
        self.did.append(f"stage {slab.path.name}")

    def push(self) -> None:
        self.did.append("push")

    def holds(self, slab: SlabRef) -> bool:
        self.did.append("holds")
        return False


def test_a_transport_gets_what_was_sealed_and_has_the_last_word(tmp_path: Path, weights: Weights) -> None:
    with SlabOwner("run", places(weights), tmp_path) as owner:
        link = Link()
        pair = SlabPair(owner.directory, link)
        assert pair.pushes
        filled = pair.fill(pair.idle(None), Given(weights))
        pair.push()
        assert not pair.holds(filled.slab)
        assert link.did == ["stage slab-0.weights", "push", "holds"]
        with pytest.raises(SourceError):
            pair.fill(pair.idle(None), Given({"w": torch.ones(1)}))
        assert not pair.holds(filled.slab)
        assert link.did[3:] == []
        plain = SlabPair(owner.directory)
        assert not plain.pushes
        plain.close()
        pair.close()
        pair.close()


def test_the_other_slab_is_idle(tmp_path: Path, weights: Weights) -> None:
    with SlabOwner("run", places(weights), tmp_path) as owner:
        pair = SlabPair(owner.directory)
        first, second = map(str, pair.paths)
        assert pair.idle(None) == first
        assert pair.idle(SlabRef(first, "v")) == second
        assert pair.idle(SlabRef(second, "v")) == first
        for path in (str(tmp_path / "slab-0.weights"), f"{first}x"):
            with pytest.raises(SlabError, match="is no slab of run 'run', whose slabs are in"):
                pair.restored(path)
        for name in ("slab-0.weights", "slab-1.weights"):
            os.truncate(owner.directory / name, 1)
            assert pair.restored(str(owner.directory / name)).nbytes == pair.record.nbytes


def test_slabs_with_two_owners_at_once_are_busy(tmp_path: Path, weights: Weights) -> None:
    with SlabOwner("run", places(weights), tmp_path) as owner:
        with pytest.raises(SlabBusyError):
            SlabOwner("run", places(make_weights(1)), tmp_path)
        assert owner.directory.exists()
