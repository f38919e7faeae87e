"""Tells the coordinator of each weight update that verl's trainer sends to its rollout engines.

Source: verl 0.9.1. `ActorRolloutRefWorker.update_weights(global_steps, mode)` runs on every rank of the trainer, and
sends what `get_per_tensor_param` of `worker.actor.engine` (verl's name for its training backend) yields, name by name:
whole tensors, gathered on every rank. Rank 0 hashes them while it sends them.
"""

import importlib.abc
import importlib.util
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from omni_rl.agent.bodies import AdapterSums, Sums
from omni_rl.agent.names import canonical
from omni_rl.watch.guard import guarded
from omni_rl.watch.updates import Announcer, Weights, announcer

MODULE = "verl.workers.engine_workers"
OFF = "updates are not announced"


def announce_updates() -> None:
    """Have the updates of verl's workers announced. Their module is wrapped when it is imported, since it is imported
    after verl loads its plug-ins, and only in few of its processes."""
    if MODULE in sys.modules:
        _wrap(sys.modules[MODULE])
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds verl's workers by the usual finders, and wraps them once they are loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)  # or `find_spec` below would ask this finder again, for ever
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                guarded(lambda: _wrap(module), OFF)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _wrap(module: ModuleType) -> None:
    worker, ours = module.ActorRolloutRefWorker, VerlUpdates()
    send = worker.update_weights

    @wraps(send)  # verl reads how a method is dispatched from its attributes, which `wraps` copies
    async def update_weights(self: Any, global_steps: int | None = None, *args: Any, **kwargs: Any) -> Any:
        sent = guarded(lambda: ours.begin(self, global_steps), OFF)
        if sent is None:
            return await send(self, global_steps, *args, **kwargs)
        with sent:
            result = await send(self, global_steps, *args, **kwargs)
        guarded(lambda: ours.announce(sent), OFF)
        return result

    worker.update_weights = update_weights


class VerlUpdates:
    """Announces the updates of this process's trainer. It stores the fingerprints of the weights that were sent,
    because a LoRA run sends its base once and then adapters alone, and each announcement has the base too."""

    def __init__(self) -> None:
        self._announcer: Announcer | None = None
        self._base: Sums = {}

    def begin(self, worker: Any, number: int | None) -> "Sent | None":
        """Return the update that begins, the trainer's `number`. Returns None where `number` is None, as for a
        validation, which sends the weights of before; and on every rank but 0, and where OMNI_RL_AGENT asks for no
        announcements."""
        from torch import distributed

        if number is None or distributed.get_rank() != 0:
            return None
        self._announcer = self._announcer or announcer(posts=True)
        return None if self._announcer is None else Sent(worker, number)

    def announce(self, sent: "Sent") -> None:
        """Announce an update that was sent; one whose hashing failed is announced without fingerprints."""
        assert self._announcer is not None, "begin() gave it"
        self._announcer.announce(sent.number, lambda: self._weights(sent), at=sent.began)

    def _weights(self, sent: "Sent") -> Weights:
        if sent.failed is not None:
            raise sent.failed
        self._base |= sent.weights
        return Weights(dict(self._base), sent.adapters())


class Sent:
    """Holds one update while it is sent. Inside its `with` block it hashes what verl's training backend yields.

    `weights` are fingerprints of the model's own tensors, `failed` is the last error of hashing, and `began` is in Unix
    seconds.
    """

    def __init__(self, worker: Any, number: int) -> None:
        import torch

        self.number = number
        self.began = time.time()
        self.failed: Exception | None = None
        self.weights: Sums = {}
        self._engine = worker.actor.engine
        self._give: Callable[..., Any] = self._engine.get_per_tensor_param
        self._dtype: torch.dtype = getattr(torch, worker.config.rollout.dtype)
        self._lora: Any = None
        self._factors: Sums = {}

    def __enter__(self) -> None:
        give = self._give

        def get_per_tensor_param(*args: Any, **kwargs: Any) -> Any:
            given = give(*args, **kwargs)
            return guarded(lambda: self._tapped(given, bool(kwargs.get("base_sync_done"))), OFF) or given

        self._engine.get_per_tensor_param = get_per_tensor_param

    def __exit__(self, *_: object) -> None:
        del self._engine.get_per_tensor_param

    def _tapped(self, given: tuple[Iterable[tuple[str, Any]], Any], base_sent: bool) -> tuple[Any, Any]:
        tensors, lora = given
        # `lora` is the adapter's configuration. A LoRA run sends its base by a call of its own, with `base_sync_done`
        # False; later calls yield the adapter's matrices.
        if lora is None or not base_sent:
            return self._seen(tensors, self._weight), lora
        self._lora = lora
        return self._seen(tensors, self._factor), lora

    def _seen(self, tensors: Iterable[tuple[str, Any]], see: Callable[[str, Any], None]) -> Iterator[tuple[str, Any]]:
        for name, value in tensors:
            try:
                see(name, value)
            except Exception as error:  # the update goes on; the announcement reports the error
                self.failed = error
            yield name, value

    def adapters(self) -> tuple[AdapterSums, ...]:
        """Return the adapter that was sent, if one was."""
        if not self._factors:
            return ()
        from verl.workers.rollout.vllm_rollout.utils import VLLM_LORA_NAME

        return (AdapterSums.of(VLLM_LORA_NAME, self._lora.r, self._factors),)

    def _weight(self, name: str, value: Any) -> None:
        from omni_rl.agent.trainer import of_whole

        self.weights |= of_whole(name, value, dtype=self._dtype)

    def _factor(self, name: str, value: Any) -> None:
        """Fingerprint A or B of a LoRA layer; engines hold B with the scale multiplied in."""
        from omni_rl.agent.trainer import of_whole

        part = canonical(name.removesuffix(".weight"))
        held = value.to(self._dtype)
        if part.endswith("lora_B"):
            rank: float = self._lora.r
            held = held * (self._lora.lora_alpha / (rank**0.5 if self._lora.use_rslora else rank))
        self._factors |= of_whole(part, held)
