"""An engine of vLLM that the agent looks into, and a trainer beside it, in one process of a test's own.

`python -m tests.agent.stand DIRECTORY KIND DTYPE CLEAN`, with OMNI_RL_AGENT and OMNI_RL_RUN set, makes clean updates
and then the faults of a kind of model, one update each with a clean one after it, and prints what the coordinator said
of each as a line of JSON. `DTYPE` is the engine's; with PLAIN=0 its weights are packed, as vLLM's are on a CPU.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from omni_rl import runtime, torchvision_schemas
from tests.agent.plain import plain_weights
from tests.agent.tiny import KINDS

Weights = dict[str, torch.Tensor]
Send = Callable[["Stand", Weights, Weights], None]
"""What becomes of an update on its way: called with the weights before it and after it."""
PROMPT = {"prompt_token_ids": list(range(1, 40))}


class Stand:
    """One engine and its trainer. `step` is one update: the trainer learns, says so, and sends what `send` gives."""

    def __init__(self, kind: str, dtype: torch.dtype, directory: Path, **engine: Any) -> None:
        from vllm import LLM

        torch.manual_seed(0)
        self.trainer = KINDS[kind]().to(dtype)
        self.dtype = dtype
        save: Any = self.trainer.save_pretrained
        save(directory)
        self.llm = LLM(
            str(directory),
            skip_tokenizer_init=True,
            enforce_eager=True,
            dtype=str(dtype).removeprefix("torch."),
            max_model_len=64,
            enable_prefix_caching=True,
            kv_cache_memory_bytes=1 << 24,
            **engine,
        )
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

        self.llm.generate([PROMPT], SamplingParams(max_tokens=2, detokenize=False), use_tqdm=False, **request)

    def weights(self) -> Weights:
        """What the trainer would send, as it stands."""
        return {name: value.detach().clone() for name, value in self.trainer.named_parameters()}

    def learn(self) -> None:
        """Change every weight a little."""
        generator = torch.Generator().manual_seed(self.number)
        with torch.no_grad():
            for parameter in self.trainer.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))

    def load(self, weights: Weights) -> None:
        """As TRL does: one call a tensor."""
        for name, value in weights.items():
            self.model.load_weights([(name, value)])

    def step(self, send: Send | None = None, reset: bool = True) -> dict[str, Any]:
        """One update, sent whole or by `send`; returns what was told of it."""
        from omni_rl.agent import announced
        from omni_rl.agent.bodies import announcement
        from omni_rl.agent.install import flush
        from omni_rl.agent.trainer import fingerprints
        from omni_rl.client import Client

        before = self.weights()
        self.learn()
        self.number += 1
        with Client(os.environ["OMNI_RL_AGENT"]) as client:
            body = announcement(fingerprints(self.trainer, dtype=self.dtype))
            client.announce_update(os.environ["OMNI_RL_RUN"], self.number, body)
            announced.announce(self.number)
            if send is None:
                self.load(self.weights())
            else:
                send(self, before, self.weights())
            if reset:
                self.llm.reset_prefix_cache()
            self.generate()
            assert flush(30)
            told = client.updates(os.environ["OMNI_RL_RUN"], 1)[0]
            found: dict[str, Any] = told.model_dump()
            return found


def runs(stand: Stand, kind: str, clean: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Clean updates, and each fault with a clean one after it."""
    from tests.agent.faults import of_kind

    for number in range(clean):
        yield f"clean {number}", stand.step()
    for name, fault in of_kind(kind).items():
        yield name, stand.step(fault.send, fault.resets)
        yield f"after {name}", stand.step()


def main() -> None:
    directory, kind, dtype, clean = sys.argv[1:5]
    plain = os.environ.get("PLAIN", "1") == "1"
    if plain:
        plain_weights()
    stand = Stand(kind, getattr(torch, dtype), Path(directory) / "model")
    if not plain:
        # Packed layers take no weights in place: what they were loaded with is told of.
        stand.learn = lambda: None  # type: ignore[method-assign]
        sys.stdout.write(json.dumps(["packed", stand.step(lambda *_: None)]) + "\n")
        return
    for name, told in runs(stand, kind, int(clean)):
        sys.stdout.write(json.dumps([name, told]) + "\n")


if __name__ == "__main__":
    runtime.prepare()
    torchvision_schemas.install()
    main()
