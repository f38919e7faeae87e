"""Ranks of a sharded model write one slab together: however it is sharded, the slab is the whole model's."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

from omni_rl.client import publish
from omni_rl.errors import OmniRLError
from omni_rl.models.nemotron_omni.released import RELEASED
from omni_rl.sync import fill
from omni_rl.sync.digest import weights_digest
from omni_rl.sync.group import Group
from omni_rl.sync.manifest import Manifest, end
from omni_rl.sync.released import Released
from omni_rl.sync.slab import Slab
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slabs import SlabPair
from omni_rl.sync.sources import PublishedSource
from tests.nursery import MODEL, SECONDS, Ranks, run_ranks, shared
from tests.released import all_as_sent

from .conftest import Weights, places, same

pytestmark = pytest.mark.slow

EXPERTS = [f"mixer.experts.{expert}.up_proj.weight" for expert in range(5)]
WAYS: dict[str, Placement] = {"rows": Shard(0), "columns": Shard(1), "replicated": Replicate()}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def masters(nan: bool = False) -> Weights:
    """Row lengths that are no multiple of a word in bfloat16, fewer rows than ranks, a scalar, integers. `nan`: the
    rows of both ranks hold some, the experts' too."""
    generator = torch.Generator().manual_seed(0)
    flat = {
        "odd.weight": torch.randn(7, 3, generator=generator),
        "one_row.weight": torch.randn(1, 9, generator=generator),
        "mixer.A_log": torch.randn(5, generator=generator),
        "scalar": torch.randn((), generator=generator),
        "whole.weight": torch.randn(4, 4, generator=generator),
        "steps": torch.arange(5),
    }
    weights = flat | {name: torch.randn(3, 5, generator=generator) for name in EXPERTS}
    if nan:
        weights["odd.weight"][[0, 6], 1] = float("nan")
        weights["odd.weight"][6, 2] = float("-inf")
        weights[EXPERTS[4]][1] = float("nan")
    return weights


def sharded(way: Placement, nan: bool = False) -> list[Released]:
    """The same weights on two ranks: experts in a stack, two tensors whole on both ranks, the rest sharded."""
    weights = masters(nan)
    mesh = init_device_mesh("cpu", (2,))

    def shard(tensor: torch.Tensor) -> torch.Tensor:
        fits = not isinstance(way, Shard) or way.dim < tensor.ndim
        return distribute_tensor(tensor, mesh, [way if fits else Replicate()])

    whole = {"whole.weight", "steps"}
    stack = shard(torch.stack([weights.pop(name) for name in EXPERTS]))
    return [
        *(Released(name, tensor if name in whole else shard(tensor)) for name, tensor in weights.items()),
        *(Released(name, stack, row) for row, name in enumerate(EXPERTS)),
    ]


def fill_it(slab: Slab | None, tensors: list[Released], dtype: torch.dtype = torch.float32) -> Manifest:
    at = fill.places_of(sharded(Replicate()), dtype, RELEASED)
    return fill.fill(slab, tensors, at, run="r", attempt=1, number=0, origin="trainer", group=Group.default())


def outcome(act: Callable[[], Any]) -> str:
    try:
        act()
    except OmniRLError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        dist.barrier()
    return "done"


def start(rank: int, where: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{where}/rendezvous", rank=rank, world_size=2)


def work(rank: int, directory: str) -> None:
    """Everything that two ranks do together; what they found goes into a file."""
    where = Path(directory)
    start(rank, where)
    found: dict[str, Any] = {}
    for way, placement in WAYS.items():
        for name, dtype in DTYPES.items():
            tensors = sharded(placement)
            sealed = fill_it(Slab.open(where / f"{way}-{name}.weights"), tensors, dtype)
            alone = fill.digest(tensors, fill.places_of(tensors, dtype, RELEASED), group=Group.default())
            found[f"{way}-{name}"] = [sealed.version.digest, alone]
    fill_it(Slab.open(where / "elsewhere-float32.weights") if rank == 0 else None, sharded(Shard(0)))

    for way, placement in WAYS.items():
        odd = sharded(placement, nan=True)
        sealed = fill_it(Slab.open(where / f"{way}-nan.weights"), odd)
        found[f"{way}-nan"] = [str(tensor) for tensor in sealed.nonfinite or ()]

    slab, blocker = Slab.open(where / "failing.weights"), Slab.open(where / "failing.weights")
    tensors = sharded(Shard(0))
    if rank == 1:
        blocker.begin(places(masters()))
    dist.barrier()
    found["busy"] = outcome(lambda: fill_it(slab, tensors))
    blocker.leave()
    unknown = [*tensors[:-1], Released("unknown", torch.ones(1))] if rank == 0 else tensors
    found["unknown"] = outcome(lambda: fill_it(slab, unknown))
    larger = [Released(tensors[0].name, torch.ones(999)), *tensors[1:]] if rank == 0 else tensors
    found["larger"] = outcome(lambda: fill_it(slab, larger))
    found["left"] = slab.manifest is None
    found["again"] = outcome(lambda: fill_it(slab, tensors))

    state = {released.name: released.tensor for released in tensors if released.row is None}
    found["published"] = publish(state, run="run", number=3, directory=where).version
    short = {name: tensor for name, tensor in state.items() if name != "odd.weight"}
    found["short"] = outcome(lambda: publish(short, run="run", number=4, directory=where))
    (where / f"found-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


class Worked:
    """What the two ranks found, and the slabs that they filled."""

    def __init__(self, where: Path) -> None:
        self.found = [json.loads((where / f"found-{rank}.json").read_text()) for rank in range(2)]
        self.where = where

    def slab(self, name: str) -> Slab:
        return Slab.open(self.where / f"{name}.weights")


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Worked:
    where = tmp_path_factory.mktemp("ranks")
    names = [*(f"{way}-{what}" for way in WAYS for what in (*DTYPES, "nan")), "elsewhere-float32", "failing"]
    for name in names:
        Slab.create(where / f"{name}.weights", end(places(masters()))).close()
    flat = {name: tensor for name, tensor in masters().items() if name not in EXPERTS}
    owner = SlabOwner("run", places(all_as_sent(flat, torch.bfloat16)), where)
    run_ranks(where / "log", 2, work, str(where))
    owner.close(remove=False)
    return Worked(where)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", WAYS)
def test_every_sharding_gives_the_same_slab(worked: Worked, way: str, dtype: str) -> None:
    sent = all_as_sent(masters(), DTYPES[dtype])
    slab = worked.slab(f"{way}-{dtype}")
    assert same(slab.tensors(), sent)
    assert slab.check() == ()
    for found in worked.found:
        assert found[f"{way}-{dtype}"] == [weights_digest(sent)] * 2


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_finite_in_the_shards_of_all_ranks_is_counted(worked: Worked, way: str) -> None:
    expected = [f"{EXPERTS[4]}: 5 NaN of 15 elements", "odd.weight: 2 NaN and 1 infinite of 21 elements"]
    for found in worked.found:
        assert found[f"{way}-nan"] == expected


def test_a_rank_on_another_host_sends_its_shards_to_the_first(worked: Worked) -> None:
    assert same(worked.slab("elsewhere-float32").tensors(), masters())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("busy", "SlabBusyError: .* is being written"),
        ("unknown", "SourceError: rank 0 failed to send its weights: KeyError: 'unknown'"),
        ("larger", r"SlabError: odd\.weight has the place of float32 \[7, 3\]"),
        ("short", r"SourceError: .*1 missing: odd\.weight"),
    ],
)
def test_what_fails_in_one_rank_is_raised_in_all(worked: Worked, case: str, message: str) -> None:
    for found in worked.found:
        assert re.match(message, found[case])


def test_after_a_failure_nothing_is_sealed_and_the_next_try_works(worked: Worked) -> None:
    assert [(found["left"], found["again"]) for found in worked.found] == [(True, "done")] * 2
    assert same(worked.slab("failing").tensors(), masters())


def test_a_sharded_state_dict_is_published_by_all_its_ranks(worked: Worked) -> None:
    sent = {n: t for n, t in all_as_sent(masters(), torch.bfloat16).items() if n not in EXPERTS}
    version = worked.found[0]["published"]
    assert worked.found[1]["published"] == version
    pair = SlabPair(worked.where / "omni-rl-run")
    filled = pair.fill(pair.idle(None), PublishedSource(pair.directory / "inbox.weights", version))
    assert same(pair.at(filled.slab.path).tensors(), sent)


class Fatal(Released):
    """Ends its process when it is read."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "name", name)

    @property
    def tensor(self) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def die_halfway(rank: int, directory: str) -> None:
    where = Path(directory)
    start(rank, where)
    tensors = sharded(Shard(0))
    if rank == 1:
        tensors[3] = Fatal(tensors[3].name)
    try:
        fill_it(Slab.open(where / "slab.weights"), tensors)
    except OmniRLError as error:
        (where / "error").write_text(f"{type(error).__name__}: {error}")


def test_a_rank_that_is_killed_halfway_seals_nothing_and_frees_the_slab(tmp_path: Path) -> None:
    slab = Slab.create(tmp_path / "slab.weights", end(places(masters())))
    survivor, killed = Ranks(shared(*MODEL), tmp_path / "log", 2, die_halfway, str(tmp_path)).processes
    # How the survivor's process ends after it caught the error is gloo's: its threads may abort a normal exit.
    survivor.wait(SECONDS)
    assert killed.wait(SECONDS) == -signal.SIGKILL
    assert (
        (tmp_path / "error").read_text().startswith("TrainerDeadError: a rank that writes weights with this one died")
    )
    assert slab.manifest is None
    slab.begin(places(masters()))
    slab.leave()
