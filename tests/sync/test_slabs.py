"""A run's two slabs and their slab owner: who may do what with them, and what survives whom."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omni_rl.client import publish
from omni_rl.errors import CheckpointError, ConfigError, SlabBusyError, SlabError, SlabFullError, SourceError
from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.sync.checkpoint import CheckpointTensors
from omni_rl.sync.ownership import abandoned
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.slab import Slab
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slabs import INBOX, SlabPair, slab_directory
from omni_rl.sync.sources import DirectorySource, PublishedSource

from .conftest import ROOT, Given, Weights, files_end_at, flip, make_weights, places, same


def start(base: Path, weights: Weights) -> tuple[SlabOwner, SlabPair]:
    owner = SlabOwner("run", places(weights), base)
    return owner, SlabPair(owner.directory)


def test_the_two_slabs_take_turns(tmp_path: Path, weights: Weights) -> None:
    owner, pair = start(tmp_path, weights)
    first = pair.fill(pair.idle(None), Given(weights))
    second = pair.fill(pair.idle(first.slab), Given(make_weights(1), 1))
    assert first.slab.path != second.slab.path
    assert pair.idle(second.slab) == first.slab.path
    assert not pair.pushes
    assert (first.tensors, first.bytes) == (6, sum(tensor.nbytes for tensor in weights.values()))
    assert same(Slab.open(Path(first.slab.path)).tensors(), weights)
    assert same(Slab.open(Path(second.slab.path)).tensors(), make_weights(1))
    assert pair.holds(first.slab)
    assert pair.holds(second.slab)
    owner.close()
    assert not pair.holds(first.slab)


def test_a_slab_that_was_damaged_or_filled_anew_does_not_hold_its_version(tmp_path: Path, weights: Weights) -> None:
    owner, pair = start(tmp_path, weights)
    filled = pair.fill(pair.idle(None), Given(weights))
    assert not pair.holds(SlabRef(filled.slab.path, "run/1/0/0123456789abcdef"))
    flip(Path(filled.slab.path), 3)
    assert not pair.holds(filled.slab)
    flip(Path(filled.slab.path), 3)
    assert pair.holds(filled.slab)
    pair.fill(filled.slab.path, Given(make_weights(1), 1))
    assert not pair.holds(filled.slab)
    owner.close()


def test_other_weights_than_the_runs_are_refused_with_their_names(tmp_path: Path, weights: Weights) -> None:
    owner, pair = start(tmp_path, weights)
    other = dict(weights)
    del other["mixer.D"]
    other["a.new.one"] = torch.ones(1)
    other["norm.eps"] = other["norm.eps"].bfloat16()
    with pytest.raises(SourceError) as refused:
        pair.fill(pair.idle(None), Given(other))
    for part in ("1 missing: mixer.D", "1 unexpected: a.new.one", "norm.eps is bfloat16 [], not float32 []"):
        assert part in str(refused.value)
    assert pair.at(pair.idle(None)).manifest is None
    owner.close()


@pytest.mark.parametrize(("count", "end"), [(10, ", t9."), (11, ", t9 and 1 more.")])
def test_of_many_tensors_that_are_missing_ten_are_named(tmp_path: Path, weights: Weights, count: int, end: str) -> None:
    missing = {f"t{number}": torch.ones(1) for number in (*range(10), "x")[:count]}
    owner, pair = start(tmp_path, weights | missing)
    with pytest.raises(SourceError) as refused:
        pair.fill(pair.idle(None), Given(weights))
    assert f"{count} missing: t0, t1, t2" in str(refused.value)
    assert end in str(refused.value)
    owner.close()


def test_another_run_may_not_use_the_slabs(tmp_path: Path, weights: Weights) -> None:
    with SlabOwner("other", places(weights), tmp_path) as owner:
        pair = SlabPair(owner.directory)
        with pytest.raises(SourceError, match="weights of run 'run', these slabs are of run 'other'"):
            pair.fill(pair.idle(None), Given(weights))
        with pytest.raises(SlabError, match="no slab of run 'other'"):
            pair.fill(str(tmp_path / "slab-0.weights"), Given(weights))


@pytest.mark.parametrize("run", ["", "../elsewhere", "a/b", ".hidden", "x" * 65])
def test_a_run_is_named_like_a_file(run: str) -> None:
    with pytest.raises(ConfigError, match="run"):
        slab_directory(run)


def test_a_slab_owner_removes_everything_at_the_end(tmp_path: Path, weights: Weights) -> None:
    with SlabOwner("run", places(weights), tmp_path) as owner:
        assert owner.directory.stat().st_mode & 0o077 == 0
        SlabPair(owner.directory).fill(str(owner.directory / "slab-0.weights"), Given(weights))
        publish(weights, run="run", number=1, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SlabError, match="start the run's slab owner"):
        SlabPair(owner.directory)


def test_two_slab_owners_of_one_run_are_one_too_many(tmp_path: Path, weights: Weights) -> None:
    with SlabOwner("run", places(weights), tmp_path):
        with pytest.raises(SlabBusyError, match=f"process {os.getpid()}"):
            SlabOwner("run", places(weights), tmp_path)
        assert abandoned(tmp_path) == []
        with SlabOwner("second", places(weights), tmp_path):
            pass


OWNER = """
import signal, sys
from pathlib import Path
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slabs import SlabPair
from tests.sync.conftest import make_weights, places, write
weights = make_weights()
owner = SlabOwner("run", places(weights), Path(sys.argv[1]))
for number in range(2):
    write(SlabPair(owner.directory).at(str(owner.directory / f"slab-{number}.weights")), make_weights(number), number)
print("kept", flush=True)
signal.pause()
"""


def test_slabs_outlive_a_killed_slab_owner_and_the_next_one_adopts_them(tmp_path: Path, weights: Weights) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"kept\n"
        pair = SlabPair(tmp_path / "omni-rl-run")
        mapped = pair.at(str(pair.paths[0])).tensors()
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert same(mapped, weights)
    assert abandoned(tmp_path) == [tmp_path / "omni-rl-run"]
    with SlabOwner("run", places(weights), tmp_path) as owner:
        assert owner.adopted
        for number, path in enumerate(pair.paths):
            slab = Slab.open(path)
            assert same(slab.tensors(), make_weights(number))
            assert slab.check() == ()
            slab.close()
    assert list(tmp_path.iterdir()) == []


def test_a_slab_owner_that_lets_go_leaves_the_slabs(tmp_path: Path, weights: Weights) -> None:
    owner, pair = start(tmp_path, weights)
    filled = pair.fill(pair.idle(None), Given(weights))
    owner.close(remove=False)
    assert pair.holds(filled.slab)
    with SlabOwner("run", places(weights), tmp_path) as next_one:
        assert next_one.adopted
        assert pair.holds(filled.slab)


def test_what_a_slab_owner_left_that_died_while_it_made_the_slabs_is_made_anew(
    tmp_path: Path, weights: Weights
) -> None:
    directory = slab_directory("run", tmp_path)
    directory.mkdir()
    (directory / "slab-0.weights").write_bytes(b"half")
    with SlabOwner("run", places(weights), tmp_path) as owner:
        assert not owner.adopted
        pair = SlabPair(owner.directory)
        assert pair.holds(pair.fill(pair.idle(None), Given(weights)).slab)


def test_a_slab_that_somebody_removed_is_made_anew_and_the_other_kept(tmp_path: Path, weights: Weights) -> None:
    owner, pair = start(tmp_path, weights)
    served = pair.fill(pair.idle(None), Given(weights))
    lost = pair.fill(pair.idle(served.slab), Given(make_weights(1)))
    owner.close(remove=False)
    Path(lost.slab.path).unlink()
    with SlabOwner("run", places(weights), tmp_path) as next_one:
        assert next_one.adopted
        assert pair.holds(served.slab)
        assert not pair.holds(lost.slab)
        assert pair.holds(pair.fill(lost.slab.path, Given(make_weights(2))).slab)


def test_a_slab_that_was_cut_is_made_anew_by_the_next_sync(tmp_path: Path, weights: Weights) -> None:
    """Whoever has it mapped must not touch what was cut off: the kernel would end that process."""
    owner, pair = start(tmp_path, weights)
    filled = pair.fill(pair.idle(None), Given(weights))
    other = Slab.open(Path(filled.slab.path))
    os.truncate(filled.slab.path, 1)
    assert not other.is_current()
    assert not pair.holds(filled.slab)
    assert pair.fill(filled.slab.path, Given(weights)).slab == filled.slab
    assert pair.holds(filled.slab)
    assert same(Slab.open(Path(filled.slab.path)).tensors(), weights)
    owner.close()


def test_a_source_that_comes_late_writes_nothing(tmp_path: Path, weights: Weights) -> None:
    """It was stopped while others were asked for their weights, which are served by now."""
    owner, pair = start(tmp_path, weights)
    path = pair.idle(None)
    late = pair.at(path).claim()
    filled = pair.fill(path, Given(weights))
    slab = Slab.open(Path(path))
    with pytest.raises(SlabBusyError, match="was given to another source"):
        slab.begin(places(weights), late)
    assert pair.holds(filled.slab)
    slab.begin(places(weights), slab.claim())
    slab.leave()
    owner.close()


def test_a_cut_slab_that_is_being_written_is_left_alone(tmp_path: Path, weights: Weights) -> None:
    owner, pair = start(tmp_path, weights)
    path = pair.idle(None)
    writer = Slab.open(Path(path))
    with writer.writing(places(weights)):
        os.truncate(path, 1)
        with pytest.raises(SlabBusyError, match=f"process {os.getpid()}"):
            pair.fill(path, Given(weights))
    pair.fill(path, Given(weights))
    owner.close()


def test_slabs_for_another_model_are_not_adopted(tmp_path: Path, weights: Weights) -> None:
    owner, pair = start(tmp_path, weights)
    filled = pair.fill(pair.idle(None), Given(weights))
    owner.close(remove=False)
    with pytest.raises(SlabError, match="other weights than this run"):
        SlabOwner("run", places({"w": torch.ones(3)}), tmp_path)
    assert pair.holds(filled.slab)


def test_no_room_for_two_slabs_leaves_nothing_behind(tmp_path: Path) -> None:
    huge = places({"w": torch.empty(2**58, device="meta")})
    with pytest.raises(SlabFullError, match="bytes are free"):
        SlabOwner("run", huge, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [0, 500, 600])
def test_a_file_system_that_fills_up_while_slabs_are_made_leaves_nothing(
    tmp_path: Path, weights: Weights, room: int
) -> None:
    with files_end_at(room), pytest.raises(SlabFullError, match="free some"):
        SlabOwner("run", places(weights), tmp_path)
    with SlabOwner("run", places(weights), tmp_path) as owner:
        assert not owner.adopted


def test_a_directory_is_read_as_it_would_be_sent(tmp_path: Path) -> None:
    stored = {"mixer.A_log": torch.randn(4).bfloat16(), "mlp1.1.weight": torch.randn(3, 5), "counter": torch.arange(3)}
    save_file(stored | {"vision_model.radio_model.summary_idxs": torch.arange(3)}, tmp_path / "model.safetensors")
    expected = {
        "mixer.A_log": stored["mixer.A_log"].float(),
        "mlp1.1.weight": stored["mlp1.1.weight"].bfloat16(),
        "counter": stored["counter"],
    }
    tensors = CheckpointTensors(tmp_path, torch.bfloat16, RELEASED)
    assert tensors.places() == places(expected)
    with SlabOwner("run", tensors.places(), tmp_path / "slabs") as owner:
        pair = SlabPair(owner.directory)
        filled = pair.fill(pair.idle(None), DirectorySource(tmp_path, torch.bfloat16, RELEASED, run="run", number=5))
        assert filled.slab.version.startswith("run/1/5/")
        assert same(pair.at(filled.slab.path).tensors(), expected)


def test_a_directory_without_weights_fills_nothing(tmp_path: Path, slab: Slab) -> None:
    with pytest.raises(CheckpointError):
        DirectorySource(tmp_path / "nowhere", torch.float32, RELEASED, run="run").fill(slab)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no safetensors file, or is damaged"):
        DirectorySource(tmp_path / "broken", torch.float32, RELEASED, run="run").fill(slab)
    assert slab.manifest is None


def test_published_weights_are_rounded_as_the_run_serves_them(tmp_path: Path, weights: Weights) -> None:
    masters = {name: t.double() if t.is_floating_point() else t for name, t in weights.items()}
    with SlabOwner("run", places(weights), tmp_path) as owner:
        pair = SlabPair(owner.directory)
        published = publish(masters, run="run", number=4, attempt=2, directory=tmp_path)
        assert published.path == owner.directory / INBOX
        assert published.version.startswith("run/2/4/")
        filled = pair.fill(pair.idle(None), PublishedSource(published.path, published.version))
        assert filled.slab.version == published.version
        assert same(pair.at(filled.slab.path).tensors(), weights)


def test_publishing_touches_neither_slab_and_may_be_repeated(tmp_path: Path, weights: Weights) -> None:
    with SlabOwner("run", places(weights), tmp_path) as owner:
        pair = SlabPair(owner.directory)
        served = pair.fill(pair.idle(None), Given(weights))
        spare = pair.fill(pair.idle(served.slab), Given(weights, 1))
        first = publish(make_weights(1), run="run", number=2, directory=tmp_path)
        second = publish(make_weights(2), run="run", number=3, directory=tmp_path)
        assert pair.holds(served.slab)
        assert pair.holds(spare.slab)
        with pytest.raises(SourceError, match=f"holds {second.version}, no longer {first.version}"):
            pair.fill(spare.slab.path, PublishedSource(first.path, first.version))
        assert pair.holds(spare.slab)
        taken = pair.fill(spare.slab.path, PublishedSource(second.path, second.version))
        assert same(pair.at(taken.slab.path).tensors(), make_weights(2))


def test_published_weights_that_changed_since_are_named(tmp_path: Path, weights: Weights) -> None:
    with SlabOwner("run", places(weights), tmp_path) as owner:
        pair = SlabPair(owner.directory)
        published = publish(weights, run="run", number=1, directory=tmp_path)
        entry = next(entry for entry in places(weights) if entry.name == "steps")
        flip(published.path, 8 * entry.offset + 5)
        with pytest.raises(SourceError, match="steps changed since it was published"):
            pair.fill(pair.idle(None), PublishedSource(published.path, published.version))
        assert pair.at(pair.idle(None)).manifest is None


def test_what_cannot_be_published_changes_nothing(tmp_path: Path, weights: Weights) -> None:
    with pytest.raises(SlabError, match=r"run 'run' has no slabs in .*; no run of this host has any"):
        publish(weights, run="run", number=1, directory=tmp_path)
    with SlabOwner("run", places(weights), tmp_path) as owner:
        published = publish(weights, run="run", number=1, directory=tmp_path)
        wrong = weights | {"mixer.D": torch.ones(4), "steps": torch.ones(9)}
        with pytest.raises(SourceError) as refused:
            publish(wrong, run="run", number=2, directory=tmp_path)
        assert "mixer.D is bfloat16 [4], not bfloat16 [3]" in str(refused.value)
        assert "steps is float32 [9], not int64 [9]" in str(refused.value)
        inbox = Slab.open(owner.directory / INBOX)
        assert str(inbox.sealed().version) == published.version
        with inbox.reading(), pytest.raises(SlabBusyError):
            publish(weights, run="run", number=3, directory=tmp_path)
