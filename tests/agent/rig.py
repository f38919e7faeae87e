"""An engine of vLLM that the agent looks into, and a trainer beside it, in one process of a test's own.

`python -m tests.agent.rig DIRECTORY KIND DTYPE CLEAN`, with OMNI_RL_AGENT and OMNI_RL_RUN set, makes clean updates
and then the faults of a kind of model, one update each with a clean one after it, and prints what the coordinator said
of each as a line of JSON. `DTYPE` is the engine's, the trainer has float32; with FAULTS=0 all updates are clean;
with PLAIN=0 the engine's weights are packed, as vLLM's are on a CPU.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from omni_rl import runtime, torchvision_schemas
from omni_rl.agent.bodies import AdapterSums
from omni_rl.client import Client
from tests.agent.plain import plain_weights
from tests.agent.tiny import KINDS, Tensors


class Served(Protocol):
    """An engine as those see it who bring it weights. `first`: the weights that it was brought first."""

    first: Tensors

    @property
    def worker(self) -> Any:
        """vLLM's worker in this process."""

    @property
    def model(self) -> Any:
        """The engine's model."""

    def load(self, weights: Tensors) -> None:
        """Bring weights by vLLM's own names for them."""


Send = Callable[[Served, Tensors, Tensors], None]
"""What becomes of an update on its way: called with the engine, and the weights before it and after it."""
PROMPT = {"prompt_token_ids": list(range(80, 119))}


class Rig:
    """One engine and its trainer. `step` is one update: the trainer learns, says so, and sends what `send` gives."""

    def __init__(self, kind: str, dtype: torch.dtype, directory: Path, **engine: Any) -> None:
        from vllm import LLM

        torch.manual_seed(0)
        self.tiny = KINDS[kind](directory, dtype)
        self.dtype = dtype
        self.first = self.tiny.tensors()
        options: dict[str, Any] = {
            "enforce_eager": True,
            "dtype": str(dtype).removeprefix("torch."),
            "max_model_len": 64,
            "kv_cache_memory_bytes": 1 << 24,
            **self.tiny.options,
            **engine,
        }
        self.llm = LLM(str(self.tiny.served), **options)
        self.generate()
        self.number = 0

    @property
    def worker(self) -> Any:
        """vLLM's worker in this process."""
        return self.llm.llm_engine.model_executor.driver_worker.worker

    @property
    def model(self) -> Any:
        """The engine's model."""
        return self.worker.get_model()

    def generate(self, **request: Any) -> None:
        """Have the engine execute its model."""
        from vllm import SamplingParams

        self.llm.generate([PROMPT], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False, **request)

    def learn(self) -> None:
        """Change every weight a little."""
        generator = torch.Generator().manual_seed(self.number)
        with torch.no_grad():
            for parameter in self.tiny.trainer.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))

    def load(self, weights: Tensors) -> None:
        """As trainers in the engine's own process do, past vLLM's worker."""
        self.model.load_weights(iter(weights.items()))

    def reset(self, keeps: str = "") -> None:
        """Empty the engine's caches, but one."""
        if keeps != "prefix":
            self.llm.reset_prefix_cache()
        if keeps != "encoder":
            self.llm.llm_engine.reset_encoder_cache()

    def announce(self, adapters: Sequence[AdapterSums] = ()) -> None:
        """Say what the trainer is about to send, to the coordinator and to the agent in this process."""
        from omni_rl.agent import announced
        from omni_rl.agent.bodies import announcement
        from omni_rl.agent.trainer import of_tensors

        self.number += 1
        body = announcement(of_tensors(self.tiny.tensors().items(), dtype=self.dtype), adapters)
        with Client(os.environ["OMNI_RL_AGENT"]) as client:
            client.announce_update(os.environ["OMNI_RL_RUN"], self.number, body)
        announced.announce(self.number)

    def told(self) -> dict[str, Any]:
        """What the coordinator says of the engine's newest update, once the agent has told of it."""
        from omni_rl.agent.install import flush

        assert flush(30)
        with Client(os.environ["OMNI_RL_AGENT"]) as client:
            newest = client.updates(os.environ["OMNI_RL_RUN"], 8)
        told = next(one for one in newest if one.engine is not None)
        assert told.of == self.number, f"the agent tells of update {told.of}, and not of {self.number}"
        found: dict[str, Any] = told.model_dump()
        return found

    def step(self, send: Send | None = None, keeps: str = "") -> dict[str, Any]:
        """One update, sent whole or by `send`; returns what was told of it. `keeps`: a cache that is not reset."""
        before = self.tiny.tensors()
        self.learn()
        self.announce()
        if send is None:
            self.load(self.tiny.tensors())
        else:
            send(self, before, self.tiny.tensors())
        self.reset(keeps)
        self.generate()
        return self.told()


def runs(rig: Rig, kind: str, dtype: str, clean: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Clean updates, and each fault with a clean one after it."""
    from tests.agent.faults import UNSEEN, of

    for number in range(clean):
        yield f"clean {number}", rig.step()
    if os.environ.get("FAULTS") == "0":
        return
    for name, fault in of(kind, dtype).items():
        yield name, rig.step(fault.send, fault.keeps)
        yield f"after {name}", rig.step()
    for name, send in UNSEEN.items():
        yield name, rig.step(send)


def main() -> None:
    directory, kind, dtype, clean = sys.argv[1:5]
    plain = os.environ.get("PLAIN", "1") == "1"
    if plain:
        plain_weights()
    rig = Rig(kind, getattr(torch, dtype), Path(directory) / "model")
    if not plain:
        # Packed layers take no weights in place: what they were loaded with is told of.
        rig.learn = lambda: None  # type: ignore[method-assign]
        sys.stdout.write(json.dumps(["packed", rig.step(lambda *_: None)]) + "\n")
        return
    for name, told in runs(rig, kind, dtype, int(clean)):
        sys.stdout.write(json.dumps([name, told]) + "\n")


if __name__ == "__main__":
    runtime.prepare()
    torchvision_schemas.install()
    main()
