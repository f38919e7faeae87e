"""An engine of vLLM that the agent looks into, and a trainer beside it, in one process of a test's own.

`python -m tests.agent.stand DIRECTORY KIND DTYPE CLEAN`, with OMNI_RL_AGENT and OMNI_RL_RUN set, runs the faults of a
kind of model, one update each, and prints what the coordinator said of every update as one line of JSON.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omni_rl import runtime, torchvision_schemas

Weights = dict[str, torch.Tensor]
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
PROMPT = {"prompt_token_ids": list(range(1, 40))}


def qwen2() -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=128, intermediate_size=128, max_position_embeddings=128, tie_word_embeddings=True, **SIZES
    )
    model: nn.Module = Qwen2ForCausalLM(config)
    return model


KINDS: Mapping[str, Callable[[], nn.Module]] = {"qwen2": qwen2}


def plain_weights() -> None:
    """Have vLLM's CPU layers compute with the weights as they were loaded."""
    import vllm.model_executor.layers.utils as layers

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = nn.functional.linear

    layers.dispatch_cpu_unquantized_gemm = plain


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
    def model(self) -> Any:
        return self.llm.llm_engine.model_executor.driver_worker.worker.get_model()

    def generate(self, **request: Any) -> None:
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
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(self.dtype))

    def load(self, weights: Weights) -> None:
        """As TRL does: one call a tensor."""
        for name, value in weights.items():
            self.model.load_weights([(name, value)])

    def step(
        self, fault: Callable[["Stand", Weights, Weights], None] | None = None, reset: bool = True
    ) -> dict[str, Any]:
        """One update, sent whole or by `fault(stand, before, after)`; what was told of it."""
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
            (fault or whole)(self, before, self.weights())
            if reset:
                self.llm.reset_prefix_cache()
            self.generate()
            assert flush(30)
            told = client.updates(os.environ["OMNI_RL_RUN"], 1)[0]
            found: dict[str, Any] = told.model_dump()
            return found


def whole(stand: Stand, before: Weights, after: Weights) -> None:
    stand.load(after)


def nothing(stand: Stand, before: Weights, after: Weights) -> None:
    """The update never reaches the engine."""


def all_but(*patterns: str) -> Callable[[Stand, Weights, Weights], None]:
    def fault(stand: Stand, before: Weights, after: Weights) -> None:
        stand.load({name: value for name, value in after.items() if not any(one in name for one in patterns)})

    return fault


def changed(pattern: str, how: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Stand, Weights, Weights], None]:
    def fault(stand: Stand, before: Weights, after: Weights) -> None:
        stand.load({name: how(value) if pattern in name else value for name, value in after.items()})

    return fault


def swapped(stand: Stand, before: Weights, after: Weights) -> None:
    """Layer 1's q is loaded as k, and the other way round."""
    q, k = (f"model.layers.1.self_attn.{one}_proj.weight" for one in "qk")
    stand.load({**after, q: after[k], k: after[q]})


def half(stand: Stand, before: Weights, after: Weights) -> None:
    names = sorted(after)
    stand.load({name: after[name] for name in names[: len(names) // 2]})


def copied(stand: Stand, before: Weights, after: Weights) -> None:
    """A right update, and then a copy in place into one of the engine's parameters."""
    stand.load(after)
    with torch.no_grad():
        dict(stand.model.named_parameters())["model.norm.weight"].mul_(1.5)


def after_wake(stand: Stand, before: Weights, after: Weights) -> None:
    """The engine wakes with the weights that it fell asleep with."""
    stand.load(after)
    worker = stand.llm.llm_engine.model_executor.driver_worker.worker
    worker.sleep(1)
    worker.wake_up()
    stand.load(before)


def nan(value: torch.Tensor) -> torch.Tensor:
    value = value.clone()
    value.view(-1)[3] = torch.nan
    return value


DENSE: dict[str, tuple[Callable[[Stand, Weights, Weights], None], bool]] = {
    "no_update": (nothing, True),
    "one_layer": (all_but("layers.1."), True),
    "one_tensor": (all_but("layers.0.self_attn.o_proj.weight"), True),
    "half": (half, True),
    "q_and_k_swapped": (swapped, True),
    "zeroed": (changed("layers.1.post_attention_layernorm", torch.zeros_like), True),
    "nan": (changed("layers.0.self_attn.v_proj.weight", nan), True),
    "copied_in_place": (copied, True),
    "old_after_wake": (after_wake, True),
    "prefix_cache": (whole, False),
}
FAULTS = {"qwen2": DENSE}


def runs(stand: Stand, kind: str, clean: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Clean updates, and each fault with a clean one after it."""
    for number in range(clean):
        yield f"clean {number}", stand.step()
    for name, (fault, reset) in FAULTS[kind].items():
        yield name, stand.step(fault, reset)
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
        sys.stdout.write(json.dumps(["packed", stand.step(nothing)]) + "\n")
        return
    for name, told in runs(stand, kind, int(clean)):
        sys.stdout.write(json.dumps([name, told]) + "\n")


if __name__ == "__main__":
    runtime.prepare()
    torchvision_schemas.install()
    main()
