"""One set of weights in a mapped file: what is written is what is read, and nothing half-done passes for whole."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from omni_rl.errors import SlabBusyError, SlabError, SlabFullError
from omni_rl.sync.digest import weights_digest
from omni_rl.sync.manifest import Manifest, end
from omni_rl.sync.slab import OpenSlabs, Slab

from .conftest import ROOT, Weights, files_end_at, flip, make_weights, places, same, write


def test_another_mapping_reads_what_was_written(slab: Slab, weights: Weights) -> None:
    manifest = write(slab, weights, number=7)
    other = Slab.open(slab.path)
    assert same(other.tensors(), weights)
    assert other.sealed("run") == manifest
    assert (manifest.version.number, manifest.version.digest) == (7, weights_digest(weights))
    assert other.check() == ()


def test_the_next_weights_replace_the_last(slab: Slab, weights: Weights) -> None:
    write(slab, weights)
    other = Slab.open(slab.path)
    assert same(other.tensors(), weights)
    write(slab, make_weights(1), number=1)
    assert same(other.tensors(), make_weights(1))
    assert other.sealed().version.number == 1


def test_parts_of_a_tensor_make_the_whole(slab: Slab, weights: Weights) -> None:
    flat = weights["embeddings.weight"].reshape(-1)
    whole = write(slab, weights)
    with slab.writing(places(weights)):
        for first, last in ((7, 49), (0, 7), (49, 231)):  # 14 bytes: the second row starts inside a word
            slab.write("embeddings.weight", flat[first:last], first)
        slab.seal(whole)
    assert same(slab.tensors(), weights)
    assert slab.check() == ()


@pytest.mark.parametrize("name", ["embeddings.weight", "mixer.D", "norm.eps", "steps"])
def test_a_flipped_bit_is_found_and_named(slab: Slab, weights: Weights, name: str) -> None:
    manifest = write(slab, weights)
    entry = next(entry for entry in manifest.entries if entry.name == name)
    for bit in (8 * entry.offset, 8 * (entry.offset + entry.nbytes) - 1):
        flip(slab.path, bit)
        assert slab.check() == (name,)
        flip(slab.path, bit)
    assert slab.check() == ()


def test_what_goes_wrong_on_the_way_in_is_found(slab: Slab, weights: Weights) -> None:
    """The checksums are those of the source."""
    with slab.writing(places(weights)):
        checksums = {name: str(slab.write(name, tensor)) for name, tensor in weights.items()}
        slab.write("steps", weights["steps"].flip(0))
        slab.seal(Manifest.seal(places(weights), checksums, run="run", attempt=1, number=0))
    assert slab.check() == ("steps",)


def test_until_it_is_sealed_it_holds_nothing(slab: Slab, weights: Weights) -> None:
    with pytest.raises(SlabError, match="not sealed"):
        slab.tensors()
    write(slab, weights)
    with slab.writing(places(weights)):
        slab.write("steps", weights["steps"])
    assert slab.manifest is None
    with pytest.raises(SlabError, match="its source has not finished, or died"):
        slab.check()
    write(slab, weights)
    assert slab.check() == ()


WRITER = """
import os, signal, sys
from pathlib import Path
from omni_rl.sync.slab import Slab
from tests.sync.conftest import make_weights, places, write
slab = Slab.open(Path(sys.argv[1]))
weights = make_weights(3)
slab.begin(places(weights))
slab.write("embeddings.weight", weights["embeddings.weight"])
print("writing", flush=True)
signal.pause()
"""


def test_a_writer_that_is_killed_leaves_an_unsealed_slab_for_the_next(slab: Slab, weights: Weights) -> None:
    write(slab, weights)
    with subprocess.Popen([sys.executable, "-c", WRITER, slab.path], stdout=subprocess.PIPE, cwd=ROOT) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        with pytest.raises(SlabBusyError, match=f"process {writer.pid}"):
            slab.begin(places(weights))
        os.kill(writer.pid, signal.SIGSTOP)
        with pytest.raises(SlabBusyError):
            slab.begin(places(weights))
        writer.kill()
    with pytest.raises(SlabError, match="not sealed"):
        slab.sealed()
    write(slab, weights)
    assert same(Slab.open(slab.path).tensors(), weights)


def test_only_who_has_the_ticket_writes_along(slab: Slab, weights: Weights) -> None:
    helper, stranger = Slab.open(slab.path), Slab.open(slab.path)
    with pytest.raises(SlabBusyError):
        stranger.join(places(weights), "1:nobody")
    ticket = slab.begin(places(weights))
    helper.join(places(weights), ticket)
    with pytest.raises(SlabBusyError, match=f"process {os.getpid()}"):
        stranger.begin(places(weights))
    slab.leave()
    # The straggler of a group whose first member is gone still keeps others out.
    with pytest.raises(SlabBusyError):
        stranger.begin(places(weights))
    helper.leave()
    stranger.begin(places(weights))
    with pytest.raises(SlabBusyError):
        helper.join(places(weights), ticket)
    stranger.leave()


def test_a_reader_keeps_writers_out(slab: Slab, weights: Weights) -> None:
    write(slab, weights)
    other = Slab.open(slab.path)
    with other.reading():
        with pytest.raises(SlabBusyError):
            slab.begin(places(weights))
        assert same(other.tensors(), weights)
    write(slab, weights)


def test_a_slab_that_is_too_small_names_what_does_not_fit(slab: Slab, weights: Weights) -> None:
    write(slab, weights)
    larger = weights | {"zz.weight": torch.zeros(1000)}
    with pytest.raises(SlabFullError, match=r"zz\.weight does not fit"):
        slab.begin(places(larger))
    assert same(slab.tensors(), weights)


def test_a_full_file_system_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(SlabFullError, match="bytes are free"):
        Slab.create(tmp_path / "huge.weights", 2**60)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_fills_up_meanwhile_leaves_no_file(tmp_path: Path) -> None:
    with files_end_at(2**16), pytest.raises(SlabFullError, match="free some"):
        Slab.create(tmp_path / "slab-0.weights", 2**20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [0, 100])
def test_no_room_for_lock_or_manifest_is_told_and_passes(slab: Slab, weights: Weights, room: int) -> None:
    """The slab itself has its room; only what is written beside it can still fail."""
    write(slab, make_weights(1), 1)
    with files_end_at(room), pytest.raises(SlabFullError, match="cannot be written"):
        write(slab, weights)
    assert slab.manifest is None or same(slab.tensors(), make_weights(1))
    write(slab, weights)
    assert same(slab.tensors(), weights)
    assert len(list(slab.path.parent.iterdir())) == 3


def test_all_of_a_slab_is_allocated_at_once(tmp_path: Path) -> None:
    """A sparse file would kill its writer when the disk is full, long after the slab was made."""
    slab = Slab.create(tmp_path / "slab-0.weights", 2**20)
    assert slab.path.stat().st_blocks * 512 >= 2**20


def test_an_existing_file_is_not_overwritten(slab: Slab) -> None:
    with pytest.raises(SlabError, match="exists"):
        Slab.create(slab.path, 100)
    with pytest.raises(SlabError, match="cannot be opened"):
        Slab.open(slab.path.with_name("other.weights"))


def test_tensors_that_do_not_fit_their_places_are_refused(slab: Slab, weights: Weights) -> None:
    with pytest.raises(SlabError, match="no place for steps"):
        slab.write("steps", weights["steps"])
    with slab.writing(places(weights)):
        with pytest.raises(SlabError, match=r"mixer\.A_log has the place of float32 \[5\]"):
            slab.write("mixer.A_log", weights["mixer.A_log"].double())
        with pytest.raises(SlabError, match="does not fit there"):
            slab.write("mixer.A_log", weights["mixer.A_log"], 1)
        with pytest.raises(SlabError, match="no place for other"):
            slab.write("other", torch.ones(1))


def test_a_damaged_manifest_is_refused(slab: Slab, weights: Weights) -> None:
    write(slab, weights)
    path = slab.path.with_suffix(".json")
    text = path.read_text()
    record = json.loads(text)
    record["entries"][0]["name"] = "other"
    for damaged in (text[:-20], json.dumps(record), json.dumps(json.loads(text) | {"schema_version": 2})):
        path.write_text(damaged)
        with pytest.raises(SlabError, match=r"slab-0\.json"):
            slab.sealed()
    path.unlink()
    path.mkdir()
    with pytest.raises(SlabError, match=r"slab-0\.json cannot be read"):
        slab.sealed()


def test_weights_of_another_run_are_refused(slab: Slab, weights: Weights) -> None:
    write(slab, weights)
    with pytest.raises(SlabError, match="holds weights of run 'run', not of 'other'"):
        slab.sealed("other")


def test_a_stray_write_through_a_view_ends_the_process_that_does_it(slab: Slab, weights: Weights) -> None:
    write(slab, weights)
    code = (
        "import pathlib, sys; from omni_rl.sync.slab import Slab\n"
        "Slab.open(pathlib.Path(sys.argv[1])).tensors()['mixer.A_log'].zero_()"
    )
    done = subprocess.run([sys.executable, "-c", code, slab.path], check=False, capture_output=True)
    assert done.returncode == -signal.SIGSEGV
    assert slab.check() == ()


def test_views_outlive_their_slab(slab: Slab, weights: Weights) -> None:
    write(slab, weights)
    views = slab.tensors()
    slab.remove()
    assert same(views, weights)
    assert list(slab.path.parent.iterdir()) == []


def _mappings(path: Path) -> int:
    return sum(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def _open_files(path: Path) -> int:
    links = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists())
    return sum(target.startswith(str(path.parent)) for target in links)


def test_nothing_stays_open_or_mapped_after_close(tmp_path: Path, weights: Weights) -> None:
    slab = Slab.create(tmp_path / "slab-0.weights", end(places(weights)))
    write(slab, weights)
    views = slab.tensors()
    assert same(views, weights)
    assert _mappings(slab.path) == 2  # one to read, one to write
    slab.begin(places(weights))
    slab.close()
    slab.close()
    assert _mappings(slab.path) == 1
    del views
    assert _mappings(slab.path) == 0
    assert _open_files(slab.path) == 0


def test_open_slabs_are_mapped_once_until_the_file_is_another_one(slab: Slab, weights: Weights) -> None:
    slabs = OpenSlabs()
    first = slabs.at(slab.path)
    assert slabs.at(slab.path) is first
    slab.remove()
    with pytest.raises(SlabError):
        slabs.at(slab.path)
    write(Slab.create(slab.path, end(places(weights))), weights)
    assert same(slabs.at(slab.path).tensors(), weights)
    slabs.close()
    assert _mappings(slab.path) == 0


def test_bytes_of_other_alignments_have_the_same_checksum(slab: Slab, weights: Weights) -> None:
    """A source's tensor may begin anywhere in memory."""
    buffer = np.zeros(4 * 5 + 1, np.uint8)
    buffer[1:] = weights["mixer.A_log"].numpy().view(np.uint8)
    with slab.writing(places(weights)):
        odd = slab.write_bytes("mixer.A_log", buffer[1:])
        even = slab.write("mixer.A_log", weights["mixer.A_log"])
    assert str(odd) == str(even)
