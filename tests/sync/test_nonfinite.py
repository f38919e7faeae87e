"""Weights that hold NaN or infinity: counted while they are copied, and refused unless the sync allows them."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni_rl.client import publish
from omni_rl.errors import NonFiniteWeightsError, SyncRolledBackError
from omni_rl.ledger.sync_journal import LedgerJournal, opened_journal
from omni_rl.sync.checksum import Checksum, as_bytes
from omni_rl.sync.manifest import Manifest
from omni_rl.sync.nonfinite import NonFinite, count, told
from omni_rl.sync.replica import Apply, Command, Deadline, Pause, Proof, ReplicaStatus, Resume, Resumed, Verify
from omni_rl.sync.result import SyncResult
from omni_rl.sync.slab import Slab
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slabs import SlabPair
from omni_rl.sync.sources import PublishedSource
from omni_rl.sync.weight_sync import WeightSync

from .conftest import Given, Weights, make_weights, places

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def broken(weights: Weights, nan: int = 3) -> Weights:
    """`nan` elements of A_log are NaN."""
    changed = weights["mixer.A_log"].clone()
    changed[:nan] = float("nan")
    return weights | {"mixer.A_log": changed}


class Counted(Given):
    """A source that counts what it writes, as every source of ours does."""

    def fill(self, slab: Slab) -> Manifest:
        at = places(self.weights)
        with slab.writing(at):
            written = slab.write_all(self.weights)
            manifest = Manifest.seal(
                at, written.checksums, run="run", attempt=1, number=self.number, nonfinite=written.nonfinite
            )
            slab.seal(manifest)
        return manifest


@settings(deadline=None)  # the first example may compile the loop
@given(
    st.sampled_from(FLOATS),
    st.integers(0, 3000),
    st.integers(0, 2**32 - 1),
    st.integers(0, 6),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_what_is_copied_is_counted_as_torch_counts_it(
    dtype: torch.dtype, size: int, seed: int, special: int, out: int, into: int
) -> None:
    """The values have any bits (subnormals, NaN of every payload), and are copied from and to any alignment."""
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, size * dtype.itemsize, np.uint8)
    values = torch.from_numpy(data).view(dtype) if size else torch.empty(0, dtype=dtype)
    values[torch.isnan(values) | torch.isinf(values)] = torch.finfo(dtype).max
    for at in generator.integers(0, max(size, 1), special if size else 0).tolist():
        values[at] = [float("nan"), float("inf"), float("-inf")][at % 3]
    source = np.concatenate([np.zeros(out, np.uint8), data])[out:]
    target = np.zeros(into + data.size, np.uint8)[into:]
    found = Checksum.of_copied(source, target, 0, str(dtype).removeprefix("torch."))
    assert (found.nan, found.infinite) == (int(torch.isnan(values).sum()), int(torch.isinf(values).sum()))
    assert target.tobytes() == data.tobytes()
    assert str(found) == str(Checksum.of(data))


def test_integers_hold_neither() -> None:
    data = np.full(4096, 0xFF, np.uint8)  # as float32, every element of it is NaN
    for dtype in ("int64", "int32", "int16", "int8", "uint8", "bool"):
        found = Checksum.of_copied(data, np.empty_like(data), 0, dtype)
        assert (found.nan, found.infinite) == (0, 0)


def test_a_tensor_is_told_with_its_counts() -> None:
    assert str(NonFinite("layers.3.A_log", 17, 0, 64)) == "layers.3.A_log: 17 NaN of 64 elements"
    assert str(NonFinite("D", 1, 2, 8)) == "D: 1 NaN and 2 infinite of 8 elements"
    assert str(NonFinite("D", 0, 3, 1)) == "D: 3 infinite of 1 element"


@pytest.mark.parametrize(
    ("count", "named", "more"),
    [(0, 0, ()), (9, 9, ()), (10, 10, ()), (11, 10, ("1 more tensor",)), (12, 10, ("2 more tensors",))],
)
def test_of_many_tensors_ten_are_named(count: int, named: int, more: tuple[str, ...]) -> None:
    many = (NonFinite(f"t{number}", 1, 0, 1) for number in range(count))
    assert told(many) == (*(f"t{number}: 1 NaN of 1 element" for number in range(named)), *more)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_largest_and_the_smallest_numbers_are_finite(dtype: torch.dtype) -> None:
    """What comes next to them, by its bits, is not."""
    largest, name = torch.finfo(dtype).max, str(dtype).removeprefix("torch.")
    finite = torch.tensor([largest, -largest, 0.0, -0.0, torch.finfo(dtype).smallest_normal], dtype=dtype).repeat(4)
    assert count(as_bytes(finite), name) == (0, 0)
    bits = finite.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize])
    bits[0] += 1
    bits[6] += 1
    assert finite[[0, 6]].tolist() == [float("inf"), float("-inf")]
    bits[5] += 2
    for found in (count(as_bytes(finite), name), counts(finite, name)):
        assert found == (1, 2)


def counts(values: torch.Tensor, dtype: str) -> tuple[int, int]:
    """While they are copied."""
    data = as_bytes(values)
    found = Checksum.of_copied(data, np.empty_like(data), 0, dtype)
    return found.nan, found.infinite


@pytest.fixture
def pair(tmp_path: Path, weights: Weights) -> Iterator[SlabPair]:
    with SlabOwner("run", places(weights), tmp_path) as owner, closing(SlabPair(owner.directory)) as pair:
        yield pair


@pytest.mark.parametrize("source", [Given, Counted], ids=["from a writer that did not count", "counted"])
def test_weights_that_are_not_finite_are_not_sealed(pair: SlabPair, weights: Weights, source: type[Given]) -> None:
    path = pair.idle(None)
    with pytest.raises(NonFiniteWeightsError, match=r"mixer\.A_log: 3 NaN of 5 elements") as refused:
        pair.fill(path, source(broken(weights)))
    assert refused.value.tensors == ("mixer.A_log: 3 NaN of 5 elements",)
    assert pair.at(path).manifest is None
    filled = pair.fill(path, source(broken(weights)), allow_nonfinite=True)
    assert filled.nonfinite == ("mixer.A_log: 3 NaN of 5 elements",)
    assert pair.fill(path, source(weights)).nonfinite == ()


def test_infinity_that_comes_of_rounding_is_seen(tmp_path: Path) -> None:
    """What the engine serves counts: float16 has no number for 70,000."""
    served = {"gate": torch.zeros(3, dtype=torch.float16)}
    with SlabOwner("run", places(served), tmp_path) as owner, closing(SlabPair(owner.directory)) as pair:
        published = publish({"gate": torch.tensor([1.0, 7e4, -7e4])}, run="run", number=1, directory=tmp_path)
        with pytest.raises(NonFiniteWeightsError, match="gate: 2 infinite of 3 elements"):
            pair.fill(pair.idle(None), PublishedSource(published.path, published.version))


@dataclass
class Obedient:
    """A replica by hand: it holds what it is told to, and proves it. `heard`: what it was told."""

    name: str = "r0"
    heard: list[Command] = field(default_factory=list)
    standing: Any = "closed"
    holds: str | None = None

    def call(self, command: Command, deadline: Deadline) -> Any:
        self.heard.append(command)
        match command:
            case Pause():
                self.standing = "paused"
            case Apply():
                self.standing, self.holds = "unproven", command.slab.version
            case Verify():
                self.standing = "proven"
                return Proof(command.slab.version, 6, 1, 5, 5)
            case Resume():
                self.standing = "serving"
                return Resumed(command.version, 0.1)
        return self.status(deadline)

    def status(self, deadline: Deadline) -> ReplicaStatus:
        return ReplicaStatus(self.name, 1, 1, self.standing, self.holds)

    def replace(self) -> None:
        raise AssertionError("it does not die")


@pytest.fixture
def replica() -> Obedient:
    return Obedient()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[LedgerJournal]:
    with opened_journal(f"sqlite:///{tmp_path / 'ledger.db'}", "run") as opened:
        yield opened


@pytest.fixture
def sync(pair: SlabPair, journal: LedgerJournal, replica: Obedient, weights: Weights) -> Iterator[WeightSync]:
    opened = WeightSync(journal, pair, [replica])
    opened.open(Counted(weights))
    yield opened
    opened.close()


def test_published_nan_is_refused_before_any_engine_is_paused(
    sync: WeightSync, replica: Obedient, journal: LedgerJournal, weights: Weights, tmp_path: Path
) -> None:
    before = sync.version
    published = publish(broken(weights), run="run", number=1, directory=tmp_path)
    source = PublishedSource(published.path, published.version)
    replica.heard.clear()
    for _ in range(2):  # one key has one failure
        with pytest.raises(NonFiniteWeightsError, match=r"replicas serve run/1/0.*mixer\.A_log: 3 NaN of 5 elements"):
            sync.sync(source, key="once")
    assert sync.version == replica.holds == before
    assert replica.standing == "serving"
    assert not [heard for heard in replica.heard if isinstance(heard, Pause | Apply)]
    record = journal.by_key("once")
    assert record is not None
    assert record.result is not None
    kept = SyncResult.from_json(record.result)
    assert (kept.outcome, kept.nonfinite) == ("rolled_back", ("mixer.A_log: 3 NaN of 5 elements",))


def test_nan_that_is_allowed_is_served_and_the_result_says_so(
    sync: WeightSync, replica: Obedient, weights: Weights, tmp_path: Path
) -> None:
    published = publish(broken(weights), run="run", number=1, directory=tmp_path)
    result = sync.sync(PublishedSource(published.path, published.version), allow_nonfinite=True)
    assert replica.holds == result.serving == published.version
    assert (result.allow_nonfinite, result.nonfinite) == (True, ("mixer.A_log: 3 NaN of 5 elements",))
    assert result.origin == "published"
    assert SyncResult.from_json(result.to_json()) == result


def test_allowed_weights_whose_slabs_were_lost_come_back(
    sync: WeightSync, pair: SlabPair, journal: LedgerJournal, replica: Obedient, weights: Weights
) -> None:
    source = Counted(broken(weights), 1)
    version = sync.sync(source, allow_nonfinite=True).version
    for path in pair.paths:
        pair.at(str(path)).discard()
    with closing(WeightSync(journal, pair, [replica])) as reopened:
        reopened.open(source)
        assert replica.holds == reopened.version == version


def test_a_run_does_not_begin_with_weights_that_are_not_finite(
    pair: SlabPair, journal: LedgerJournal, replica: Obedient, weights: Weights
) -> None:
    with closing(WeightSync(journal, pair, [replica])) as sync:
        with pytest.raises(NonFiniteWeightsError, match=r"mixer\.A_log"):
            sync.open(Counted(broken(weights)))
        assert sync.open(Counted(weights)).outcome == "committed"


def test_a_rolled_back_sync_of_allowed_weights_is_no_refusal(
    sync: WeightSync, replica: Obedient, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = replica.call

    def defective(command: Command, deadline: Deadline) -> Any:
        answer = call(command, deadline)
        wrong = isinstance(command, Verify) and not command.slab.version.startswith("run/1/0")
        return Proof(answer.version, 6, 1, 4, 5, ("mixer.D: 1 element differs",)) if wrong else answer

    monkeypatch.setattr(replica, "call", defective)
    with pytest.raises(SyncRolledBackError, match=r"mixer\.D") as error:
        sync.sync(Counted(broken(make_weights(1)), 1), allow_nonfinite=True)
    assert error.type is SyncRolledBackError


def test_a_result_of_an_earlier_version_opens() -> None:
    earlier = SyncResult("s", "committed", "run/1/1/abc", "run/1/1/abc", elements=5, elements_proven=5).to_json()
    for later in ("origin", "nonfinite", "allow_nonfinite"):
        del earlier[later]
    assert SyncResult.from_json(earlier) == SyncResult(
        "s", "committed", "run/1/1/abc", "run/1/1/abc", elements=5, elements_proven=5
    )
    assert SyncResult.from_json(earlier).nonfinite == ()
    unproven = SyncResult("s", "rolled_back", "", "run/1/1/abc")
    assert (unproven.elements, unproven.elements_proven) == (0, 0)


def test_a_manifest_of_an_earlier_version_opens(slab: Slab, weights: Weights) -> None:
    manifest = Counted(weights).fill(slab)
    earlier = Manifest.model_validate_json(manifest.model_dump_json(exclude={"nonfinite", "origin"}))
    assert (earlier.nonfinite, earlier.origin) == (None, None)
    slab.begin(places(weights))
    slab.write_all(broken(weights))
    slab.seal(earlier)
    assert slab.nonfinite() == (NonFinite("mixer.A_log", 3, 0, 5),)
