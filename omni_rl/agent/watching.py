"""Watches one vLLM worker: what touches its weights, what they are afterwards, and the receipt of that."""

import functools
import logging
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Literal

import torch
from torch import nn

from omni_rl.agent import announced, held, held_adapters
from omni_rl.agent.bodies import AdapterSums, adapter_body, held_parts
from omni_rl.agent.fingerprint import Fingerprint
from omni_rl.agent.held import ModelPart
from omni_rl.agent.names import Renames
from omni_rl.agent.settings import AgentSettings
from omni_rl.agent.tensors import fingerprint
from omni_rl.agent.workers import Held, WorkerParts
from omni_rl.api.updates import MAX_NAMED, Cache, EngineRenames, ReceiptBody
from omni_rl.client import Client

log = logging.getLogger("omni_rl.agent")
Post = Callable[[Client], object]
NOTED = "omni_rl_noted"
"""The name of the worker's method by which the agent's part in the EngineCore reports what never reaches a worker."""
VERSION: Literal["version"] = "version"
UPDATES = (
    "reload_weights",
    "start_weight_update",
    "update_weights",
    "finish_weight_update",
    "sleep",
    "wake_up",
    "add_lora",
    "remove_lora",
)
"""The methods of vLLM's worker that change what it computes with."""


class Agent:
    """The agent of one worker. Receipts are made at the end of the first model execution after something touched the
    weights, so that an update of many calls is one, and adapters that a request brings are there.

    Whatever fails in here is logged once, and the engine goes on without the agent.
    """

    def __init__(self, worker: Any, settings: AgentSettings, post: Callable[[Post], None]) -> None:
        config = worker.vllm_config
        parallel = config.parallel_config
        self._worker = worker
        self._settings = settings
        self._post = post
        self._session = config.instance_id or "0"
        self._engine = settings.name_of(self._session, parallel.data_parallel_rank)
        self._workers = parallel.world_size
        self._adapter_names: dict[int, str] = {}
        self._how: list[str] = ["load_model"]
        self._began = time.time()
        # Workers of an engine execute its model together: this count gives their receipts of one update one number.
        self._executions = 0
        self._looked = 0
        self._writes = -1
        self._version: str | None = None
        self._of: int | None = None
        self._sums: dict[str, Fingerprint] = {}
        self._parts: list[ModelPart] | None = None
        self._counting: list[torch.Tensor] = []
        self._places: list[tuple[int, int]] = []
        self._asleep = False
        self._broken = False
        self._caches: dict[Cache, int] = {}
        if config.cache_config.enable_prefix_caching:
            self._caches["prefix"] = 0
        if config.model_config.is_multimodal_model:
            self._caches |= {"encoder": 0, "multimodal": 0}

    def attach(self) -> None:
        """Wrap the worker's entry points; its model is wrapped once it is loaded."""
        worker = self._worker
        self._after(worker, "load_model", lambda *_: self._loaded())
        for name in UPDATES:
            if hasattr(worker, name):
                self._after(worker, name, functools.partial(self._called, name))
        extension = worker.vllm_config.parallel_config.worker_extension_cls
        if extension:
            from vllm.utils.import_utils import resolve_obj_by_qualname

            for name in (name for name, one in vars(resolve_obj_by_qualname(extension)).items() if callable(one)):
                if not name.startswith("_"):
                    self._after(worker, name, functools.partial(self._called, name))
        self._after(worker, "execute_model", lambda *_: self._executed())
        setattr(worker, NOTED, self.noted)

    def noted(self, what: "Cache | Literal['version']", value: str | None = None) -> None:
        """Take in that the EngineCore reset a cache, or was given a version of the weights."""
        if what == VERSION:
            self._version = value
            return
        if what in self._caches:
            # The cache holds nothing from before the next execution, whose receipt has this number.
            self._caches[what] = self._executions
        self._touched(f"reset_{what}_cache")

    def _loaded(self) -> None:
        model = self._model()
        self._before(model, "load_weights", lambda *_: self._touched("load_weights"))
        runner = self._worker.model_runner
        if "encoder" in self._caches and hasattr(runner, "reset_encoder_cache"):
            self._after(runner, "reset_encoder_cache", lambda *_: self.noted("encoder"))
        manager = getattr(runner, "lora_manager", None)
        if manager is not None:
            self._after(manager, "add_adapter", self._adapter_added)

    def _model(self) -> nn.Module:
        model: nn.Module = self._worker.get_model()
        return model

    def _adapter_added(self, result: object, request: Any) -> None:
        if self._adapter_names.get(request.lora_int_id) != request.lora_name or result:
            self._adapter_names[request.lora_int_id] = request.lora_name
            self._touched("add_lora")

    def _called(self, name: str, *_: object) -> None:
        if name == "sleep":
            self._asleep = True
        elif name == "wake_up":
            self._asleep = False
        self._touched(name)

    def _touched(self, how: str) -> None:
        if not self._how:
            self._began = time.time()
        if how not in self._how and len(self._how) < MAX_NAMED:
            self._how.append(how)

    def _executed(self) -> None:
        """Make a receipt where there is a reason to; this runs after every execution of the model and costs little
        otherwise."""
        if self._asleep or self._broken:
            return
        self._executions += 1
        if announced.newest() != self._of:
            self._of = announced.newest()
            self._touched("announced")
        elif not self._how and (self._due() or _writes(self._counting) != self._writes):
            self._touched("in_place")
        if self._how:
            self._looked = self._executions
            self._receipt()

    def _due(self) -> bool:
        """Return whether the weights were last fingerprinted long ago: a copy through `.data` shows in no count of
        torch's."""
        return bool(self._settings.every) and self._executions - self._looked >= self._settings.every

    def _receipt(self) -> None:
        model = self._model()
        started = time.perf_counter()
        parts = self._current_parts(model)
        seen = {part: part.values for part in parts if part.values is not None}
        before, self._sums = self._sums, {part.name: fingerprint(values) for part, values in seen.items()}
        self._writes = _writes(self._counting)
        changed = {part.tensor for part in seen if self._sums[part.name] != before.get(part.name)}
        how, self._how = self._how, []
        if how == ["in_place"] and not changed:
            return
        first = not before
        adapters = self._adapters()
        receipt = functools.partial(
            ReceiptBody,
            session=self._session,
            worker=self._worker.rank,
            workers=self._workers,
            at=time.time(),
            began=self._began,
            how=tuple(how),
            of=self._of,
            version=self._version,
            seconds=time.perf_counter() - started,
            tensors=len({part.tensor for part in parts}),
            changed=len(changed),
            caches=dict(self._caches),
            renames=_renames(held.renames(model)),
        )
        sums, number = self._sums, self._executions - 1

        def post(client: Client) -> object:
            # The body is put together in the poster's thread.
            told = WorkerParts(
                self._worker.rank,
                {part.name: Held(sums[part.name], part.shard) for part in seen},
                {part.name: part.why for part in parts if part.values is None},
                frozenset(part.name for part in seen if sums[part.name] != before.get(part.name)),
            )
            zero = () if first else (part for part in seen if sums[part.name].zero and part.tensor in changed)
            body = receipt(
                zero=_named(zero),
                nonfinite=_named(part for part in seen if sums[part.name].nonfinite),
                parts=held_parts(told),
                opaque=dict(told.opaque),
                adapters=None if adapters is None else tuple(map(adapter_body, adapters)),
            )
            return client.put_update(self._settings.run, self._engine, number, body)

        self._post(post)

    def _current_parts(self, model: nn.Module) -> list[ModelPart]:
        """Return the model's parts; they are derived anew only where a parameter is another, or lies elsewhere."""
        places = [(id(value), value.data_ptr()) for value in (*model.parameters(), *model.buffers())]
        if self._parts is None or places != self._places:
            self._parts, self._places = list(held.parts(model)), places
            self._counting = _one_of_each(self._parts)
        return self._parts

    def _adapters(self) -> list[AdapterSums] | None:
        manager = getattr(self._worker.model_runner, "lora_manager", None)
        if manager is None:
            return None
        return held_adapters.adapters(manager._adapter_manager, self._adapter_names)

    def _after(self, owner: Any, name: str, then: Callable[..., None]) -> None:
        """Have `then(result, *arguments)` called after a method of an object."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            result = inner(*arguments, **named)
            self._guarded(then, result, *arguments)
            return result

        setattr(owner, name, wrapped)

    def _before(self, owner: Any, name: str, first: Callable[..., None]) -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self._guarded(first, *arguments)
            return inner(*arguments, **named)

        setattr(owner, name, wrapped)

    def _guarded(self, what: Callable[..., None], *arguments: Any) -> None:
        if self._broken:
            return
        try:
            with torch.inference_mode():
                what(*arguments)
        except Exception:
            # The boundary between our code and somebody's engine, which goes on.
            self._broken = True
            log.exception("omni-rl: the agent failed, and looks no more; the engine goes on")


def _one_of_each(parts: Iterable[ModelPart]) -> list[torch.Tensor]:
    """Return one part's values of each tensor: all views of a tensor have one count of writes, and a model may have
    thousands of experts, which are looked at after every execution."""
    return list({part.tensor: part.values for part in parts if part.values is not None}.values())


def _writes(tensors: Iterable[torch.Tensor]) -> int:
    """Return how often the tensors were written to in place, as torch counts; tensors of inference mode are not."""
    return sum(tensor._version for tensor in tensors if not tensor.is_inference())


def _named(parts: Iterable[ModelPart]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.tensor[-256:] for part in parts))[:MAX_NAMED]


def _renames(found: Renames) -> EngineRenames:
    tables = (found.substrings, found.prefixes, found.suffixes)
    substrings, prefixes, suffixes = (dict(islice(table.items(), MAX_NAMED)) for table in tables)
    return EngineRenames(substrings=substrings, prefixes=prefixes, suffixes=suffixes)
